"""Estimators of the random-order bound on a trained model: variance per network evaluation, against those of RADD's and
SMDM's evaluations.

    python benchmarks/estimators.py --checkpoint runs/mdm --data data/corpus --length 1024

Variance is that of the estimate of nats/token of one text by `--draws` evaluations, times the draws, averaged over the
texts: two estimators reach one standard error with evaluations in that ratio. Where masks are independent the variance
is computed from the moments of the cost at each number of masked positions (`profile`), which are measured once; only
estimators that couple their masks are run over and over. +- is the standard error over texts.

The published evaluations draw a level from [1e-3, 1] (the clip, without which their variance has no limit) and mask
each position with that probability: SMDM's levels are independent, RADD's are one uniform, spaced 1/draws.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from scipy.stats import binom

import unmask
from unmask.corruption import antithetic
from unmask.data import Packed, batch_indices, load_split
from unmask.likelihood import Estimate, log_likelihood
from unmask.likelihood.design import deal
from unmask.objectives import AnyOrder, token_nats

CLIP = 1e-3
NODES = 4000  # of the midpoint rule over a level
LEVELS, SETS = 24, 24  # of a profile


class Texts:
    """Sequences of n tokens behind a begin token, and the cost of every token of any masking of them."""

    def __init__(self, model: unmask.Model, x_0: torch.Tensor, batch: int, seed: int) -> None:
        self.model, self.x_0, self.batch = model, x_0, batch
        self.n, self.generator = x_0.shape[1] - 1, torch.Generator().manual_seed(seed)

    def uniforms(self, *shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=self.generator, dtype=torch.float64)

    @torch.inference_mode()
    def costs(self, text: int, masked: torch.Tensor) -> torch.Tensor:
        """-log q at the masked positions of each row, 0 elsewhere."""
        nats = torch.zeros(masked.shape, dtype=torch.float64)
        for start in range(0, len(masked), self.batch):
            rows = torch.nn.functional.pad(masked[start : start + self.batch], (1, 0))
            tokens = self.x_0[text].expand(len(rows), -1)
            at, value = token_nats(self.model, tokens, rows, canvas=tokens.masked_fill(rows, self.model.mask_id))
            part = torch.zeros(rows.numel(), dtype=torch.float64)
            part[at] = value.cpu().double()
            nats[start : start + self.batch] = part.view(rows.shape)[:, 1:]
        return nats

    def profile(self, text: int) -> tuple[np.ndarray, np.ndarray]:
        """(mean, variance) over sets of k masked positions of their mean cost, for k = 1..n.

        Measured at LEVELS counts, equal steps of log k, and interpolated in log k: the mean as it is, the variance
        times k.
        """
        n = self.n
        grid = np.unique(np.geomspace(1, n, LEVELS).round().astype(int))
        maskable = torch.ones(SETS, n, dtype=torch.bool)
        mean, variance = [], []
        for k in grid:
            level = torch.full((SETS,), (k - 0.5) / n, dtype=torch.float64)
            masked = AnyOrder().corrupt(maskable, level, self.uniforms(SETS, n)).masked
            each = (self.costs(text, masked).sum(-1) / k).numpy()
            mean.append(each.mean())
            variance.append(each.var(ddof=1) * k)
        k = np.arange(1, n + 1)
        return np.interp(np.log(k), np.log(grid), mean), np.interp(np.log(k), np.log(grid), variance) / k


def law(n: int, importance: float) -> np.ndarray:
    p = np.arange(1, n + 1) ** -float(importance)
    return p / p.sum()


def counting(mean: np.ndarray, variance: np.ndarray, importance: float) -> tuple[np.ndarray, np.ndarray]:
    """(mean, variance) of a draw of k-DCE at each node of its level, in nats/token."""
    n = len(mean)
    p = law(n, importance)
    k = np.searchsorted(p.cumsum(), (np.arange(NODES) + 0.5) / NODES, side="right").clip(max=n - 1)
    return mean[k] / (n * p[k]), variance[k] / (n * p[k]) ** 2


def bernoulli(mean: np.ndarray, variance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same of lambda-DCE with lambda in [CLIP, 1]: given how many are masked, which are is uniform."""
    n = len(mean)
    k = np.arange(1, n + 1)
    level = CLIP + (1 - CLIP) * (np.arange(NODES) + 0.5) / NODES
    first, second = np.empty(NODES), np.empty(NODES)
    for i, each in enumerate(level):
        chance = binom.pmf(k, n, each)
        first[i] = (chance * k * mean).sum() / (n * each)
        second[i] = (chance * k**2 * (mean**2 + variance)).sum() / (n * each) ** 2
    return first, second - first**2


