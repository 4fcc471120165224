"""What learns more per FLOP: variants of the training recipe against the plain one, at equal true FLOPs.

    python benchmarks/learning.py --data data/books --out runs/learning [--variants muon tied] [--seeds 1 2 3]

Every run spends the same true FLOPs (3 x the forward pass, the output layer where it runs, and Muon's iterations), so
that what makes a step cheaper buys steps. Runs of one seed share their texts' order and, where the shapes allow, their
initial weights, and all are measured on the same held-out texts under the same maskings: gains are paired by seed.
The learning rate of each optimiser is chosen on seed 0 (`--sweep`), which the comparison leaves out. A run is one
JSON file in `--out`; what is there is not run again.
"""

import argparse
import dataclasses
import json
import math
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from scipy.stats import t as student

from unmask.corruption import stratified
from unmask.data import Packed, Tokenizer, batch_indices, load_split
from unmask.draws import keyed_generator
from unmask.files import write_json
from unmask.likelihood import log_likelihood
from unmask.objectives import AnyOrder, weighted
from unmask.train import Optimiser
from unmask.train.optimiser import muon_flops, optimisers
from unmask.train.precision import autocast, best_precision
from unmask.transformer import Transformer, TransformerConfig


@dataclass(frozen=True)
class Variant:
    """One recipe; the defaults are the plain one."""

    levels: str = "independent"  # stratified over the batch; or in pairs of complementary masks on one text
    importance: float = 0.0
    muon: bool = False
    tied: bool = False
    short: float = 0.0  # share of batches cut to a random length
    decay: float = 0.1
    beta: float = 0.95
    rate: float = 0.0  # 0: the optimiser's chosen one
    width: int = 128
    neighbours: bool = False  # all heads begin by reading one neighbour each


NEAR = Variant(levels="stratified", neighbours=True)
CPU = torch.device("cpu")
VARIANTS = {
    "plain": Variant(),
    "stratified": Variant(levels="stratified"),
    "neighbours": NEAR,
    "independent": replace(NEAR, levels="independent"),
    "complementary": replace(NEAR, levels="complementary"),
    "importance-0.5": replace(NEAR, importance=0.5),
    "importance-1": replace(NEAR, importance=1.0),
    "muon": replace(NEAR, muon=True),
    "muon-random": Variant(levels="stratified", muon=True),
    "tied": replace(NEAR, tied=True),
    "short-1%": replace(NEAR, short=0.01),
    "short-10%": replace(NEAR, short=0.1),
    "beta-0.99": replace(NEAR, beta=0.99),
    "together": replace(NEAR, importance=0.5, muon=True),
}
# what a random start learns within these budgets is when it leaves the plateau of the unigram law: variants are
# compared where that is not all there is to see
PAIRS = (
    ("stratified", "plain"),
    ("neighbours", "stratified"),
    ("muon-random", "stratified"),
    ("muon", "muon-random"),
    *((name, "neighbours") for name, each in VARIANTS.items() if each.neighbours and each != NEAR),
)
RATES = {False: (2e-3, 4e-3, 8e-3), True: (4e-3, 8e-3, 16e-3)}


@dataclass(frozen=True)
class Setting:
    """What all runs share."""

    flops: float
    length: int
    batch: int
    layers: int = 4


