"""RADD: the four losses have one expectation, so they should train to one bound; their gradients differ in variance."""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from unmask.checkpoint import Model, load
from unmask.corruption import Cosine, Geometric, stratified
from unmask.data import Packed, batch_indices, load_split
from unmask.draws import keyed_generator
from unmask.evaluate import benchmark, perplexity, prepared
from unmask.experiments.averages import bounded, over_seeds
from unmask.experiments.running import Cell, Finding, Scale, Table, at_least_one
from unmask.experiments.setting import SETTINGS, Setting
from unmask.files import Row
from unmask.log import Report, console
from unmask.objectives import AnyOrder, Denoising, LambdaDCE, NextToken, TimeDCE, TimeDSE
from unmask.report.drawing import COLOURS
from unmask.train import TrainConfig

OBJECTIVES = {
    "t-DSE": TimeDSE(power=1.0),
    "t-DCE": TimeDCE(power=1.0),
    "λ-DCE": LambdaDCE(power=1.0),
    "k-DCE": AnyOrder(),
}
"""As published: the share that is masked is uniform in all four. Where it is not they learn at another pace, and then
one loss differs more from itself than from the others."""
VARIANTS = {
    "t-DSE, cosine": TimeDSE(Cosine()),
    "t-DCE, geometric": TimeDCE(Geometric()),
    "λ-DCE, uniform level": LambdaDCE(power=1.0),
    "λ-DCE, level u²": LambdaDCE(),
    "k-DCE, uniform": AnyOrder(),
    "k-DCE, k^-0.5": AnyOrder(0.5),
    "k-DCE, k^-1": AnyOrder(1.0),
}
MARGIN = 0.06
"""Nats a token: bounds that surely differ by less are the same (RADD's differ by up to 0.026 to 0.056 on a corpus)."""
CORPORA = ("lambada", "wikitext2", "ptb", "wikitext103", "lm1b")


@dataclass(frozen=True)
class Losses:
    """Four objectives, one bound: t-DSE, t-DCE, λ-DCE and k-DCE trained alike, beside an ARM."""

    seeds: int = 3
    """Runs of each kind, which differ by their seed."""
    local: Path | None = None
    """Folder of benchmark files, for zero-shot perplexity; without it the validation text alone."""

    def __post_init__(self) -> None:
        at_least_one(self, "seeds")

    def corpus(self, scale: Scale, source: str, out: Path) -> tuple[str, str]:
        return source, SETTINGS[scale].tokenizer

    def plan(self, scale: Scale, data: str, rows: Sequence[Row]) -> list[Cell]:
        """On the log-linear schedule the first three are one computation: each run has random numbers of its own."""
        setting, cells, objectives = SETTINGS[scale], [], {**OBJECTIVES, "ARM": NextToken()}
        for seed in range(self.seeds if scale != "tiny" else 2):
            for i, (name, objective) in enumerate(objectives.items()):
                config = setting.config(data, objective, seed=seed * len(objectives) + i)
                cells.append(
                    Cell(f"{name.replace('λ', 'lambda').lower()}-{seed}", config, {"objective": name, "seed": seed})
                )
        return cells

    def run(self, scale: Scale, cell: Cell, folder: Path, source: str, told: Report) -> list[Row]:
        setting, model = SETTINGS[scale], load(folder)
        held_out = prepared(Path(cell.config.data), model.tokenizer, length=setting.length, sequences=setting.sequences)
        rows = [bounded(perplexity(model, held_out, draws=32, progress=told))]
        for corpus in CORPORA if self.local else ():
            try:
                texts = benchmark(
                    model, corpus, "radd", local=self.local, length=setting.length, sequences=setting.sequences
                )
            except ValueError as error:
                console.print(f"no zero-shot perplexity: {error}", markup=False, soft_wrap=True)
                continue
            rows.append(bounded(perplexity(model, texts, draws=16, progress=told)))
        if cell.labels == {"objective": "k-DCE", "seed": 0}:
            rows += gradient_noise(model, cell.config, setting)
        return rows

    def find(self, rows: Sequence[Row]) -> Finding:
        here = [row for row in rows if row["kind"] == "bound" and row["split"] == "validation"]
        by = {
            name: np.array([row["nats_per_token"] for row in here if row["objective"] == name])
            for name in (*OBJECTIVES, "ARM")
        }
        gaps = {pair: over_seeds(by[pair[0]] - by[pair[1]]) for pair in itertools.combinations(OBJECTIVES, 2)}
        far, half = max(gaps, key=lambda pair: abs(gaps[pair].value)), tukey([by[name] for name in OBJECTIVES])
        most = abs(gaps[far].value)
        held = "yes" if most + half < MARGIN else "no" if most - half > MARGIN else "not shown at this scale"
        table = Table(
            "Held-out nats a token, mean over seeds ± standard error over seeds",
            ("objective", "nats a token", "less k-DCE's"),
            tuple(
                (name, str(over_seeds(values)), str(over_seeds(values - by["k-DCE"])) if name != "k-DCE" else "")
                for name, values in by.items()
            ),
        )
        noises = [row for row in rows if row["kind"] == "gradient"]
        noise = Table(
            "Noise of one gradient from its maskings alone: trace of its covariance over its squared mean",
            ("objective", "levels", "noise"),
            tuple((row["variant"], row["levels"], f"{row['noise']:.2f}") for row in noises),
        )
        low, high = (each(noises, key=lambda row: row["noise"]) for each in (min, max))
        zero = [row for row in rows if row["kind"] == "bound" and row["split"] != "validation"]
        names = list(dict.fromkeys(row["corpus"] for row in zero))
        cells = {key: [] for key in itertools.product(by, names)}
        for row in zero:
            cells[row["objective"], row["corpus"]].append(row["perplexity"])
        shot = Table(
            "Zero-shot perplexity (protocol radd, blocks of the model's length), mean over seeds",
            ("objective", *names),
            tuple((name, *(mean_of(cells[name, each], len(by[name])) for each in names)) for name in by),
        )
        return Finding(
            f"The four losses have one expectation: trained alike they reach the same bound (to {MARGIN} nats).",
            f"Of the {len(gaps)} differences between the four objectives' held-out bounds that of {far[0]} and "
            f"{far[1]} is the largest, {gaps[far].value:.4f} nats a token (± {half:.4f}: Tukey's interval of 95% for "
            f"all {len(gaps)}, from {len(by['k-DCE'])} runs of each). Their gradients are not equally noisy: "
            f"{low['noise']:.1f} ({low['variant']}, {low['levels']} levels) to {high['noise']:.1f} "
            f"({high['variant']}, {high['levels']} levels).",
            held,
            (table, noise, *([shot] if names else [])),
        )

    def figure(self, rows: Sequence[Row]) -> Figure:
        figure = Figure(figsize=(9, 3.4), layout="constrained")
        left, right = figure.subplots(1, 2)
        here = [row for row in rows if row["kind"] == "bound" and row["split"] == "validation"]
        names = list(dict.fromkeys(row["objective"] for row in here))
        for i, name in enumerate(names):
            values = [(row["nats_per_token"], row["stderr_mc_per_token"]) for row in here if row["objective"] == name]
            spread = [i + 0.12 * (j - (len(values) - 1) / 2) for j in range(len(values))]
            left.errorbar(
                spread, [v for v, _ in values], [e for _, e in values], fmt="o", color=COLOURS[i % 6], capsize=2
            )
        left.set_xticks(range(len(names)), names, rotation=20, ha="right")
        left.set_ylabel("held-out loss (nats a token)")
        noise = [row for row in rows if row["kind"] == "gradient"]
        right.barh(
            [f"{row['variant']}, {row['levels']}" for row in noise], [row["noise"] for row in noise], color=COLOURS[0]
        )
        right.set_xlabel("variance of the gradient / squared mean")
        right.invert_yaxis()
        return figure


