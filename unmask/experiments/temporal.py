"""SMDM: how much worse a model gets on text from after its training data, MDM against ARM.

Of two models the worse one has less to lose on later text. So the ARM is trained again with half the steps, a quarter,
and so on, down to one that is no better than the MDM on the period they learnt from; between the last two lies, by
linear interpolation of each document's loss, an ARM that is just as good.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from unmask.checkpoint import load
from unmask.data import documents, load_split, prepare
from unmask.evaluate.protocols import PACKED, Stream, cut, decoded
from unmask.experiments.averages import Contrast, contrast, rates
from unmask.experiments.running import Cell, Finding, Scale, Table, at_least_one
from unmask.experiments.setting import KINDS, SETTINGS
from unmask.files import Row, atomic
from unmask.likelihood import log_likelihood
from unmask.log import Report
from unmask.report.drawing import COLOURS

MATCHED = "ARM, as good"
WITHIN = "trained period"
MOST: dict[Scale, int] = {"tiny": 2, "laptop": 64, "gpu": 512}
"""Documents of each period, spread evenly over it."""
HELD_OUT, LARGEST = 32, 0.3  # documents of the trained period held out, where that is not more than such a share
DATE = re.compile(r"\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])")
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

    def __post_init__(self) -> None:
        at_least_one(self, "period", "seeds")
        if not DATE.fullmatch(self.until):
            raise ValueError(f"until {self.until} is no date: give one such as 1980-01-01")

    def corpus(self, scale: Scale, source: str, out: Path) -> Path:
        """The earlier documents, in a folder of their own, prepared; they keep their dates in their names."""
        every, folder = list(documents(source)), out / "earlier"
        if undated := [each.name for each in every if each.date is None]:
            what = f"{len(undated)} of {len(every)} documents have no date YYYY-MM-DD, the first is {undated[0]}"
            raise ValueError(f"{source}: {what}: a temporal experiment needs every one")
        earlier = [each for each in every if (each.date or "") < self.until]
        if len(earlier) in (0, len(every)):
            first, last = (each(document.date or "" for document in every) for each in (min, max))
            raise ValueError(f"until {self.until}: {source} is of {first} to {last}: name a date between them")
        plain, often = [f"{each.date} {Path(each.name).name}" for each in earlier], Counter[str]()
        names = []
        for name in plain:  # which several files may have
            often[name] += 1
            names.append(f"{name} {often[name]}.txt" if often[name] > 1 else f"{name}.txt")
        for name, each in zip(names, earlier, strict=True):
            with atomic(folder / name, "w") as file:
                file.write(each.text)
        for stale in {path.name for path in folder.glob("*")} - set(names):  # of another date
            (folder / stale).unlink()
        share = min(LARGEST, max(0.05, HELD_OUT / max(1, len(earlier))))
        return prepare(str(folder), out / "data", tokenizer=SETTINGS[scale].tokenizer, validation=share)

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

    def run(self, scale: Scale, cell: Cell, folder: Path, source: str, told: Report) -> list[Row]:
        """A row a period: nats and tokens of its documents, those of a long period dealt to GROUPS of them."""
        model, setting = load(folder), SETTINGS[scale]
        later = [(each.date, each.text) for each in documents(source) if each.date and each.date >= self.until]
        groups = {WITHIN: decoded(load_split(cell.config.data, "validation"), model.tokenizer)}
        for date, text in sorted(later, key=itemgetter(0)):
            groups.setdefault(period_of(date, self.until, self.period), []).append(text)
        rows: list[Row] = []
        for name, texts in groups.items():
            count = min(len(texts), MOST[scale])
            texts = [texts[i * len(texts) // count] for i in range(count)]
            texts = [text[:2000] for text in texts] if scale == "tiny" else texts
            stream = Stream.of(texts, model.tokenizer, texts, range(len(texts)))
            windows = cut(stream, PACKED, model.tokenizer, length=setting.length, causal=model.causal)
            estimate = log_likelihood(
                model, windows.x_0, windows.maskable, draws=8, documents=windows.documents, batch=64, progress=told
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
            cells = [str(contrast(rates(*documents_of(rows, kind, name)))) for kind in kinds]
            gaps = [str(contrast(rates(*difference(rows, name, kind)))) for kind in kinds[1:]]
            table.append((name, *cells, *gaps))
        gains = {kind: more(rows, periods, kind) for kind in kinds[1:]}
        theirs = {"ARM": "the ARM's", MATCHED: "that of an ARM that is as good on the trained period"}
        said_of = [f"{gain} nats a token more than {theirs[kind]}" for kind, gain in gains.items()]
        signs = [gain.sign(len(gains)) for gain in gains.values()]
        held = "yes" if max(signs) < 0 else "no" if min(signs) > 0 else "not shown at this scale"
        fair = ""
        if MATCHED in gains and signs[0] < 0 <= signs[1]:
            fair = " Beside an ARM that is as good to begin with " + (
                "it rises more." if signs[1] else "no difference is sure."
            )
        return Finding(
            "Trained up to a date, an MDM's perplexity rises less on later text than an ARM's.",
            f"From the trained period to later years the MDM's loss rises by {', and by '.join(said_of)} (negative: "
            f"less; errors over documents and seeds).{fair}",
            held,
            (
                Table(
                    "Nats a token ± standard error over documents and seeds; the MDM's is an upper bound. "
                    + steps_told(rows),
                    ("period", *kinds, *(f"MDM − {kind}, paired by document" for kind in kinds[1:])),
                    tuple(table),
                ),
            ),
        )

    def figure(self, rows: Sequence[Row]) -> Figure:
        figure = Figure(figsize=(7, 3.4), layout="constrained")
        axes, periods = figure.subplots(), list(dict.fromkeys(row["period"] for row in rows))
        for i, kind in enumerate(compared(rows)):
            values = [contrast(rates(*documents_of(rows, kind, name))) for name in periods]
            axes.errorbar(
                range(len(periods)), [each.value for each in values], [each.error for each in values],
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


def matched(rows: Sequence[Row]) -> dict[int, tuple[float, float, float]]:
    """Of each seed with ARMs on both sides of the MDM's loss on the trained period: the larger share of steps, the
    smaller one, and how far towards it an ARM as good as the MDM lies.
    """
    found = {}
    for seed in sorted({row["seed"] for row in rows}):
        mdm = within(rows, "MDM", seed, 1.0)
        shares = sorted({row["share"] for row in rows if (row["model"], row["seed"]) == ("ARM", seed)}, reverse=True)
        losses = [within(rows, "ARM", seed, share) for share in shares]
        for more_steps, fewer, low, high in zip(shares, shares[1:], losses, losses[1:], strict=False):
            if mdm is not None and low is not None and high is not None and low < mdm <= high:
                found[seed] = more_steps, fewer, (mdm - low) / (high - low)
                break
    return found


def compared(rows: Sequence[Row]) -> list[str]:
    return [*KINDS, *([MATCHED] if matched(rows) else [])]


def steps_told(rows: Sequence[Row]) -> str:
    between = sorted({(fewer, share) for share, fewer, _ in matched(rows).values()})
    told = " or ".join(f"{fewer:.3g} and {share:.3g}" for fewer, share in between)
    return f"{MATCHED}: interpolated between those of {told} of the steps." if told else ""


def documents_of(rows: Sequence[Row], kind: str, period: str) -> tuple[np.ndarray, np.ndarray]:
    """(nats [seeds, documents], tokens [documents]); of the ARM as good, those seeds that have one."""
    here = {(row["model"], row["seed"], row["share"]): row for row in rows if row["period"] == period}

    def nats(model: str, seed: int, share: float) -> np.ndarray:
        return np.array(here[model, seed, share]["nats"])

    if kind == MATCHED:
        between = matched(rows).items()
        found = [(1 - w) * nats("ARM", seed, s) + w * nats("ARM", seed, fewer) for seed, (s, fewer, w) in between]
    else:
        found = [nats(kind, seed, 1.0) for model, seed, share in sorted(here) if (model, share) == (kind, 1.0)]
    return np.array(found), np.array(next(iter(here.values()))["tokens"])


def difference(rows: Sequence[Row], period: str, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """(nats of the MDM less those of an ARM of its seed [seeds, documents], tokens [documents])."""
    other, tokens = documents_of(rows, kind, period)
    seeds = [row for row in rows if kind != MATCHED or row["seed"] in matched(rows)]
    return documents_of(seeds, "MDM", period)[0] - other, tokens


def more(rows: Sequence[Row], periods: Sequence[str], kind: str) -> Contrast:
    """Nats a token by which the MDM's loss rises more than an ARM's from the trained period to all later ones."""
    parts = [difference(rows, name, kind) for name in periods if name != WITHIN]
    after = np.concatenate([nats for nats, _ in parts], 1), np.concatenate([tokens for _, tokens in parts])
    return contrast(rates(*after), -rates(*difference(rows, WITHIN, kind)))
