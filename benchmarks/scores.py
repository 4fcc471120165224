"""Two bounds of one score network: the published score entropy (t-DSE) and the cross entropy (RADD).

    python benchmarks/scores.py --data PREPARED --steps 1500

On a small world the two are enumerated. Then a small network of SEDD's kind is trained on PREPARED (a folder of
`unmask prepare`) with the loss that SEDD trains with, and both bounds of it are estimated on held-out text, with their
standard errors from the maskings; beside them what its mass Z = sum_v exp(logit_v) is, which a normalised network has
at 1.
"""

import argparse
import itertools
import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from unmask.conditioned import Conditioned, ConditionedConfig
from unmask.corruption import stratified
from unmask.data import Packed, Tokenizer, batch_indices, load_split
from unmask.draws import keyed_generator
from unmask.likelihood import compare, log_likelihood
from unmask.network import Reading
from unmask.objectives import AnyOrder, ScoreEntropy, Target, TimeDCE, TimeDSE, cross_entropy
from unmask.world import InconsistentTable


@dataclass(frozen=True)
class Shifted:
    """The inconsistent world as a score network: log q and a random constant for each canvas and position."""

    world: InconsistentTable
    scale: float
    causal = False
    normalised = False

    @property
    def vocab(self) -> int:
        return self.world.vocab

    @property
    def mask_id(self) -> int:
        return self.world.mask_id

    def __call__(self, tokens, at, *, then=None, rows=None, level=None) -> Reading:
        base = (self.vocab + 1) ** torch.arange(self.world.length - 1, -1, -1)
        noise = torch.randn(self.world.table.shape[:2], generator=torch.Generator().manual_seed(9), dtype=torch.float64)
        canvas = (tokens * base).sum(-1)[at // tokens.shape[1]]
        log_q = self.world(tokens, at)
        assert isinstance(log_q, torch.Tensor)
        logits = log_q + self.scale * noise[canvas, at % tokens.shape[1]][:, None]
        return logits if then is None else then(logits, slice(0, len(at)))


def enumerated(scale: float) -> tuple[float, float]:
    """(t-DSE, cross entropy) in nats a token of the world, over all texts and all masks of each."""
    world = InconsistentTable(3, 3)
    network = Shifted(world, scale)
    x_0 = torch.tensor(list(itertools.product(range(3), repeat=3)))
    totals = {ScoreEntropy: 0.0, Target: 0.0}
    for subset in list(itertools.product([False, True], repeat=3))[1:]:
        masked = torch.tensor(subset).expand(len(x_0), -1)
        weight = 1 / (sum(subset) * math.comb(3, sum(subset)))
        for reading in totals:
            canvas = x_0.masked_fill(masked, network.mask_id)
            nats = cross_entropy(network, x_0, masked, canvas=canvas, reading=reading)
            totals[reading] += weight * float(nats.mean()) / 3
    return totals[ScoreEntropy], totals[Target]


def trained(blocks: Packed, vocab: int, steps: int, batch: int) -> Conditioned:
    """A small score network, by t-DSE as SEDD trains."""
    network = Conditioned(ConditionedConfig(vocab, layers=4, heads=4, width=128, condition=64, reading="scaled score"))
    optimiser, start = torch.optim.AdamW(network.parameters(), lr=2e-3, betas=(0.9, 0.95)), time.monotonic()
    for step in range(steps):
        generator = keyed_generator(0, step)
        x_0, maskable, _ = blocks.take(batch_indices(len(blocks), batch, seed=0, step=step))
        u = stratified(batch, torch.rand((), generator=generator, dtype=torch.float64))
        for group in optimiser.param_groups:
            group["lr"] = 2e-3 * min(1, (step + 1) / 100) * (0.55 + 0.45 * math.cos(math.pi * step / steps))
        loss = TimeDSE()(network, x_0, maskable, u, generator).sum() / maskable.sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        if (step + 1) % 250 == 0:
            print(f"  step {step + 1}: t-DSE {float(loss.detach()):.3f}, {time.monotonic() - start:.0f} s", flush=True)
    return network.eval().requires_grad_(False)


def masses(network: Conditioned, x_0: torch.Tensor, maskable: torch.Tensor) -> list[tuple[float, float, float]]:
    """(level, mean of Z, its standard deviation) over masked positions."""
    rows = []
    for level in (0.1, 0.5, 0.9):
        noise = torch.rand(x_0.shape, generator=torch.Generator().manual_seed(1))
        masked = maskable & (noise < level)
        at = masked.flatten().nonzero().squeeze(-1)
        canvas = x_0.masked_fill(masked, network.mask_id)
        told = torch.full((len(x_0),), level, dtype=torch.float64)
        z = network(canvas, at, then=lambda logits, _: logits.double().logsumexp(-1).exp(), level=told)
        assert isinstance(z, torch.Tensor)
        rows.append((level, float(z.mean()), float(z.std())))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--texts", type=int, default=128)
    options = parser.parse_args()
    for scale in (0.0, 0.35, 0.7):
        dse, dce = enumerated(scale)
        print(f"inconsistent world, shifts of {scale}: t-DSE {dse:.4f}, cross entropy {dce:.4f} nats/token, exactly")
    if options.data is None:
        return
    tokenizer = Tokenizer.load(options.data)
    train, held = (
        Packed(load_split(options.data, name), options.length, tokenizer.begin) for name in ("train", "validation")
    )
    network = trained(train, tokenizer.vocab, options.steps, options.batch)
    x_0, maskable, documents = held.take(batch_indices(len(held), min(len(held), options.texts), seed=0, step=0))
    found, common = {}, {"draws": 32, "documents": documents}
    for estimator in (TimeDSE(), TimeDCE(), AnyOrder(0.5)):
        found[estimator] = one = log_likelihood(network, x_0, maskable, estimator=estimator, **common)
        nats, masks, texts = (value / one.tokens for value in (one.nats, one.stderr_mc, one.stderr_data))
        print(f"{type(estimator).__name__:9} {nats:.4f} ± {masks:.4f} (maskings) ± {texts:.4f} (texts) nats/token")
    gap = compare(found[TimeDSE()], found[TimeDCE()])
    nats, masks = gap.nats / gap.tokens, gap.stderr_mc / gap.tokens
    print(f"t-DSE - t-DCE on the same maskings: {nats:.5f} ± {masks:.5f} nats/token")
    for level, mean, spread in masses(network, x_0, maskable):
        print(f"Z at level {level}: mean {mean:.4f}, standard deviation {spread:.4f}")


if __name__ == "__main__":
    main()
