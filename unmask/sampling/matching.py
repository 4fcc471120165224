"""The true conditional p(x | fits): texts as the network would write them freely, had it happened to fit."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from unmask.network import Network
from unmask.sampling.constraints import Constraint
from unmask.sampling.drawing import Draw
from unmask.sampling.planned import Policy
from unmask.sampling.runner import Samples, sample
from unmask.sampling.work import on_host


@dataclass(frozen=True)
class Matches:
    """Samples that fit, and what they cost; `samples.nfe` counts the evaluations of failed attempts too."""

    samples: Samples
    attempts: Int[Tensor, " S"]
    """Attempts of each sequence, up to and with the first that fits; their mean is 1 / P(fits). 0 where nothing was
    open.
    """


def sample_matching(
    network: Network,
    canvases: Sequence[Int[Tensor, " L"]] | Int[Tensor, "S L"],
    constraint: Constraint,
    policy: Policy | None = None,
    *,
    draw: Draw | None = None,
    seed: int = 0,
    sequences: Sequence[int] | None = None,
    batch: int = 16,
    end: int | None = None,
    attempts: int = 1000,
) -> Matches:
    """Fill every canvas by p(x | x fits the constraint), p the law of the policy without one, by rejection.

    Each attempt writes freely and ends as soon as no filling of what is still masked fits, which is the acceptance of
    a constrained sample with the probability prod Z, spread over its steps: the same law at a part of the calls. It
    costs 1 / P(fits) attempts a sequence in the mean, each of at least one evaluation; where that is too much, take
    `sample(..., constraint=...)` and weigh its samples by `log_weight`. As many attempts run at once as fill a batch.
    Raises ValueError, with the acceptance rate, when a sequence has not fitted in so many attempts.
    """
    if attempts < 1:
        raise ValueError(f"attempts {attempts} must be at least 1")
    numbers = list(range(len(canvases))) if sequences is None else list(sequences)
    if len(numbers) != len(canvases):
        raise ValueError(f"{len(numbers)} sequence numbers for {len(canvases)} canvases: give one each")
    canvases = [on_host(network, [canvas])[0] for canvas in canvases]
    spans = [constraint.spans(canvas[None], network.vocab, network.mask_id)[0] for canvas in canvases]
    whole = [i for i, canvas in enumerate(canvases) if not bool((canvas == network.mask_id).any())]
    given = sample(network, [canvases[i] for i in whole], policy, sequences=[numbers[i] for i in whole])
    found: dict[int, tuple[int, Samples, int]] = {i: (0, given, j) for j, i in enumerate(whole)}
    nfe, calls, tried = torch.zeros(len(numbers), dtype=torch.long), 0, 0
    while waiting := [i for i in range(len(numbers)) if i not in found]:
        if tried == attempts:
            rate = len(found) / (tried * len(waiting) + sum(attempt for attempt, _, _ in found.values()))
            what = f"sequence {numbers[waiting[0]]}: none of {tried} attempts fits the constraint"
            remedy = "allow more attempts, or weigh constrained samples by their log_weight"
            raise ValueError(f"{what} (acceptance over all sequences {rate:.2g}): {remedy}")
        share = min(-(-batch // len(waiting)), attempts - tried)
        jobs = [(i, tried + k) for i in waiting for k in range(1, share + 1)]
        tries = sample(
            network,
            [canvases[i] for i, _ in jobs],
            policy,
            draw=draw,
            seed=seed,
            sequences=[_number(numbers[i], attempt) for i, attempt in jobs],
            rows=[i for i, _ in jobs],
            batch=batch,
            end=end,
            constraint=replace(constraint, abandon=True),
        )
        calls, tried = calls + tries.calls, tried + share
        for j, (i, attempt) in enumerate(jobs):
            nfe[i] += tries.nfe[j]
            written = bool((tries.tokens[j] != network.mask_id).all())
            if i not in found and written and constraint.alive(tries.tokens[j][None], [spans[i]], network.mask_id):
                found[i] = attempt, tries, j
    best = [found[i] for i in range(len(numbers))]
    tokens, reveal, confidence = (
        [getattr(tries, name)[j] for _, tries, j in best] for name in ("tokens", "reveal", "confidence")
    )
    samples = Samples(tokens, nfe, calls, reveal, confidence, torch.zeros(len(numbers), dtype=torch.float64))
    return Matches(samples, torch.tensor([attempt for attempt, _, _ in best], dtype=torch.long))


def _number(sequence: int, attempt: int) -> int:
    """The number of one attempt of a sequence: 63 random bits, so that two meet once in 10^19 pairs."""
    return int(np.random.SeedSequence([sequence, attempt]).generate_state(1, np.uint64)[0] >> np.uint64(1))
