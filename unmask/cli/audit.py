"""`unmask audit`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated

import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from unmask.audit import EVERY, HEADER, audit, stated_law
from unmask.audit.checking import WIDE, worlds_for
from unmask.cli.policies import Chosen
from unmask.files import Row
from unmask.log import progress, say
from unmask.rehearsal import Count, rehearsed
from unmask.sampling import Draw, Policy


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
    dry_run: bool = False
    """Say what it would cost, judged by its first seconds, and stop."""
    json: bool = False
    """Print records for machines."""

    def run(self) -> None:
        policies = EVERY if isinstance(self.policy, All) else (self.policy,)
        how: Row = {"draw": self.draw, "draws": self.draws, "seed": self.seed}
        if self.dry_run:
            return rehearsed(lambda counted, told: _every(policies, how, counted, told)).tell(json=self.json)
        passed = True
        for policy in policies:
            with progress(f"audit of {policy}", "findings") as bar:
                result = audit(policy, progress=bar, **how)
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


def _every(policies: Sequence[Policy], how: Row, counted: Count, told: Callable[[int, int], None]) -> None:
    for before, policy in enumerate(policies):
        worlds = {name: counted(world) for name, world in worlds_for(stated_law(policy)).items()}

        def one(done: int, of: int, before: int = before) -> None:
            told(before * of + done, len(policies) * of)

        audit(policy, worlds=worlds, wide=counted(WIDE), progress=one, **how)
