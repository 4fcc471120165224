"""How an experiment runs: cells are trained and measured once, in folders that any number of processes share.

An experiment is data and four pure functions; everything that takes time, or can be interrupted, is here.
"""

import math
import shlex
import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, fields, is_dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Literal, Protocol

import torch
from matplotlib.figure import Figure
from rich.markup import escape
from rich.table import Table as Shown

from unmask.checkpoint import device_of
from unmask.data import prepare
from unmask.data.planning import digest_of_bytes
from unmask.files import HeldError, Row, alone, read_json, write_json
from unmask.log import Report, console, progress, say
from unmask.train import DivergedError, TrainConfig, train
from unmask.train.budget import measured_rate
from unmask.train.config import COST, machine, settle
from unmask.train.precision import best_precision
from unmask.units import count, duration, power

Scale = Literal["tiny", "laptop", "gpu"]
Held = Literal["yes", "no", "not shown at this scale"]
RESULT = "result.json"
PARTS = "parts"
BUILTIN = "builtin"
PLANNED = {"seeds", "together", "arm", "shares", "init", "steps", "rate"}
"""Options that say which runs there are, and how they train; all others say how a run is measured."""


@dataclass(frozen=True)
class Cell:
    """A model to train and measure: one run folder."""

    name: str
    config: TrainConfig
    labels: Row = field(default_factory=dict)
    """What tells its rows apart from those of other cells."""
    diverged: Row | None = None
    """Its one row where training comes to a loss that is no number, which otherwise ends the experiment."""
    needs: str | None = None
    """The cell that must be done before this one is begun."""


@dataclass(frozen=True)
class Table:
    """Numbers as they are printed."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Finding:
    """What an experiment found: the paper's claim, ours beside it, and whether it held."""

    claim: str
    measured: str
    held: Held
    tables: tuple[Table, ...]


class Experiment(Protocol):
    """A claim of a paper, to be measured. Its fields are options of the command line."""

    def corpus(self, scale: Scale, source: str, out: Path) -> tuple[str, str] | Path:
        """(source, tokenizer) of the text it trains on, or a prepared folder; what is made of it goes to `out`."""
        ...

    def plan(self, scale: Scale, data: str, rows: Sequence[Row]) -> list[Cell]:
        """All cells that are known to be needed, `rows` being what is measured so far."""
        ...

    def run(self, scale: Scale, cell: Cell, folder: Path, source: str, told: Report) -> list[Row]:
        """What is measured on a trained cell, whose folder lies among those of the others; how far it is, is `told`."""
        ...

    def find(self, rows: Sequence[Row]) -> Finding: ...

    def figure(self, rows: Sequence[Row]) -> Figure: ...


def at_least_one(which: object, *names: str) -> None:
    """Raises ValueError where an option that is a count, or a list of counts, has less."""
    for name in names:
        value = getattr(which, name)
        counts = value if isinstance(value, tuple) else (value,)
        if not counts or min(counts) < 1:
            raise ValueError(f"{name} {' '.join(map(str, counts))}: give at least 1")
    once(which, *names)


def above_zero(which: object, *names: str) -> None:
    """Raises ValueError where a list of numbers has one that is not above 0 and finite, or one twice."""
    for name in names:
        for value in getattr(which, name):
            if not 0 < value < math.inf:
                raise ValueError(f"{name} {value:g}: give numbers above 0")
    once(which, *names)


def once(which: object, *names: str) -> None:
    """Raises ValueError where a list has something twice."""
    for name in names:
        value = getattr(which, name)
        if isinstance(value, tuple) and len(set(value)) < len(value):
            raise ValueError(f"{name} {' '.join(map(str, value))}: give each once")


def possible(name: str, *weights: float) -> None:
    """Raises ValueError for a weight of guidance that there is none of."""
    for weight in weights:
        if not -1 <= weight < math.inf:
            raise ValueError(f"{name} {weight:g}: a weight of guidance is -1 or more, and finite")


def name_of(experiment: Experiment) -> str:
    return type(experiment).__name__.lower()


def experiment(
    which: Experiment, scale: Scale, out: Path, *, source: str = BUILTIN, dry_run: bool = False, json: bool = False
) -> Path | None:
    """Run what is not there yet in folder `out`; returns its result.json, or None while others still work on it.

    Each cell is an ordinary run folder with a result.json of its own. Start the same command in several processes, on
    one machine or on several that share the folder, and each takes the next cell that nobody owns. With `dry_run` the
    cells are told, with `json` for machines too, and where nothing is there yet nothing is left. Raises ValueError
    where a run's settings differ from those in its folder, or it was measured in another way than is asked for.
    """
    if not dry_run:
        return _finish(which, scale, out, source)
    with ExitStack() as spare:
        if not (out.is_dir() and any(out.iterdir())):
            out = Path(spare.enter_context(tempfile.TemporaryDirectory()))
        _, cells, _ = _plan(which, scale, out, source)
        for cell in cells if json else ():
            say({"run": cell.name, **_sizes(cell), "done": _done(cell, out)})
    return None


