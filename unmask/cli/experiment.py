"""`unmask experiment`: a claim of the papers, rerun."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from unmask.experiments import Experiment as Claim
from unmask.experiments import Scale, experiment, name_of
from unmask.files import read_json
from unmask.log import say


@dataclass(frozen=True)
class Experiment:
    """Rerun a claim of the papers: train what it needs, measure, and say whether it held.

    `unmask experiment losses --scale laptop`. Run again, it goes on from where it stopped; run in several processes
    that share the folder, each takes the next run that nobody owns.
    """

    claim: Annotated[Claim, tyro.conf.OmitSubcommandPrefixes, tyro.conf.OmitArgPrefixes]
    scale: Scale = "laptop"
    """tiny: seconds, to see that it runs; laptop: an hour or a few on two cores; gpu: half an hour on a large one."""
    out: Path | None = None
    """Folder of its runs (default runs/experiments/NAME-SCALE)."""
    source: str = "builtin"
    """What to train on: the built-in corpus or any source of `unmask prepare`; a file of prompts and answers for claims
    that ask questions."""
    dry_run: bool = False
    """Say which runs it takes and what training them costs, and stop; where no run is there yet, what is prepared to
    know that is not kept."""
    json: bool = False
    """Print records for machines."""

    def run(self) -> None:
        os.environ.pop("WORLD_SIZE", None)  # each process of a job works on runs of its own
        out = self.out or Path("runs/experiments") / f"{name_of(self.claim)}-{self.scale}"
        result = experiment(self.claim, self.scale, out, source=self.source, dry_run=self.dry_run, json=self.json)
        if result is not None and self.json:
            finding = self.claim.find(read_json(result)["rows"])
            told = {"claim": finding.claim, "measured": finding.measured, "held": finding.held}
            say({"experiment": name_of(self.claim), "scale": self.scale, **told, "result": str(result)})