def uniforms(variant: Variant, batch: int, length: int, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    """(u [B], noise [B L]) of a batch's levels and masks."""
    draw = {"generator": generator, "dtype": torch.float64}
    noise = torch.rand(batch, length, **draw)
    if variant.levels == "independent":
        return torch.rand(batch, **draw), noise
    if variant.levels == "stratified":
        return stratified(batch, torch.rand((), **draw)), noise
    half = stratified(batch // 2, torch.rand((), **draw))
    return torch.cat([half, 1 - half]).clamp(max=1 - 1e-12), torch.cat([noise[: batch // 2], 1 - noise[: batch // 2]])


def run(variant: Variant, rate: float, seed: int, setting: Setting, data: str) -> dict[str, object]:
    """Train until the FLOPs are spent, and measure."""
    length, tokenizer = setting.length, Tokenizer.load(Path(data))
    heads = variant.width // 32
    near = heads if variant.neighbours else 0
    config = TransformerConfig(
        tokenizer.vocab, setting.layers, heads, variant.width, tied=variant.tied, neighbours=near
    )
    network = Transformer(config, seed=seed)
    settings = Optimiser(rate, betas=(0.9, variant.beta), weight_decay=variant.decay, muon=variant.muon)
    made = optimisers(network, settings)
    objective = AnyOrder(variant.importance)
    train = Packed(load_split(Path(data), "train"), length, tokenizer.begin)
    batch = setting.batch // (2 if variant.levels == "complementary" else 1)

    def cost(length: int) -> float:
        full = torch.ones(4096, length, dtype=torch.bool)
        u = stratified(4096, torch.tensor(0.5, dtype=torch.float64))
        share = float(objective.corrupt(full, u, torch.zeros(full.shape, dtype=torch.float64)).level.mean())
        return 3 * setting.batch * config.forward_flops(length + 1, share * length)

    extra = muon_flops(config) if variant.muon else 0.0
    costs: dict[int, float] = {}
    spent, step, tokens, start = 0.0, 0, 0, time.monotonic()
    while spent < setting.flops:
        generator = keyed_generator(seed, step)
        x_0, maskable, _ = train.take(batch_indices(len(train), batch, seed=seed, step=step))
        if variant.levels == "complementary":
            x_0, maskable = torch.cat([x_0, x_0]), torch.cat([maskable, maskable])
        u, noise = uniforms(variant, len(x_0), x_0.shape[1], generator)
        if float(torch.rand((), generator=generator)) < variant.short:
            keep = 2 + int(torch.randint(length, (), generator=generator))
            x_0, maskable, noise = x_0[:, :keep], maskable[:, :keep], noise[:, :keep]
        done = spent / setting.flops
        now = rate * min((step + 1) / 100, 0.1 + 0.9 * (1 + math.cos(math.pi * done)) / 2)
        for each in made:
            for group in each.param_groups:
                group["lr"] = now
        with autocast(CPU, best_precision(CPU)):
            loss = weighted(network, x_0, objective.corrupt(maskable, u, noise)).sum() / int(maskable.sum())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        for each in made:
            each.step()
            each.zero_grad(set_to_none=True)
        here = x_0.shape[1] - 1
        costs.setdefault(here, cost(here))
        spent, step, tokens = spent + costs[here] + extra, step + 1, tokens + int(maskable.sum())
        if step % 50 == 0:
            print(
                f"  step {step}, {done:.0%}, {float(loss.detach()):.3f}, {time.monotonic() - start:.0f} s", flush=True
            )
    held_out = Packed(load_split(Path(data), "validation"), length, tokenizer.begin)
    x_0, maskable, documents = held_out.take(batch_indices(len(held_out), 256, seed=0, step=0))
    network.eval()
    with torch.inference_mode():
        bound = log_likelihood(network, x_0, maskable, draws=16, documents=documents)
    return {
        "variant": dataclasses.asdict(variant),
        "rate": rate,
        "seed": seed,
        "setting": dataclasses.asdict(setting),
        "steps": step,
        "tokens": tokens,
        "seconds": time.monotonic() - start,
        "nats_per_token": bound.nats / bound.tokens,
        "stderr_mc": bound.stderr_mc / bound.tokens,
    }


def table(rows: dict[tuple[str, int], float]) -> None:
    """Gain of each variant in nats a token, paired by seed, with its standard error."""
    for name, against in PAIRS:
        seeds = [s for (n, s) in rows if n == name and s > 0 and (against, s) in rows]
        if len(seeds) < 2:
            continue
        gains = torch.tensor([rows[against, s] - rows[name, s] for s in seeds], dtype=torch.float64)
        error = float(gains.std() / math.sqrt(len(gains)))
        sure = float(gains.mean()) / error
        p = 2 * student.sf(abs(sure), len(gains) - 1)
        print(f"{name:15s} against {against:10s} {float(gains.mean()):+.4f} +- {error:.4f} nats/token, p = {p:.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--variants", nargs="*", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[1, 2, 3])
    parser.add_argument("--sweep", action="store_true", help="learning rates of each variant on seed 0, nothing else")
    parser.add_argument("--flops", type=float, default=2e13)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, default=0.0)
    parser.add_argument("--rate-muon", type=float, default=0.0)
    options = parser.parse_args()
    setting = Setting(options.flops, options.length, options.batch)
    chosen = {False: options.rate or 4e-3, True: options.rate_muon or 8e-3}
    rows: dict[tuple[str, int], float] = {}
    for seed in [0] if options.sweep else options.seeds:
        for name in options.variants:
            variant = VARIANTS[name]
            for rate in RATES[variant.muon] if options.sweep else [chosen[variant.muon]]:
                path = options.out / f"{name}-{rate:g}-{seed}.json"
                if not path.exists():
                    print(f"{name}, rate {rate:g}, seed {seed}", flush=True)
                    write_json(path, run(variant, rate, seed, setting, options.data))
                row = json.loads(path.read_text())
                print(
                    f"{name:15s} rate {rate:g} seed {seed}: {row['nats_per_token']:.4f} +- {row['stderr_mc']:.4f} "
                    f"nats/token, {row['steps']} steps, {row['seconds']:.0f} s",
                    flush=True,
                )
                rows[name, seed] = row["nats_per_token"]
    table(rows)


if __name__ == "__main__":
    main()
