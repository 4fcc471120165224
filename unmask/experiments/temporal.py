"""SMDM: how much worse a model gets on text from after its training data, MDM against ARM."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from unmask.checkpoint import load
from unmask.data import documents, load_split
from unmask.evaluate.protocols import PACKED, Stream, cut, decoded
from unmask.experiments.averages import said
from unmask.experiments.running import Cell, Finding, Scale, Table
from unmask.experiments.setting import SETTINGS
from unmask.files import Row, atomic
from unmask.likelihood import log_likelihood
from unmask.objectives import AnyOrder, NextToken
from unmask.report.drawing import COLOURS

KINDS = {"MDM": AnyOrder(0.5), "ARM": NextToken()}
WITHIN = "trained period"
GROUPS = 250  # of documents: enough for an error of 5%, and a result file stays small


@dataclass(frozen=True)
class Temporal:
    """Train on text up to a date, measure on later years: an MDM and an ARM, in paired differences."""

    until: str = "1980-01-01"
    """Documents from this date on are never trained on."""
    period: int = 10
    """Years a period of the later documents."""
    seeds: int = 3
    """Runs of each kind, which differ by their seed."""

    def corpus(self, scale: Scale, source: str, out: Path) -> tuple[str, str]:
        """The earlier documents, written to a folder of their own; they keep their dates in their names."""
        earlier, folder = [each for each in documents(source) if (each.date or "") < self.until], out / "earlier"
        if any(each.date is None for each in earlier):
            raise ValueError(f"{source}: documents without a date: a temporal experiment needs every one")
        for each in earlier:
            with atomic(folder / f"{each.date} {Path(each.name).name}.txt", "w") as file:
                file.write(each.text)
        return str(folder), SETTINGS[scale].tokenizer

    def plan(self, scale: Scale, data: str, rows: Sequence[Row]) -> list[Cell]:
        seeds = range(1 if scale == "tiny" else self.seeds)
        return [
            Cell(
                f"{kind.lower()}-{seed}",
                SETTINGS[scale].config(data, objective, seed=seed),
                {"model": kind, "seed": seed},
            )
            for seed in seeds
            for kind, objective in KINDS.items()
        ]

    def run(self, scale: Scale, cell: Cell, folder: Path, source: str) -> list[Row]:
        """A row a period: nats and tokens of its documents, those of a long period dealt to GROUPS of them."""
        model, setting = load(folder), SETTINGS[scale]
        later = [each for each in documents(source) if each.date and each.date >= self.until]
        groups = {WITHIN: decoded(load_split(cell.config.data, "validation"), model.tokenizer)}
        for each in later:
            groups.setdefault(period_of(each.date or "", self.until, self.period), []).append(each.text)
        rows: list[Row] = []
        for name, texts in groups.items():
            texts = [text[:2000] for text in texts[:2]] if scale == "tiny" else texts
            stream = Stream.of(texts, model.tokenizer, texts, range(len(texts)))
            windows = cut(stream, PACKED, model.tokenizer, length=setting.length, causal=model.causal)
            estimate = log_likelihood(
                model, windows.x_0, windows.maskable, draws=8, documents=windows.documents, batch=64
            )
            group, count = windows.documents % GROUPS, min(GROUPS, len(texts))
            nats = np.bincount(group, estimate.per_sequence, count)
            tokens = np.bincount(group, windows.maskable.sum(-1), count)
            rows.append({
                "period": name,
                "nats": nats.round(3).tolist(),
                "tokens": tokens.astype(int).tolist(),
                "stderr_mc": estimate.stderr_mc,
                "bound": estimate.bound,
            })  # fmt: skip
        return rows

    def find(self, rows: Sequence[Row]) -> Finding:
        periods = list(dict.fromkeys(row["period"] for row in rows))
        table = []
        for name in periods:
            cells = [said(*rate_of(documents_of(rows, kind, name))) for kind in KINDS]
            table.append((name, *cells, said(*rate_of(difference(rows, name)))))
        after = np.concatenate([difference(rows, name) for name in periods if name != WITHIN], 1)
        (late, late_error), (early, early_error) = rate_of(after), rate_of(difference(rows, WITHIN))
        gained, error = late - early, math.hypot(late_error, early_error)
        held = "yes" if gained < -2 * error else "no" if gained > 2 * error else "not shown at this scale"
        return Finding(
            "Trained up to a date, an MDM's perplexity rises less on later text than an ARM's.",
            f"From the trained period to later years the MDM's loss rises by {said(gained, error)} nats a token more "
            "than the ARM's (negative: less; error over documents).",
            held,
            (
                Table(
                    "Nats a token ± standard error over documents; the MDM's is an upper bound",
                    ("period", *KINDS, "MDM − ARM, paired by document"),
                    tuple(table),
                ),
            ),
        )

    def figure(self, rows: Sequence[Row]) -> Figure:
        figure = Figure(figsize=(7, 3.4), layout="constrained")
        axes, periods = figure.subplots(), list(dict.fromkeys(row["period"] for row in rows))
        for i, kind in enumerate(KINDS):
            values = [rate_of(documents_of(rows, kind, name)) for name in periods]
            axes.errorbar(
                range(len(periods)), [v for v, _ in values], [e for _, e in values],
                label=kind, marker="os"[i], color=COLOURS[i], capsize=2,
            )  # fmt: skip
        axes.set_xticks(range(len(periods)), periods, rotation=20)
        axes.set(xlabel="when the text is from", ylabel="loss (nats a token)")
        axes.legend()
        return figure


def period_of(date: str, until: str, years: int) -> str:
    """The period that a date lies in, counted from `until` on, e.g. "1990-1999"."""
    start = int(until[:4])
    first = start + (int(date[:4]) - start) // years * years
    return str(first) if years == 1 else f"{first}–{first + years - 1}"


def documents_of(rows: Sequence[Row], kind: str, period: str) -> np.ndarray:
    """[2, documents]: nats, a mean over seeds, and tokens."""
    chosen = [row for row in rows if (row["model"], row["period"]) == (kind, period)]
    return np.array([np.mean([row["nats"] for row in chosen], 0), chosen[0]["tokens"]])


def difference(rows: Sequence[Row], period: str) -> np.ndarray:
    """[2, documents]: nats of the MDM less those of the ARM, and tokens."""
    mdm, arm = (documents_of(rows, kind, period) for kind in KINDS)
    return np.array([mdm[0] - arm[0], mdm[1]])


def rate_of(values: np.ndarray) -> tuple[float, float]:
    """(nats a token, its standard error over documents as a ratio's)."""
    nats, tokens = values
    rate, n = nats.sum() / tokens.sum(), len(nats)
    if n < 2:
        return float(rate), math.nan
    return float(rate), float(math.sqrt(((nats - rate * tokens) ** 2).sum() * n / (n - 1)) / tokens.sum())
