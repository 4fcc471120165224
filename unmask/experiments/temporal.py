"""SMDM: how much worse a model gets on text from after its training data, MDM against ARM.

Of two models the worse one has less to lose on later text. So the ARM is trained again with half the steps, a quarter,
and so on, down to one that is no better than the MDM on the period they learnt from.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
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
MATCHED = "ARM, fewer steps"
WITHIN = "trained period"
MOST: dict[Scale, int] = {"tiny": 2, "laptop": 64, "gpu": 512}
"""Documents of each period, spread evenly over it."""
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
        """Both kinds; then ARMs of half the steps, as long as the shortest one is better than the MDM of its seed."""
        seeds = range(1 if scale == "tiny" else self.seeds)
        cells = [self._cell(scale, data, kind, seed, 1.0) for seed in seeds for kind in KINDS]
        for seed in seeds:
            share, arm, mdm = 1.0, within(rows, "ARM", seed, 1.0), within(rows, "MDM", seed, 1.0)
            while arm is not None and mdm is not None and arm < mdm and SETTINGS[scale].steps * share >= 2:
                share /= 2
                cells.append(self._cell(scale, data, "ARM", seed, share))
                arm = within(rows, "ARM", seed, share)
        return cells

    def _cell(self, scale: Scale, data: str, kind: str, seed: int, share: float) -> Cell:
        setting = replace(SETTINGS[scale], steps=round(SETTINGS[scale].steps * share))
        name = f"{kind.lower()}-{seed}" + (f"-{share:g}" if share < 1 else "")
        config = setting.config(data, KINDS[kind], seed=seed)
        return Cell(name, config, {"model": kind, "seed": seed, "share": share})

    def run(self, scale: Scale, cell: Cell, folder: Path, source: str) -> list[Row]:
        """A row a period: nats and tokens of its documents, those of a long period dealt to GROUPS of them."""
        model, setting = load(folder), SETTINGS[scale]
        later = [each for each in documents(source) if each.date and each.date >= self.until]
        groups = {WITHIN: decoded(load_split(cell.config.data, "validation"), model.tokenizer)}
        for each in later:
            groups.setdefault(period_of(each.date or "", self.until, self.period), []).append(each.text)
        rows: list[Row] = []
        for name, texts in groups.items():
            count = min(len(texts), MOST[scale])
            texts = [texts[i * len(texts) // count] for i in range(count)]
            texts = [text[:2000] for text in texts] if scale == "tiny" else texts
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
        periods, kinds = list(dict.fromkeys(row["period"] for row in rows)), compared(rows)
        table = []
        for name in periods:
            cells = [said(*rate_of(documents_of(rows, kind, name))) for kind in kinds]
            table.append((name, *cells, *(said(*rate_of(difference(rows, name, kind))) for kind in kinds[1:])))
        gains = {kind: more(rows, periods, kind) for kind in kinds[1:]}
        theirs = {"ARM": "the ARM's", MATCHED: "that of an ARM of fewer steps"}
        said_of = [f"{said(*gain)} nats a token more than {theirs[kind]}" for kind, gain in gains.items()]
        sure = [gain / error for gain, error in gains.values()]
        held = "yes" if max(sure) < -2 else "no" if min(sure) > 2 else "not shown at this scale"
        alone = (
            ""
            if held == "yes" or sure[0] > -2
            else " An ARM that is no better than the MDM to begin with loses no more than it."
        )
        return Finding(
            "Trained up to a date, an MDM's perplexity rises less on later text than an ARM's.",
            f"From the trained period to later years the MDM's loss rises by {', and by '.join(said_of)} (negative: "
            f"less; errors over documents).{alone}",
            held,
            (
                Table(
                    "Nats a token ± standard error over documents; the MDM's is an upper bound. " + steps_told(rows),
                    ("period", *kinds, *(f"MDM − {kind}, paired by document" for kind in kinds[1:])),
                    tuple(table),
                ),
            ),
        )

    def figure(self, rows: Sequence[Row]) -> Figure:
        figure = Figure(figsize=(7, 3.4), layout="constrained")
        axes, periods = figure.subplots(), list(dict.fromkeys(row["period"] for row in rows))
        for i, kind in enumerate(compared(rows)):
            values = [rate_of(documents_of(rows, kind, name)) for name in periods]
            axes.errorbar(
                range(len(periods)), [v for v, _ in values], [e for _, e in values],
                label=kind, marker="os^"[i], color=COLOURS[i], capsize=2,
            )  # fmt: skip
        axes.set_xticks(range(len(periods)), periods, rotation=20, ha="right")
        axes.set(xlabel="when the text is from", ylabel="loss (nats a token)")
        axes.legend()
        return figure


def period_of(date: str, until: str, years: int) -> str:
    """The period that a date lies in, counted from `until` on, e.g. "1990-1999"."""
    start = int(until[:4])
    first = start + (int(date[:4]) - start) // years * years
    return str(first) if years == 1 else f"{first}–{first + years - 1}"


def within(rows: Sequence[Row], model: str, seed: int, share: float) -> float | None:
    """Nats a token on the trained period of one run; None where it is not measured."""
    for row in rows:
        if (row["model"], row["seed"], row["share"], row["period"]) == (model, seed, share, WITHIN):
            return sum(row["nats"]) / sum(row["tokens"])
    return None


def matched(rows: Sequence[Row]) -> dict[int, float]:
    """Of each seed whose ARM was trained with fewer steps, the share of steps whose loss is next to the MDM's."""
    shares = {(row["seed"], row["share"]) for row in rows if row["share"] < 1}

    def off(seed: int, share: float) -> float:
        return abs((within(rows, "ARM", seed, share) or 0) - (within(rows, "MDM", seed, 1.0) or 0))

    return {seed: min((s for k, s in shares if k == seed), key=lambda s: off(seed, s)) for seed, _ in sorted(shares)}


