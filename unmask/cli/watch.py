"""`unmask watch`: runs in the terminal, as they go."""

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import tyro
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from unmask.log import say
from unmask.report.console import harmless
from unmask.report.read import Findings, Run, find
from unmask.report.runs import Progress, progress_of
from unmask.report.tables import BOUNDS
from unmask.units import count, duration, finite, plain, with_error

WIDTH, HEIGHT = 64, 8  # of the curve, in characters of 2 x 4 dots


@dataclass(frozen=True)
class Watch:
    """Follow runs: loss, speed, time left, last validation and samples.

    `unmask watch runs/tiny` redraws until the run is done or Ctrl-C; several runs, or a folder of them, stand below
    each other. Piped, or with --once, it prints once and ends: `unmask watch runs/ --json | jq .seconds_left`.
    """

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders, of runs in progress or done."""
    every: float = 2.0
    """Seconds between two looks at the files."""
    once: bool = False
    """Print once and end."""
    json: bool = False
    """Print one record a run for machines, once."""

    def run(self) -> None:
        if not self.runs:
            raise ValueError("say which: unmask watch RUN, a run folder or several")
        if not 0 < self.every <= 86400:
            raise ValueError(f"every {self.every} must be positive, and a day (86400) at most")
        found = _found(self.runs)
        if self.json:
            for run in found.runs:
                say(asdict(progress_of(run)))
            return
        if self.once or not sys.stdout.isatty():
            Console(highlight=False).print(panel(found))
            return
        console = Console(highlight=False)
        with Live(fitting(found, console), console=console, auto_refresh=False) as live:
            while not all(_done(progress_of(run)) for run in found.runs):
                time.sleep(self.every)
                found = _found(self.runs)
                live.update(fitting(found, console), refresh=True)


def _found(paths: Sequence[Path]) -> Findings:
    found = find(paths)
    if not found.runs:
        raise ValueError(f"{', '.join(map(str, paths))}: no run in it; give the folder that `unmask train` writes")
    return found


def _done(progress: Progress) -> bool:
    return progress.steps is not None and progress.step >= progress.steps


def panel(found: Findings, curves: bool = True) -> Group:
    """All runs below each other, then the last sample that lies with them."""
    parts = []
    for run in found.runs:
        parts += [*_lines(progress_of(run)), *(Text(line, "cyan") for line in (curve(run) if curves else ())), ""]
    if found.samples and isinstance(text := found.samples[-1].get("text"), str):
        parts.append(Text(f"last sample: {harmless(text)[:400]}", "dim"))
    return Group(*parts)


def fitting(found: Findings, console: Console) -> Group:
    """The panel; where the terminal is not tall enough, without curves, and then in a line a run."""
    for shown in (panel(found), panel(found, curves=False)):
        if len(console.render_lines(shown)) <= console.height:
            return shown
    return Group(*(_line(progress_of(run)) for run in found.runs))


def _line(now: Progress) -> Text:
    """Where a run is, in one line."""
    head, *more = _lines(now)
    line = Text("  ").join([head, *more])
    line.no_wrap, line.overflow = True, "ellipsis"
    return line


def _lines(now: Progress) -> list[Text]:
    """Where a run is, in words."""
    of = f" of {now.steps:,}" if now.steps else ""
    share = f" ({now.step / now.steps:.0%})" if now.steps else ""
    head = Text(now.name, "bold").append(f"  step {now.step:,}{of}{share}", "")
    head.append(f"  {count(now.tokens)} tokens" if now.tokens else "", "")
    head.append(f"  {duration(now.seconds)}" if now.seconds is not None else "", "")
    if now.step == 0:
        return [head.append("  nothing logged yet", "dim")]
    left = "done" if _done(now) else f"{duration(now.seconds_left)} left" if now.seconds_left is not None else ""
    speed = f"{count(now.tokens_per_second)} tokens/s  {plain(now.steps_per_second, 3)} steps/s  {left}"
    loss = f"loss {now.loss:.3f} nats/token" if now.loss is not None else "loss is not finite"
    return [head, Text(f"{loss}  {_validated(now)}"), Text(speed, "green" if left == "done" else "")]


def _validated(now: Progress) -> str:
    if now.validation is None:
        return "not validated yet"
    value, error = with_error(now.validation["nats_per_token"], now.validation.get("stderr"))
    bound = BOUNDS.get(str(now.validation.get("bound")), "")
    return f"validation {bound}{value} ± {error} at step {plain(now.validation['step'])}"


def curve(run: Run, width: int = WIDTH, height: int = HEIGHT) -> list[str]:
    """Training loss against step in Braille dots, means of the rows that fall on one dot; the first fiftieth, which
    would flatten all the rest, is left out.
    """
    points = [(finite(row.get("step")), finite(row.get("loss"))) for row in run.train]
    pairs = [(x, y) for x, y in points if x is not None and y is not None and abs(y) < 1e6]
    pairs = [(x, y) for x, y in pairs if x >= pairs[-1][0] / 50]
    if len(pairs) < 3:
        return []
    columns: dict[int, list[float]] = {}
    start, end = pairs[0][0], pairs[-1][0]
    for x, y in pairs:
        columns.setdefault(int((x - start) / ((end - start) or 1) * (2 * width - 1)), []).append(y)
    means = {column: sum(values) / len(values) for column, values in columns.items()}
    low, high = min(means.values()), max(means.values())
    cells = [[0] * width for _ in range(height)]
    for column, value in means.items():
        row = round((high - value) / ((high - low) or 1) * (4 * height - 1))
        cells[row // 4][column // 2] |= (0x01, 0x02, 0x04, 0x40, 0x08, 0x10, 0x20, 0x80)[column % 2 * 4 + row % 4]
    labels = {0: f"{high:.2f}", height - 1: f"{low:.2f}"}
    lines = [f"{labels.get(i, ''):>7} ┤{''.join(chr(0x2800 + bits) for bits in row)}" for i, row in enumerate(cells)]
    ends = f"{int(start):,}", f"{int(end):,}"
    return [*lines, f"{'':>8}└{ends[0]}{'step'.center(width - len(ends[0]) - len(ends[1]))}{ends[1]}"]
