"""`unmask compare`: two result files, or two runs."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from unmask.evaluate.comparing import comparable, compare, read_rows
from unmask.files import Row, writable, write_json
from unmask.log import say
from unmask.report.read import Run, find
from unmask.report.runs import different, losses, validations
from unmask.report.tables import BOUNDS
from unmask.units import count, with_error


@dataclass(frozen=True)
class Compare:
    """Differences between two runs or two result files, with their errors.

    `unmask compare runs/a runs/b`: the settings that differ, training losses at equal step, tokens and FLOPs, the last
    validation of each, and whatever both have been measured on. `unmask compare A.json B.json`: row by row, paired
    where both scored the same windows.
    """

    first: tyro.conf.Positional[Path]
    """A run folder, or a result file of `unmask evaluate`."""
    second: tyro.conf.Positional[Path]
    """Another of the same kind."""
    out: Path | None = None
    """Write the differences as a result file, for `unmask report`."""
    json: bool = False
    """Print rows for machines."""

    def run(self) -> None:
        if self.first.is_dir() != self.second.is_dir():
            raise ValueError(f"{self.first} and {self.second}: give two run folders or two result files")
        writable(self.out)
        runs = [_run(path) for path in (self.first, self.second)] if self.first.is_dir() else []
        rows = _of_runs(*runs) if runs else compare(read_rows(self.first), read_rows(self.second))
        if self.out is not None:
            write_json(self.out, {"rows": rows})
        if self.json:
            for row in rows:
                say(row)
            return
        console = Console(width=None if sys.stdout.isatty() else 200, highlight=False)
        for table in _tables(rows, [run.name for run in runs]):
            console.print(table)


def _run(folder: Path) -> Run:
    runs = [run for run in find([folder]).runs if run.where.resolve() == folder.resolve()]
    if not runs:
        raise ValueError(f"{folder}: no config.json or metrics.jsonl in it; give a folder that `unmask train` wrote")
    return runs[0]


def _of_runs(first: Run, second: Run) -> list[Row]:
    kinds = {"setting": different, "loss": losses, "validation": validations}
    names = {"run_1": str(first.where), "run_2": str(second.where)}
    rows = [
        {"experiment": f"runs: {kind}", **names, **row} for kind, make in kinds.items() for row in make(first, second)
    ]
    return rows + _measured(first, second)


def _measured(first: Run, second: Run) -> list[Row]:
    """What both folders hold results of; nothing where they have none in common."""
    found = [comparable(find([run.where]).rows, run.where) for run in (first, second)]
    try:
        return compare(*found) if all(found) else []
    except ValueError:  # nothing that compares
        return []


def _tables(rows: Sequence[Row], names: Sequence[str]) -> list[Table]:
    """A table for each kind of difference."""
    kinds = {kind: [row for row in rows if row["experiment"] == f"runs: {kind}"] for kind in _KINDS}
    found = [_table(kind, names, [_KINDS[kind](row) for row in mine]) for kind, mine in kinds.items() if mine]
    compared = [row for row in rows if row["experiment"] == "comparison"]
    return found + ([_differences(compared)] if compared else [])


def _setting(row: Row) -> list[str]:
    return [row["setting"], *("–" if row[key] is None else str(row[key]) for key in ("first", "second")), ""]


def _loss(row: Row) -> list[str]:
    at = {"step": f"step {row['value']:,.0f}", "flops": f"{count(row['value'])} FLOPs"}
    return [f"loss at {at.get(row['at'], count(row['value']) + ' tokens')}", *_both(row, ("", ""))]


def _validation(row: Row) -> list[str]:
    bounds = [BOUNDS.get(str(row[key]), "") for key in ("first_bound", "second_bound")]
    return [f"validation after {row['first_step']:,} and {row['second_step']:,} steps", *_both(row, bounds)]


_KINDS = {"setting": _setting, "loss": _loss, "validation": _validation}


def _both(row: Row, bounds: Sequence[str]) -> list[str]:
    """Both values and their difference, in nats a token."""
    cells = [
        bound + " ± ".join(with_error(row[key], row[f"{key}_stderr"]))
        for key, bound in zip(("first", "second"), bounds, strict=True)
    ]
    return [*cells, " ± ".join(with_error(row["difference"], row["stderr"]))]


def _table(kind: str, names: Sequence[str], lines: Sequence[Sequence[str]]) -> Table:
    last = "" if kind == "setting" else "difference, nats/token"
    table = Table(kind, *map(escape, names), *([last] if last else []))
    for line in lines:
        table.add_row(*map(escape, line if last else line[:3]))
    return table


def _differences(rows: Sequence[Row]) -> Table:
    table = Table("first − second", "of", "difference", "± all", "± maskings", "sigmas", "paired by", "note")
    for row in rows:
        numbers = (f"{row[key]:.{digits}f}" for key, digits in (("stderr", 4), ("stderr_mc", 4), ("sigmas", 1)))
        names, of = f"{row['first']} − {row['second']}", f"{row['corpus']}: {row['protocol']}"
        cells = [names, of, f"{row['difference']:+.4f} {row['unit']}", *numbers, row["paired"], row["note"]]
        table.add_row(*map(escape, cells))
    return table
