"""`unmask report`."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from unmask.log import say
from unmask.report import report


@dataclass(frozen=True)
class Report:
    """One self-contained HTML page of runs, results and samples.

    `unmask report runs/ --out report.html`
    """

    paths: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders, folders of them, result and sample files."""
    out: Path = Path("report.html")
    """The page."""

    def run(self) -> None:
        say(str(report(self.paths, self.out)))