def _plan(which: Experiment, scale: Scale, out: Path, source: str) -> tuple[str, list[Cell], list[Row]]:
    """Its data, prepared, with what is known of its cells, which are told."""
    with _when_free(out, "data"):
        corpus = which.corpus(scale, source, out)
        data = corpus if isinstance(corpus, Path) else prepare(corpus[0], out / "data", tokenizer=corpus[1])
    cells, rows = _known(which, scale, str(data), out, source)
    _announce(which, scale, cells, out)
    return str(data), cells, rows


def _finish(which: Experiment, scale: Scale, out: Path, source: str) -> Path | None:
    """All that is still to do, as far as no other process does it."""
    data, cells, rows = _plan(which, scale, out, source)
    while todo := [cell for cell in cells if not _done(cell, out)]:
        if not any(_advance(which, scale, cell, out, source) for cell in todo):
            console.print(f"{len(todo)} cells are other processes' work: run this again when they are done")
            return None
        cells, rows = _known(which, scale, data, out, source)
    return _conclude(which, scale, cells, rows, out, source)


def _hold(out: Path, name: str) -> AbstractContextManager[None]:
    """Hold a part of the work. Raises HeldError where another process does."""
    return alone(out / "locks" / name / ".lock", f"{name}: being worked on")


@contextmanager
def _when_free(out: Path, name: str) -> Iterator[None]:
    """Hold a part of the work, waiting for whoever does."""
    with ExitStack() as held:
        while True:
            try:
                held.enter_context(_hold(out, name))
                break
            except HeldError:
                time.sleep(0.2)
        yield


def _known(which: Experiment, scale: Scale, data: str, out: Path, source: str) -> tuple[list[Cell], list[Row]]:
    """All cells that what is measured calls for, and the rows measured: planned again until nothing is added."""
    rows: list[Row] = []
    now = measured(which, source)
    while True:
        cells = which.plan(scale, data, rows)
        done = [cell for cell in cells if _done(cell, out)]
        for cell in done:
            settle(cell.config, out / cell.name)  # which refuses a run of other settings
        results = [read_json(out / cell.name / RESULT) for cell in done]
        for cell, result in zip(done, results, strict=True):
            if (before := result.get("measured", "another version")) != now:
                what = f"measured with {before or 'the defaults'!r}, not with {now or 'the defaults'!r}"
                raise ValueError(f"{out / cell.name}: {what}: name another folder by --out")
        found = [row for result in results for row in result["rows"]]
        if len(found) == len(rows):
            return cells, rows
        rows = found


def _advance(which: Experiment, scale: Scale, cell: Cell, out: Path, source: str) -> bool:
    """Train and measure a cell, unless it waits for another or another process does; whether it was this one."""
    folder = out / cell.name
    if cell.needs is not None and not (out / cell.needs / RESULT).exists():
        return False
    with ExitStack() as held:
        try:
            held.enter_context(_hold(out, cell.name))
        except HeldError:
            return False
        if not (folder / RESULT).exists():
            start = time.monotonic()
            try:
                train(replace(cell.config, name=cell.name), folder)
                start = time.monotonic()
                with progress(f"{cell.name}, measured") as told:
                    rows = [{**cell.labels, **row} for row in which.run(scale, cell, folder, source, told)]
            except DivergedError:
                if cell.diverged is None:
                    raise
                rows = [{**cell.labels, **cell.diverged}]
            where = {"unmask": version("unmask"), "machine": machine(torch.device(device_of(cell.config.device)))}
            result = {"cell": cell.name, "measured": measured(which, source), **where, "rows": rows}
            write_json(folder / RESULT, {**result, "seconds": time.monotonic() - start})
            shutil.rmtree(folder / PARTS, ignore_errors=True)
    return True


Keep = Callable[[str, Callable[[], list[Row]]], list[Row]]


def keeping(which: Experiment, folder: Path, source: str) -> Keep:
    """What keeps the rows of each part of a measurement, by its name, until the run's result is there: one that takes
    an hour goes on where it was cut off.
    """
    home = folder / PARTS / digest_of_bytes(measured(which, source).encode())

    def keep(name: str, measure: Callable[[], list[Row]]) -> list[Row]:
        path = home / f"{name}.json"
        if not path.exists():
            write_json(path, {"rows": measure()})
        return read_json(path)["rows"]

    return keep


