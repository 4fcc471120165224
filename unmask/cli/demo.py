"""`unmask demo`."""

from dataclasses import dataclass, field
from pathlib import Path

from unmask.demo import Scale, demo


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

    def run(self) -> None:
        demo(self.out, self.scale, self.source)
