"""What a run says: rows in metrics.jsonl for machines, and one line of progress for people."""

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from unmask.files import Row, atomic, finite, is_number, read_lines
from unmask.units import count, duration

console = Console(stderr=True, highlight=False)


class Metrics:
    """metrics.jsonl of a run, opened to go on after `step`: later rows, of work that was lost, are dropped.

    Raises ValueError, naming it, for a line that is no row of a step.
    """

    def __init__(self, path: Path, step: int) -> None:
        rows = read_lines(path) if path.exists() else []
        for number, row in enumerate(rows, 1):
            if not is_number(row.get("step")):
                raise ValueError(f"{path}, line {number}: no row of a step; remove the line to go on")
        rows = [row for row in rows if row["step"] <= step]
        with atomic(path) as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
        self.last = rows[-1] if rows else None
        self._path, self._file = path, path.open("ab", buffering=0)

    def write(self, row: Row) -> None:
        """Append one row, at once. Raises OSError where the disk does not take it."""
        row = {name: finite(value) for name, value in row.items()}
        self.last = row
        line = (json.dumps(row, allow_nan=False) + "\n").encode()
        try:
            written = self._file.write(line)
        except OSError as error:
            raise OSError(f"{self._path}: {error.strerror}: make room, and the same command goes on") from None
        if written != len(line):  # what was torn is left out when the run goes on
            raise OSError(f"{self._path}: no space left on device: make room, and the same command goes on")

    def close(self) -> None:
        self._file.close()


def tracking(name: str) -> Any:
    """The module of a tracker. Raises ValueError where it is not installed."""
    try:
        return import_module("torch.utils.tensorboard" if name == "tensorboard" else name)
    except ImportError:
        raise ValueError(f"track {name}: not installed: pip install {name}, or leave it out") from None


class Tracker:
    """Rows sent to trackio, or to wandb, which is called alike. Raises ValueError where it is not installed."""

    def __init__(self, name: str, run: str, config: Row) -> None:
        self.module = tracking(name)
        self.module.init(project="unmask", name=run, config=config, resume="allow")

    def write(self, row: Row) -> None:
        """Numbers of a row under the name of its kind, at its step."""
        self.module.log(_numbers(row), step=row["step"])

    def close(self) -> None:
        self.module.finish()


class Board:
    """Rows as TensorBoard's scalars, in files in a run's folder; those behind `step`, of lost work, are purged.

    Raises ValueError where the package tensorboard is not installed.
    """

    def __init__(self, folder: Path, step: int) -> None:
        self.writer = tracking("tensorboard").SummaryWriter(str(folder), purge_step=step + 1)

    def write(self, row: Row) -> None:
        """Numbers of a row under the name of its kind, at its step."""
        for name, value in _numbers(row).items():
            self.writer.add_scalar(name, value, row["step"])

    def close(self) -> None:
        self.writer.close()


def _numbers(row: Row) -> Row:
    return {f"{row['kind']}/{name}": value for name, value in row.items() if isinstance(value, int | float)}


class Report(Protocol):
    """Told of work done: (done, total), and a word on how it goes."""

    def __call__(self, done: int, total: int, note: str = "") -> None: ...


def hush() -> None:
    """Say nothing in this process: another one says the same. What `complain` is told is said all the same."""
    console.quiet = True
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115


def complain(error: BaseException) -> None:
    """What went wrong, in one line. A hushed process waits: where all have the same to say, it is ended meanwhile."""
    if console.quiet:
        if not isinstance(error, ConnectionError):  # of processes that lost another, none may have long to live
            time.sleep(3)
        console.quiet = False
    console.print(f"[bold red]error:[/] {escape(' '.join(str(error).split()))}", soft_wrap=True)


def say(value: object) -> None:
    """Print a text as it is, or a row as a line of JSON, to standard output."""
    print(value if isinstance(value, str) else json.dumps(finite(value), ensure_ascii=False), flush=True)


@contextmanager
def progress(title: str, unit: str = "", each: float = 1.0) -> Iterator[Report]:
    """A bar with rate and time left on a terminal; elsewhere, of work that takes longer, a line every ten seconds.

    The rate is in `unit`, of which there are `each` to every piece of work done. Work that begins again from a lower
    count is another stage, with a rate of its own.
    """
    if console.quiet:
        yield lambda done, total, note="": None
        return
    if not console.is_terminal:
        yield _Lines(title, unit, each)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(unit, each))
    with Progress(*columns, TimeRemainingColumn(), TextColumn("{task.fields[note]}"), console=console) as bar:
        task = bar.add_task(title, total=None, note="")

        def told(done: int, total: int, note: str = "") -> None:
            if done < bar.tasks[0].completed:
                bar.reset(task)
            bar.update(task, completed=done, total=total, note=note)

        yield told


class _Rate(ProgressColumn):
    """Work done a second, of late."""

    def __init__(self, unit: str, each: float) -> None:
        super().__init__()
        self.unit, self.each = unit, each

    def render(self, task: Task) -> Text:
        return Text("" if task.speed is None else _rate(task.speed * self.each, self.unit), "progress.data.speed")


def _rate(speed: float, unit: str) -> str:
    return f"{count(speed)} {unit}/s" if unit else f"{count(speed)}/s"


class _Lines:
    """Progress for a file or a pipe."""

    def __init__(self, title: str, unit: str, each: float) -> None:
        self.title, self.unit, self.each = title, unit, each
        self.start = self.last = time.monotonic()
        self.first: int | None = None
        self.before = 0

    def __call__(self, done: int, total: int, note: str = "") -> None:
        now = time.monotonic()
        if self.first is None or done < self.before:  # what was done before, and since when, is not known
            self.first, self.start = done, now
        self.before = done
        if now - self.last < 10:
            return
        self.last = now
        said = f"{self.title} {done:,}/{total:,} {note}"
        if done > self.first:
            speed = (done - self.first) / (now - self.start)
            said += f" {_rate(speed * self.each, self.unit)}, {duration(round((total - done) / speed))} left"
        print(" ".join(said.split()), file=sys.stderr, flush=True)
