"""Infilled spans of held-out text: an MDM that sees both sides against an ARM that sees the prefix alone.

    python benchmarks/infilling.py --mdm runs/mdm --arm runs/ar --data data/text

Three questions, each with its error over spans: nats a token of the true span (an ARM by its chain rule given what is
left, an MDM by the random-order bound given both sides and, to tell what the right side is worth, the left one alone);
tokens of the span that a greedy decoder finds, the length given; and how well the length is found by likelihood.
"""

import argparse
import math
import statistics
from pathlib import Path

import torch

import unmask
from unmask.data import Packed, batch_indices, load_split
from unmask.evaluate.infilling import likely_lengths
from unmask.sampling import Confidence, Draw, LeftToRight, sample


def told(name: str, values: list[float], unit: str) -> None:
    error = statistics.stdev(values) / math.sqrt(len(values))
    print(f"{name:<58} {statistics.fmean(values):8.3f} ± {error:.3f} {unit}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("mdm", "arm", "data"):
        parser.add_argument(f"--{name}", required=True, type=Path)
    parser.add_argument("--spans", type=int, default=64)
    parser.add_argument("--length", type=int, default=64, help="tokens of a window")
    parser.add_argument("--span", type=int, default=6)
    parser.add_argument("--draws", type=int, default=16)
    options = parser.parse_args()
    mdm, arm = unmask.load(options.mdm), unmask.load(options.arm)
    blocks = Packed(load_split(options.data, "validation"), options.length, mdm.tokenizer.begin)
    x_0, _, _ = blocks.take(batch_indices(len(blocks), options.spans, seed=0, step=0))
    first = 1 + (options.length - options.span) // 2
    span = torch.zeros_like(x_0, dtype=torch.bool)
    span[:, first : first + options.span] = True
    right = torch.zeros_like(span)
    right[:, first + options.span :] = True
    hidden = x_0.masked_fill(right, mdm.mask_id)

    cut, draws = first + options.span, options.draws
    scored = {
        "MDM, both sides (bound)": unmask.log_likelihood(mdm, x_0, span, draws=draws),
        "MDM, prefix alone (bound)": unmask.log_likelihood(mdm, hidden, span, draws=draws),
        "ARM, prefix alone (exact)": unmask.log_likelihood(arm, x_0[:, :cut], span[:, :cut]),
    }
    for name, estimate in scored.items():
        told(f"of the span: {name}", (estimate.per_sequence / options.span).tolist(), "nats a token")
    ways = (
        ("MDM, both sides, surest first", mdm, x_0.masked_fill(span, mdm.mask_id), Confidence()),
        ("MDM, prefix alone, surest first", mdm, x_0.masked_fill(span, mdm.mask_id)[:, :cut], Confidence()),
        ("ARM, prefix alone, left to right", arm, x_0[:, :cut].masked_fill(span[:, :cut], arm.mask_id), LeftToRight()),
    )
    for name, model, canvas, policy in ways:
        tokens = torch.stack(sample(model, canvas, policy, draw=Draw(temperature=0)).tokens)[:, first:cut]
        told(f"tokens found: {name}", (tokens == x_0[:, first:cut]).double().mean(-1).tolist(), "of 1")
    lengths(mdm, x_0, first, options)


def lengths(model: unmask.Model, x_0: torch.Tensor, first: int, options: argparse.Namespace) -> None:
    """Which length is found for a span of known length, among 1 to twice as many; drawn uniformly it has the first."""
    most, errors, right = 2 * options.span, [], []
    for row in x_0[: options.spans // 2].tolist():
        before, after = model.tokenizer.decode(row[1:first]), model.tokenizer.decode(row[first + options.span :])
        _, ((*candidates,),) = likely_lengths(model, f"{before}{{{{1..{most}}}}}{after}", draws=options.draws)
        found = min(candidates, key=lambda each: each.nats).length
        errors.append(float(abs(found - options.span)))
        right.append(float(found == options.span))
    uniform = [abs(n - options.span) for n in range(1, most + 1)]
    told("length by likelihood: tokens off", errors, f"(drawn uniformly: {statistics.fmean(uniform):.3f})")
    told("length by likelihood: right", right, f"of 1 (drawn uniformly: {1 / most:.3f})")


if __name__ == "__main__":
    main()
