"""What an audit found, as a table."""

from dataclasses import dataclass
from typing import Any

HEADER = ("world", "TV / limit", "p", "NFE / stated", "verdict")


@dataclass(frozen=True)
class Finding:
    """One line of an audit; None where nothing is stated or it does not apply."""

    world: str
    distance: float | None = None
    """Total variation between samples and law."""
    limit: float | None = None
    chance: float | None = None
    """The smallest p-value of the chi-square tests."""
    nfe: float | None = None
    """Rows that the network ran, a sequence."""
    stated: float | None = None
    """E[NFE] of the law."""
    faults: tuple[str, ...] = ()


@dataclass(frozen=True)
class Audit:
    """Findings on one decoder."""

    subject: str
    law: str
    findings: tuple[Finding, ...]

    @property
    def passed(self) -> bool:
        """Whether nothing was found."""
        return not any(finding.faults for finding in self.findings)

    def check(self) -> None:
        """Raises AssertionError, with the table, where the decoder does not follow its law: for a test of yours."""
        if not self.passed:
            raise AssertionError(f"\n{self}")

    def rows(self) -> list[dict[str, Any]]:
        """A record a finding."""
        return [
            {
                "policy": self.subject,
                "world": finding.world,
                "law": self.law,
                "total_variation": finding.distance,
                "limit": finding.limit,
                "p": finding.chance,
                "nfe": finding.nfe,
                "nfe_stated": finding.stated,
                "verdict": "; ".join(finding.faults) or "passed",
                "passed": not finding.faults,
            }
            for finding in self.findings
        ]

    def cells(self) -> list[tuple[str, ...]]:
        """(world, total variation / limit, p, NFE / stated, verdict) of each finding, as text."""
        return [
            (
                row["world"],
                _over(row["total_variation"], row["limit"], ".4f"),
                "" if row["p"] is None else f"{row['p']:.2g}",
                _over(row["nfe"], row["nfe_stated"], ".3f"),
                row["verdict"],
            )
            for row in self.rows()
        ]

    def __str__(self) -> str:
        rows = [HEADER, *self.cells()]
        width = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ("  ".join(cell.ljust(w) for cell, w in zip(row, width, strict=True)).rstrip() for row in rows)
        return "\n".join([f"{self.subject}: {self.law}", *lines])


def _over(value: float | None, stated: float | None, form: str) -> str:
    return " / ".join("–" if x is None else format(x, form) for x in (value, stated)) if value is not None else ""
