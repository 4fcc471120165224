"""`unmask report`."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from unmask.log import say
from unmask.report import report
from unmask.report.read import find


@dataclass(frozen=True)
class Report:
    """One self-contained HTML page of runs, results and samples.

    `unmask report runs/ --out report.html`
    """

    paths: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders, folders of them, result and sample files."""
    out: Path = Path("report.html")
    """The page."""

    json: bool = False
    """Print records for machines."""

    def run(self) -> None:
        page = report(self.paths, self.out)
        if not self.json:
            return say(str(page))
        found = find(self.paths)
        say({"report": str(page), "runs": len(found.runs), "rows": len(found.rows), "samples": len(found.samples)})
