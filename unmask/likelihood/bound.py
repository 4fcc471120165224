"""The random-order bound of a text, whole (`log_likelihood`) and token by token (`surprisal`)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from unmask.likelihood.design import PILOT, Design, bounds
from unmask.likelihood.estimate import Bound, Estimate, precision_of
from unmask.likelihood.texts import checked
from unmask.likelihood.work import Kept, Progress, Tally, first_answer, in_batches, units_of
from unmask.network import Network, evaluations
from unmask.objectives import (
    AnyOrder,
    Denoising,
    NextToken,
    cross_entropy,
    require_bidirectional,
    require_causal,
    token_nats,
)

PILOT_STRATA, PILOT_REPLICATES, PILOT_SEQUENCES = 8, 4, 16


def log_likelihood(
    network: Network,
    x_0: Int[Tensor, "S L"],
    maskable: Bool[Tensor, "S L"] | None = None,
    *,
    estimator: Denoising | NextToken | None = None,
    draws: int = 32,
    stderr: float | None = None,
    replicates: int = 2,
    seed: int = 0,
    batch: int = 64,
    sequences: Sequence[int] | None = None,
    documents: Int[Tensor, " S"] | None = None,
    progress: Progress | None = None,
    keep: Path | None = None,
) -> Estimate:
    """-log p(maskable tokens | the others) of each sequence: the random-order bound, or exact for a causal network.

    A causal network sees what is left of a token only: what is given to the right of a maskable one is not
    conditioned on. A position of x_0 that holds the mask is neither seen nor scored (see `conditional`). By default all
    others are maskable, but for a `Model`'s begin token in front, which is given.

    The default estimator of a bidirectional network is k-DCE with k drawn in proportion to k^-0.5. The `draws`
    maskings of a sequence are `replicates` independent designs (two suffice for many sequences; the interval of a
    single text wants four or more). With `stderr`, a standard error wanted of the total in nats, a pilot on up to 16
    sequences says how many draws that takes, in proportion to the root of a text's length; the pilot is then thrown
    away, so that the mean stays exact. Results depend on (seed, sequence number), and under `stderr` on the other
    sequences, but not on `batch`. `documents` are the clusters of stderr_data (default: one a sequence).
    `progress(done, total)` counts rows. A `keep` file holds what is done, so that an interrupted call goes on when it
    is repeated.

    An `estimator` of your own gives the plain mean of its draws. That is a bound where each set of k of n maskable
    positions has the mean weight E[w, this set is masked] = 1 / (k C(n, k)), as in the four losses, or a larger one;
    where a trial finds less, `bound` is "no bound".

    Raises ValueError where draws are fewer than two replicates, nothing is maskable, or estimator and network do not
    fit.
    """
    x_0, maskable, numbers = checked(network, x_0, maskable, sequences, documents)
    estimator = estimator or (NextToken() if network.causal else AnyOrder(importance=0.5))
    key = (estimator, draws, stderr, replicates, seed, batch, numbers, x_0, maskable)
    kept, tally = Kept(keep, key, first_answer(network, x_0, maskable)), Tally(progress)
    told = {"precision": precision_of(network), "documents": documents}
    if isinstance(estimator, NextToken):
        require_causal(network)
        rows, nats = _next_token(network, x_0, maskable, batch, tally, kept)
        cost = evaluations(network) * int(rows.sum())
        return Estimate.of(nats, maskable, estimator="chain rule", evaluations=cost, **told)
    require_bidirectional(network)
    _require_replicates(draws, replicates)
    design = Design(network, x_0, maskable, estimator, seed, numbers, replicates, batch)
    strata, spent = torch.full((len(x_0),), draws // replicates), 0
    if stderr is not None:
        strata, spent = _allocation(design, stderr, tally, kept)
    strata = design.with_few(strata)
    rows = design.rows(strata)
    return Estimate.of(
        _score(design, strata, rows, tally, kept, "values"),
        maskable,
        estimator=_name(estimator),
        bound="upper bound" if bounds(estimator) else "no bound",
        draws=round(replicates * float(strata[strata > 0].double().mean())) if bool(strata.any()) else 0,
        evaluations=evaluations(network) * (spent + int(rows.sum())),
        seed=seed,
        **told,
    )


@dataclass(frozen=True)
class Surprisal:
    """-log q of each token in nats, 0 where it was not scored, and its standard error from the maskings."""

    nats: Float[Tensor, "S L"]
    stderr: Float[Tensor, "S L"]
    bound: Bound


def surprisal(
    network: Network,
    x_0: Int[Tensor, "S L"],
    maskable: Bool[Tensor, "S L"] | None = None,
    *,
    draws: int = 64,
    replicates: int = 4,
    seed: int = 0,
    batch: int = 64,
    sequences: Sequence[int] | None = None,
    progress: Progress | None = None,
) -> Surprisal:
    """Each token's share of what `log_likelihood` estimates: its mean cost over random orders; exact if causal.

    The share of a token is no bound of anything by itself; their sum is. For the surprisal in a stated order, which
    is exact, see `ordered_surprisal`.
    """
    x_0, maskable, numbers = checked(network, x_0, maskable, sequences)
    tally, nats = Tally(progress), torch.zeros(x_0.shape, dtype=torch.float64)
    stderr = torch.zeros_like(nats)
    if network.causal:

        def score(which: slice) -> None:
            at, value = token_nats(network, x_0[which], maskable[which], rows=torch.arange(len(x_0))[which])
            nats[which].view(-1)[at] = value.cpu().double()

        tally.expect(len(x_0))
        in_batches(network, len(x_0), batch, tally, score)
        return Surprisal(nats, stderr, "exact")
    _require_replicates(draws, replicates)
    design = Design(network, x_0, maskable, AnyOrder(importance=0.5), seed, numbers, replicates, batch)
    strata = design.with_few(torch.full((len(x_0),), draws // replicates))
    rows = design.rows(strata)
    tally.expect(int(rows.sum()))
    for unit in units_of(rows, strata, batch):
        shares = design.shares(unit, int(strata[unit[0]]), tally)
        nats[unit] = shares.mean(1)
        stderr[unit] = shares.std(1) / math.sqrt(replicates)
    return Surprisal(nats, stderr, "upper bound")


def _score(
    design: Design, strata: Int[Tensor, " S"], rows: Int[Tensor, " S"], tally: Tally, kept: Kept, name: str
) -> Float[Tensor, "S R"]:
    return kept.fill(
        name,
        (len(rows), design.replicates),
        units_of(rows, strata, design.batch),
        rows,
        tally,
        lambda unit: design.shares(unit, int(strata[unit[0]]), tally).sum(-1),
    )


def _allocation(design: Design, stderr: float, tally: Tally, kept: Kept) -> tuple[Int[Tensor, " S"], int]:
    """(draws a replicate of each sequence that give the wanted standard error of the total, rows of the pilot).

    The pilot gives c = variance x draws / tokens; draws in proportion to sqrt(tokens) then cost least (Neyman 1934):
    draws_s = (c / stderr^2) sqrt(tokens_s) sum_r sqrt(tokens_r). Never fewer a replicate than the pilot's, whose
    smaller designs are worse than in proportion.
    """
    if not stderr > 0:
        raise ValueError(f"stderr {stderr} must be above 0")
    size = design.maskable.sum(-1)
    scored = (size > 0).nonzero().squeeze(-1)
    some = scored[torch.linspace(0, len(scored) - 1, min(len(scored), PILOT_SEQUENCES)).round().long()]
    pilot = replace(design, replicates=PILOT_REPLICATES, turn=PILOT)
    strata = pilot.with_few(torch.full_like(size, PILOT_STRATA))
    rows = torch.zeros_like(size).index_copy(0, some, pilot.rows(strata)[some])
    variance = float(_score(pilot, strata, rows, tally, kept, "pilot").var(-1).sum()) * PILOT_STRATA
    root = size.double().sqrt()
    draws = variance / float(size[some].sum()) / stderr**2 * float(root.sum()) * root
    found = (draws / design.replicates).ceil().long().clamp(min=PILOT_STRATA)
    return found.masked_fill(strata == 0, 0), int(rows.sum())  # what the pilot enumerates has no variance to tell


def _next_token(
    network: Network,
    x_0: Int[Tensor, "S L"],
    maskable: Bool[Tensor, "S L"],
    batch: int,
    tally: Tally,
    kept: Kept,
) -> tuple[Int[Tensor, " S"], Float[Tensor, "S 1"]]:
    rows = maskable.any(-1).long()

    def score(unit: Int[Tensor, " s"]) -> Float[Tensor, "s 1"]:
        nats = torch.zeros(len(unit), 1, dtype=torch.float64)

        def fill(which: slice) -> None:
            each = unit[which]
            nats[which, 0] = cross_entropy(network, x_0[each], maskable[each], rows=each).cpu().double()

        in_batches(network, len(unit), batch, tally, fill)
        return nats

    return rows, kept.fill("values", (len(x_0), 1), units_of(rows, rows, batch), rows, tally, score)


def _require_replicates(draws: int, replicates: int) -> None:
    if replicates < 2 or draws < replicates or draws % replicates:
        raise ValueError(f"draws {draws} must be a multiple of replicates {replicates}, which must be at least 2")


def _name(estimator: Denoising) -> str:
    return type(estimator).__name__ + (f"({estimator.importance})" if isinstance(estimator, AnyOrder) else "")