def independent_masks(draw: tuple[np.ndarray, np.ndarray], levels: str, draws: int) -> float:
    """Variance x draws of the mean of `draws` draws whose masks are independent and whose levels are coupled so."""
    mean, variance = draw
    if levels == "independent":
        return float(variance.mean() + mean.var())
    nodes = (np.arange(NODES) + 0.5) / NODES
    if levels == "one offset":  # the same u in every stratum
        strata = (np.arange(draws)[:, None] + nodes) / draws
        of_u = np.interp(strata, nodes, mean).mean(0)
        return float(variance.mean() + draws * of_u.var())
    u = torch.from_numpy(nodes)[:, None].expand(-1, draws // 2)  # antithetic: pairs are independent
    pairs = np.interp(antithetic(draws, u).numpy(), nodes, mean).reshape(NODES, -1, 2).mean(-1)
    return float(variance.mean() + draws * pairs.var(0).mean() / pairs.shape[1])


def complementary(texts: Texts, text: int, draws: int, repeats: int) -> torch.Tensor:
    """k-DCE, k uniform and stratified: a set and its complement, and all masked once: nats/token of each repeat."""
    n, pairs = texts.n, (draws - 1) // 2
    u = (torch.arange(pairs) + texts.uniforms(repeats, pairs)) / pairs
    k = 1 + (u * (n - 1)).long()
    rank = texts.uniforms(repeats, pairs, n).argsort(-1).argsort(-1)
    masked = rank < k[..., None]
    rows = torch.cat([masked.flatten(0, 1), ~masked.flatten(0, 1), torch.ones(1, n, dtype=torch.bool)])
    mean = texts.costs(text, rows).sum(-1) / rows.sum(-1)
    return (mean[-1] + (n - 1) * (mean[:-1].view(2, repeats, pairs).mean((0, 2)))) / n


def dealt(texts: Texts, text: int, draws: int, repeats: int, importance: float) -> torch.Tensor:
    """Antithetic levels and dealt positions, no control; nats/token of each repeat."""
    levels = antithetic(draws, texts.uniforms(repeats, (draws + 1) // 2)).sort(-1).values
    maskable = torch.ones(repeats, texts.n, dtype=torch.bool)
    parts = deal(AnyOrder(importance), maskable, levels, texts.uniforms(repeats, draws, texts.n))
    total = torch.stack([part.weight * texts.costs(text, part.masked).sum(-1) for part in parts])
    return total.mean(0) / texts.n


def arcs(texts: Texts, text: int, draws: int, repeats: int, importance: float) -> torch.Tensor:
    """Coupled orders: every set is the next k positions around one random order; nats/token of each repeat."""
    n, objective = texts.n, AnyOrder(importance)
    levels = antithetic(draws, texts.uniforms(repeats, (draws + 1) // 2)).sort(-1).values
    rank = texts.uniforms(repeats, n).argsort(-1).argsort(-1)
    start, total = torch.zeros(repeats, 1, dtype=torch.long), torch.zeros(repeats, dtype=torch.float64)
    for level in levels.unbind(1):
        masked, weight, _ = objective.corrupt(torch.ones_like(rank, dtype=torch.bool), level, (rank - start) % n / n)
        total += weight * texts.costs(text, masked).sum(-1)
        start = (start + masked.sum(-1, keepdim=True)) % n
    return total / draws / n


def controlled_name(importance: float, replicates: int) -> str:
    return f"k^-{importance}, antithetic k, dealt positions, control by {replicates} replicates"


def coupled(texts: Texts, count: int, draws: int, repeats: int) -> dict[str, list[torch.Tensor]]:
    """nats/token of each repeat of every text, by estimators that couple their masks."""
    found: dict[str, list[torch.Tensor]] = {}
    for text in range(count):
        found.setdefault("k-DCE, k stratified, complementary pairs", []).append(
            complementary(texts, text, draws, repeats)
        )
        name = "k^-0.5, antithetic k, sets from around one order"
        found.setdefault(name, []).append(arcs(texts, text, draws, repeats, 0.5))
        found.setdefault("k^-0.5, antithetic k, dealt positions", []).append(dealt(texts, text, draws, repeats, 0.5))
        for importance, replicates in ((0.3, 2), (0.5, 2), (0.7, 2), (0.5, 4)):
            x_0 = texts.x_0[text].repeat(repeats, 1)
            maskable = (torch.arange(texts.n + 1) > 0).expand(x_0.shape)
            options = {"draws": draws, "replicates": replicates, "batch": texts.batch, "seed": text}
            estimate = log_likelihood(texts.model, x_0, maskable, estimator=AnyOrder(importance), **options)
            found.setdefault(controlled_name(importance, replicates), []).append(estimate.per_sequence / texts.n)
        print(f"  text {text + 1}/{count}", flush=True)
    return found


def table(texts: Texts, count: int, draws: int, repeats: int) -> None:
    """Print a row an estimator: variance x draws, and the ratios to the published two."""
    profiles = [texts.profile(text) for text in range(count)]
    truth = np.array([mean.mean() for mean, _ in profiles])
    rows: dict[str, np.ndarray] = {}

    for name, levels, importance in (
        ("SMDM: independent t, clipped at 1e-3", "independent", None),
        ("RADD: lambda-DCE, stratified, clipped at 1e-3", "one offset", None),
        ("k-DCE, independent k", "independent", 0.0),
        ("k-DCE, k stratified by one offset", "one offset", 0.0),
        ("k^-0.5, k stratified by one offset", "one offset", 0.5),
        ("k^-0.5, antithetic k", "antithetic", 0.5),
    ):
        moments = [bernoulli(*each) if importance is None else counting(*each, importance) for each in profiles]
        rows[name] = np.array([independent_masks(each, levels, draws) for each in moments])
    for name, values in coupled(texts, count, draws, repeats).items():
        rows[name] = np.array([float(each.var()) * draws for each in values])
        bias = np.array([float(each.mean()) for each in values]) - truth
        print(f"  {name}: mean {bias.mean():+.4f} off the profile's", flush=True)
    smdm, radd = list(rows.values())[:2]
    print("| estimator | variance x evaluations | against SMDM's | against RADD's |\n| --- | --- | --- | --- |")
    for name, each in rows.items():
        spread = each.std(ddof=1) / len(each) ** 0.5
        ratio = f"{smdm.mean() / each.mean():.1f}x | {radd.mean() / each.mean():.1f}x"
        print(f"| {name} | {each.mean():.4f} +- {spread:.4f} | {ratio} |", flush=True)
    best = rows[controlled_name(0.5, 2)]
    gain = 1 - np.sqrt(best).mean() ** 2 / best.mean()
    print(f"draws in proportion to each text's own standard deviation would save at most {gain:.0%} (noise included)")


def coverage(texts: Texts, count: int, groups: int, draws: int) -> None:
    """How often the 95% interval of the total of the texts holds the mean of all groups of the same maskings."""
    n, x_0 = texts.n, texts.x_0[:count].repeat(groups, 1)
    maskable = torch.ones_like(x_0, dtype=torch.bool)
    maskable[:, 0] = False
    for replicates in (2, 4):
        estimate = log_likelihood(
            texts.model, x_0, maskable, draws=draws, replicates=replicates, batch=texts.batch, seed=replicates
        )
        truth, held = estimate.nats / groups, 0
        for each in estimate.replicates.split(count):
            low, high = Estimate.of(each, maskable[:count], estimator="", precision="").interval()
            held += low <= truth <= high
        print(
            f"95% interval, {count} texts, {draws} draws in {replicates} replicates: holds in {held / groups:.1%} "
            f"of {groups}; {truth / count / n:.4f} +- {estimate.stderr_mc / groups / count / n:.4f} nats/token"
        )


def main() -> None:
    """Print the table, and coverage where it is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--sequences", type=int, default=8)
    parser.add_argument("--draws", type=int, nargs="+", default=[16, 32])
    parser.add_argument("--repeats", type=int, default=32)
    parser.add_argument("--coverage", type=int, default=0)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    start, model = time.perf_counter(), unmask.load(options.checkpoint)
    blocks = Packed(load_split(options.data, "validation"), options.length, model.tokenizer.begin)
    chosen = batch_indices(len(blocks) - 1, options.sequences, seed=options.seed, step=0)  # the last one is not full
    texts = Texts(model, blocks.take(chosen)[0], options.batch, options.seed)
    print(f"{options.checkpoint.name}, L = {options.length}, {options.sequences} texts, {options.repeats} repeats")
    for draws in options.draws:
        print(f"\n{draws} draws")
        table(texts, options.sequences, draws, options.repeats)
    if options.coverage:
        coverage(texts, min(4, options.sequences), options.coverage, 16)
    print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
