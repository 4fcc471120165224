"""Train and sample a masked diffusion model with a flat loop, from the parts that the commands use.

    python examples/by_hand.py [TEXT_FILE]

Characters of a text file (by default a few made-up facts) are the tokens; half a minute on a laptop's CPU.
"""

import sys
from pathlib import Path

import torch

import unmask
from unmask.corruption import stratified

STEPS, BATCH, LENGTH = 300, 32, 64
FACTS = "the sun rises in the east. the moon follows the sun. the sea follows the moon. the east is the sea. " * 50

text = Path(sys.argv[1]).read_text(encoding="utf-8") if len(sys.argv) > 1 else FACTS
characters = sorted(set(text))
stream = torch.tensor([characters.index(c) for c in text])

network = unmask.Transformer(unmask.TransformerConfig(vocab=len(characters), layers=2, heads=4, width=64))
optimiser = torch.optim.AdamW(network.parameters(), lr=3e-3)
objective = unmask.AnyOrder()
generator = torch.Generator().manual_seed(0)
maskable = torch.ones(BATCH, LENGTH, dtype=torch.bool)


def batch() -> torch.Tensor:
    """Random stretches of the text."""
    starts = torch.randint(len(stream) - LENGTH, (BATCH, 1), generator=generator)
    return stream[starts + torch.arange(LENGTH)]


for step in range(STEPS):
    x_0 = batch()
    u = stratified(BATCH, torch.rand((), generator=generator))  # a level for each sequence, spread over [0, 1)
    loss = objective(network, x_0, maskable, u, generator).sum() / maskable.sum()
    loss.backward()
    optimiser.step()
    optimiser.zero_grad()
    if step % 100 == 0 or step == STEPS - 1:
        print(f"step {step}: {loss.item():.3f} nats/token")

estimate = unmask.log_likelihood(network, batch(), draws=64)
ppl, error = estimate.perplexity, estimate.perplexity_stderr[0]
print(f"perplexity of another batch: {ppl:.3f} +- {error:.3f} ({estimate.bound})")

beginning = torch.tensor([characters.index(c) for c in text[:8]])
canvas = torch.cat([beginning, torch.full((LENGTH - 8,), network.mask_id)])
for policy in (unmask.RandomOrder(), unmask.Tweedie(steps=16), unmask.LeftToRight()):
    samples = unmask.sample(network, [canvas], policy, seed=1)
    written = "".join(characters[i] for i in samples.tokens[0].tolist())
    print(f"\n{policy}: {int(samples.nfe[0])} network evaluations\n{written}")