def mean_of(values: Sequence[float], seeds: int) -> str:
    """The mean over the seeds that have a value, and how many these are where they are not all."""
    told = str(over_seeds(values)) if values else "–"
    return told if len(values) in (0, seeds) else f"{told} ({len(values)} of {seeds} seeds)"


def tukey(samples: Sequence[Float[np.ndarray, "runs"]]) -> float:
    """Half of the interval that holds the difference of each two means in 95 of 100 cases, of all at once: Tukey's, for
    independent runs of one spread; infinite where a sample is a single run.
    """
    runs, kinds = len(samples[0]), len(samples)
    if runs < 2:
        return math.inf
    pooled = float(np.mean([sample.var(ddof=1) for sample in samples]))
    return _range(kinds, kinds * (runs - 1)) * math.sqrt(pooled / runs)


@cache
def _range(kinds: int, freedom: int) -> float:
    """The studentized range of so many means that is not exceeded in 95 of 100 cases."""
    from scipy.stats import studentized_range  # which takes two seconds

    return float(studentized_range.ppf(0.95, kinds, freedom))


def gradient_noise(model: Model, config: TrainConfig, setting: Setting) -> list[Row]:
    """Of each objective, on one batch of the validation text: variance of the gradient over maskings, over its
    squared mean; with levels independent and stratified over the batch.
    """
    network = model.network
    blocks = Packed(load_split(config.data, "validation"), config.length, model.tokenizer.begin)
    x_0, maskable, _ = blocks.take(batch_indices(len(blocks), min(16, len(blocks)), seed=0, step=0))
    network.requires_grad_(True)
    rows = []
    for variant, objective in VARIANTS.items():
        for levels in ("independent", "stratified"):

            def gradient(repeat: int, objective: Denoising = objective, levels: str = levels) -> Tensor:
                generator = keyed_generator(0, repeat)
                u = torch.rand(len(x_0), generator=generator, dtype=torch.float64)
                u = stratified(len(x_0), u[0]) if levels == "stratified" else u
                network.zero_grad(set_to_none=True)
                nats = objective(network, x_0, maskable, u, generator)  # pyrefly: ignore
                (nats.sum() / maskable.sum()).backward()
                return torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])

            rows.append({
                "kind": "gradient",
                "variant": variant,
                "levels": levels,
                "noise": noise(gradient, setting.gradients),
                "repeats": setting.gradients,
            })  # fmt: skip
    return rows


def noise(draw: Callable[[int], Tensor], repeats: int) -> float:
    """Tr Cov(g) / |E g|^2 of a random gradient, from independent draws; the square of the mean is corrected for the
    noise in it.
    """
    mean, second = torch.zeros_like(draw(0), dtype=torch.float64), 0.0
    for repeat in range(repeats):
        each = draw(repeat).double()
        mean += each / repeats
        second += float(each.square().sum()) / repeats
    trace = (second - float(mean.square().sum())) * repeats / (repeats - 1)
    return trace / max(float(mean.square().sum()) - trace / repeats, 1e-300)
