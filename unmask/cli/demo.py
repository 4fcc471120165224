"""`unmask demo`."""

from dataclasses import dataclass, field
from pathlib import Path

from unmask.cli.recipes import rate_here
from unmask.demo import Scale, cost, demo
from unmask.files import read_json
from unmask.log import say


@dataclass(frozen=True)
class Demo:
    """From nothing to a first result: train, measure, sample, report.

    A small MDM and its causal twin learn the built-in corpus; both are measured on held-out documents and write text.
    Under five minutes on two CPU cores; run again, it goes on from what is there: `unmask demo --out runs/demo`.
    """

    out: Path = Path("runs/demo")
    """Folder of its data, runs, results and report."""
    scale: Scale = field(default_factory=Scale)
    source: str = "builtin"
    """Text to learn: the built-in corpus, a text file or a folder of them."""
    dry_run: bool = False
    """Say what it would cost, and stop."""
    json: bool = False
    """Print records for machines."""

    def run(self) -> None:
        if self.dry_run:
            return cost(self.scale, rate_here("auto")).tell(json=self.json)
        page = demo(self.out, self.scale, self.source)
        if self.json:
            for row in read_json(page.with_name("result.json"))["rows"]:
                say({name: value for name, value in row.items() if name != "values"})
            say({"report": str(page)})
