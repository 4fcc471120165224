"""`unmask audit`."""

from dataclasses import dataclass, field
from typing import Annotated

import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from unmask.audit import EVERY, HEADER, audit
from unmask.cli.policies import Chosen
from unmask.log import say
from unmask.sampling import Draw


@dataclass(frozen=True)
class All:
    """Each kind of policy."""


@dataclass(frozen=True)
class Audit:
    """Does a sampler follow the law that it states?

    Samples against the exact law, on small networks whose every probability is known: `unmask audit confidence
    --tokens 2`.

    Exit code 1 if one does not. For a sampler of your own, see `unmask.audit.audit`.
    """

    policy: Annotated[Chosen | All, tyro.conf.OmitSubcommandPrefixes] = All()
    draw: Annotated[Draw, tyro.conf.OmitArgPrefixes] = field(default_factory=Draw)
    draws: int = 10_000
    """Sequences on each canvas."""
    seed: int = 0
    """What is random is keyed by it: the same seed gives the same result."""
    json: bool = False
    """Print records for machines."""

    def run(self) -> None:
        passed = True
        for policy in EVERY if isinstance(self.policy, All) else (self.policy,):
            result = audit(policy, draw=self.draw, draws=self.draws, seed=self.seed)
            passed &= result.passed
            if self.json:
                for row in result.rows():
                    say(row)
                continue
            table = Table(*HEADER, title=escape(f"{result.subject}: {result.law}"), title_justify="left")
            for finding, cells in zip(result.findings, result.cells(), strict=True):
                table.add_row(*map(escape, cells), style="bold red" if finding.faults else None)
            Console().print(table)
        if not passed:
            raise SystemExit(1)
