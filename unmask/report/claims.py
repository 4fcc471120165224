"""A paper's claim and what came of rerunning it, ready for the page's template."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup
from matplotlib.figure import Figure

from unmask.report.drawing import svg
from unmask.report.tables import Table

LONG = 20  # rows beyond which a table is folded
NUMBER = re.compile(r"[-−+<>≤≈]? ?\d[\d.,e+\-−–±×⁰¹²³⁴⁵⁶⁷⁸⁹⁻ \[\]%]*")
PIXELS = 96  # of an inch on a screen


@dataclass(frozen=True)
class Claim:
    """What a paper says, what we measured, how, and whether it held."""

    name: str
    title: str
    says: str
    measured: str
    held: str
    scale: str
    how: str
    """Text and machine."""
    command: str
    tables: Sequence[tuple[str, Sequence[str], Sequence[Sequence[str]]]]
    """(title, header, rows) of each."""
    figure: Figure

    @property
    def drawn(self) -> Markup:
        """The figure as part of a page, read aloud as what was measured."""
        return Markup(svg(self.figure, f"{self.title}. {self.measured}"))

    @property
    def width(self) -> int:
        """Of the figure at its natural size, in pixels."""
        return round(self.figure.get_figwidth() * PIXELS)

    @property
    def narrowest(self) -> int:
        """In pixels: below it the figure is scrolled, for its text could not be read."""
        return round(0.9 * self.width)

    @property
    def shown(self) -> list[tuple[str, Table, bool]]:
        """(title, table, whether it is so long that it is folded)."""
        return [(title, _table(header, rows), len(rows) > LONG) for title, header, rows in self.tables]


def overview(claims: Sequence[Claim]) -> Table:
    """All claims in a line each."""
    columns = [("experiment", False), ("the paper", False), ("held", False), ("scale", False)]
    return Table(columns, [("", [[each.title, each.says, each.held, each.scale] for each in claims])])


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Columns of which every cell is a number, maybe with an error or an interval, or empty, hold numbers."""
    cells = [[row[i] for row in rows if row[i] not in ("", "–")] for i in range(len(header))]
    numeric = [bool(column) and all(NUMBER.fullmatch(cell) for cell in column) for column in cells]
    return Table(list(zip(header, numeric, strict=True)), [("", [list(row) for row in rows])])
