"""`unmask report`."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from unmask.experiments.page import pages, put, told
from unmask.files import writable
from unmask.log import say
from unmask.report.page import page_of
from unmask.report.read import find


@dataclass(frozen=True)
class Report:
    """One self-contained HTML page of runs, results, experiments and samples.

    `unmask report runs/ --out report.html`
    """

    paths: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders, folders of them, result and sample files."""
    out: Path = Path("report.html")
    """The page."""
    results: Path | None = None
    """Folder to write results.md of the experiments to, with results/NAME.json and .svg beside it."""
    json: bool = False
    """Print records for machines."""

    def run(self) -> None:
        writable(self.out)
        found = find(self.paths)
        results = {} if self.results is None else pages(found.claims, self.results)  # before anything is written
        made = {"report": str(page_of(found, self.out, told=told))}
        if results:
            made["results"] = str(put(results))
        if not self.json:
            return say("\n".join(made.values()))
        say({**made, "runs": len(found.runs), "rows": len(found.rows), "samples": len(found.samples)})