def compared(rows: Sequence[Row]) -> list[str]:
    return [*KINDS, *([MATCHED] if matched(rows) else [])]


def steps_told(rows: Sequence[Row]) -> str:
    shares = sorted(set(matched(rows).values()))
    return f"{MATCHED}: {' or '.join(f'{share:.3g}' for share in shares)} of them." if shares else ""


def documents_of(rows: Sequence[Row], kind: str, period: str) -> np.ndarray:
    """[2, documents]: nats, a mean over seeds, and tokens."""
    shares = matched(rows) if kind == MATCHED else {}
    model = "ARM" if kind == MATCHED else kind
    chosen = [
        row
        for row in rows
        if (row["model"], row["period"], row["share"]) == (model, period, shares.get(row["seed"], 1.0))
    ]
    return np.array([np.mean([row["nats"] for row in chosen], 0), chosen[0]["tokens"]])


def difference(rows: Sequence[Row], period: str, kind: str) -> np.ndarray:
    """[2, documents]: nats of the MDM less those of an ARM, and tokens."""
    mdm, arm = (documents_of(rows, each, period) for each in ("MDM", kind))
    return np.array([mdm[0] - arm[0], mdm[1]])


def more(rows: Sequence[Row], periods: Sequence[str], kind: str) -> tuple[float, float]:
    """Nats a token by which the MDM's loss rises more than an ARM's from the trained period to all later ones."""
    after = np.concatenate([difference(rows, name, kind) for name in periods if name != WITHIN], 1)
    (late, late_error), (early, early_error) = rate_of(after), rate_of(difference(rows, WITHIN, kind))
    return late - early, math.hypot(late_error, early_error)


def rate_of(values: np.ndarray) -> tuple[float, float]:
    """(nats a token, its standard error over documents as a ratio's)."""
    nats, tokens = values
    rate, n = nats.sum() / tokens.sum(), len(nats)
    if n < 2:
        return float(rate), math.nan
    return float(rate), float(math.sqrt(((nats - rate * tokens) ** 2).sum() * n / (n - 1)) / tokens.sum())