def _announce(which: Experiment, scale: Scale, cells: Sequence[Cell], out: Path) -> None:
    todo = [cell for cell in cells if not _done(cell, out)]
    total = sum(cell.config.cost()["flops_true"] for cell in todo)
    table = Shown("run", "parameters", "tokens", "6ND", "FLOPs", "state")
    for cell in cells:
        size = _sizes(cell)
        numbers = (count(size["non_embedding"]), count(size["tokens"]), power(size["flops_6nd"]))
        table.add_row(cell.name, *numbers, power(size["flops_true"]), "done" if _done(cell, out) else "to do")
    console.print(table)
    said = f"{name_of(which)}, {scale}: {len(todo)} of {len(cells)} runs to do, {total:.1e} FLOPs"
    if total:
        said += f", about {duration(total / rate(todo))} of training on this machine"
        said += "; what is measured on them, and runs that may follow from it, are not counted"
    console.print(said, soft_wrap=True)


def trained(result: Row) -> str | None:
    """What training an experiment's result took, where it says so."""
    cost = result.get("trained")
    return cost and (
        f"{cost['runs']:,} runs, {count(cost['tokens'])} tokens, 6ND = {power(cost['flops_6nd'])} FLOPs, true count "
        f"{power(cost['flops_true'])}"
    )


def _sizes(cell: Cell) -> Row:
    return {"non_embedding": cell.config.network.parameters()["non_embedding"], **cell.config.cost()}


def _done(cell: Cell, out: Path) -> bool:
    return (out / cell.name / RESULT).exists()


def rate(todo: Sequence[Cell]) -> float:
    """FLOP/s of training here, in two steps of the costliest run's network."""
    config = max((cell.config for cell in todo), key=lambda config: config.cost()["flops_true"])
    device = torch.device(device_of(config.device))
    precision = best_precision(device) if config.precision == "auto" else config.precision
    shape = (config.batch // config.accumulate, config.length)
    return measured_rate(device, precision, size=config.network, shape=shape, seconds=0.0)


def measured(which: Experiment, source: str) -> str:
    """What was asked for of what is measured on a run: words of the command, and a digest of each file they name."""
    words = told(which, PLANNED)
    held = [digest_of_bytes(Path(word).read_bytes()) for word in words if Path(word).is_file()]
    return " ".join([shlex.join([*words, *_source(source)]), *held])


def _source(source: str) -> list[str]:
    return [] if source == BUILTIN else ["--source", source]


def command_of(which: Experiment, scale: Scale, source: str) -> str:
    """What to type to have it run again: everything that is not as it is by default, paths as they were given."""
    return shlex.join(["unmask", "experiment", name_of(which), *told(which), "--scale", scale, *_source(source)])


def told(which: object, without: Collection[str] = ()) -> list[str]:
    """The words that say what differs from its defaults, without some options."""
    words: list[str] = []
    for each in fields(which):  # pyrefly: ignore
        value = getattr(which, each.name)
        if each.name in without:
            continue
        if is_dataclass(value):
            words += told(value, without)
        elif value != each.default and value is not None:
            words += [f"--{each.name.replace('_', '-')}", *map(str, value if isinstance(value, tuple) else [value])]
    return words


def _conclude(which: Experiment, scale: Scale, cells: Sequence[Cell], rows: list[Row], out: Path, source: str) -> Path:
    name, results = name_of(which), [read_json(out / cell.name / RESULT) for cell in cells]
    finding = which.find(rows)
    write_json(out / RESULT, {
        "experiment": name,
        "scale": scale,
        "command": command_of(which, scale, source),
        "source": source,
        **{key: "; ".join(dict.fromkeys(result[key] for result in results)) for key in ("unmask", "machine")},
        "trained": {"runs": len(cells), **{key: sum(_sizes(cell)[key] for cell in cells) for key in COST}},
        "rows": rows,
    })  # fmt: skip
    figure = which.figure(rows)
    figure.savefig(out / f"{name}.svg", metadata={"Date": None})
    for title, text in (("the paper", finding.claim), ("measured", finding.measured), ("held", finding.held)):
        console.print(f"[bold]{title:10}[/] {escape(text)}")
    for table in finding.tables:
        shown = Shown(*table.header, title=table.title, title_justify="left")
        for row in table.rows:
            shown.add_row(*row)
        console.print(shown)
    console.print(f"{out / RESULT}, {out / f'{name}.svg'}")
    return out / RESULT
