"""Exact likelihoods of stated orders, and the bound that the mean over several drawn orders gives."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from unmask.draws import PLAN, keyed_uniforms, require_rows
from unmask.likelihood.bound import Surprisal, log_likelihood, surprisal
from unmask.likelihood.estimate import Estimate, precision_of
from unmask.likelihood.texts import checked
from unmask.likelihood.work import Progress, Tally, in_batches, units_of
from unmask.network import Network, evaluations
from unmask.objectives import require_bidirectional, token_nats
from unmask.sampling import (
    LeftToRight,
    Policy,
    RandomOrder,
    Rated,
    Speculative,
    chooser_of,
    decode_nats,
    draw_plan,
    inside_of,
    is_drawn,
    nfe_of,
    plan_of,
    revising_of,
    without_gaps,
)


def ordered_log_likelihood(
    network: Network,
    x_0: Int[Tensor, "S L"],
    plan: Int[Tensor, "S L"],
    *,
    batch: int = 64,
    documents: Int[Tensor, " S"] | None = None,
    progress: Progress | None = None,
) -> Estimate:
    """Exact -log p of the tokens with plan >= 0 under the decoder that reveals them at the steps of `plan`.

    = sum over steps of -log q(tokens of the step | tokens of earlier steps and those with plan < 0), the tokens of
    one step independent, as a parallel decoder draws them. One evaluation a distinct step and sequence; one a
    sequence for a causal network from left to right. `draw_plan(policy, maskable)` gives the
    likelihood of the order that would really be decoded.
    """
    x_0, scored, steps = _planned(network, x_0, plan, documents)
    if network.causal:
        return log_likelihood(network, x_0, scored, batch=batch, documents=documents, progress=progress)
    each = torch.arange(len(x_0))
    return Estimate.of(
        _token_nats(network, x_0, steps, each, batch, Tally(progress)).sum(-1, keepdim=True),
        scored,
        documents,
        estimator="chain rule",
        precision=precision_of(network),
        evaluations=evaluations(network) * int(nfe_of(steps).sum()),
    )


def ordered_surprisal(
    network: Network, x_0: Int[Tensor, "S L"], plan: Int[Tensor, "S L"], *, batch: int = 64
) -> Surprisal:
    """-log q of each token at the step of `plan` that reveals it: exact, and their sum is `ordered_log_likelihood`."""
    x_0, scored, steps = _planned(network, x_0, plan)
    if network.causal:
        return surprisal(network, x_0, scored, batch=batch)
    nats = _token_nats(network, x_0, steps, torch.arange(len(x_0)), batch, Tally(None))
    return Surprisal(nats, torch.zeros_like(nats), "exact")


def importance_log_likelihood(
    network: Network,
    x_0: Int[Tensor, "S L"],
    maskable: Bool[Tensor, "S L"] | None = None,
    *,
    policy: Policy | None = None,
    orders: int = 8,
    replicates: int = 2,
    seed: int = 0,
    batch: int = 64,
    sequences: Sequence[int] | None = None,
    documents: Int[Tensor, " S"] | None = None,
    progress: Progress | None = None,
) -> Estimate:
    """Importance-weighted bound on -log p of each text under a sampler that draws its plan: E -log (1/K) sum_j
    p(x | plan_j), K = `orders` plans.

    Each p(x | plan) is exact, and their mean over plans is p(x), so by Jensen's inequality the bound falls with K, from
    the random-order bound at K = 1 to -log p(x) (Burda et al., arXiv 1509.00519). The law is the policy's own: by
    default RandomOrder(), one token at a time, at one evaluation a token and order; Tweedie(T) or RandomOrder(k) cost
    at most T or n/k of them, and bound another law. Replicates are independent sets of K. Of a plan that is not random
    all orders are one, and `ordered_log_likelihood` is the same number at once.

    Raises ValueError for a policy whose plan does not say all, since it looks at what the network says.
    """
    x_0, maskable, numbers = checked(network, x_0, maskable, sequences, documents)
    require_bidirectional(network)
    policy = policy or RandomOrder()
    if chooser_of(policy) is not None or revising_of(policy) is not None or isinstance(policy, Rated):
        name = type(inside_of(policy)).__name__
        raise ValueError(f"{name} plans no steps: if it has a likelihood, decoder_log_likelihood gives it")
    if orders < 1 or replicates < 2:
        raise ValueError(f"orders {orders} must be at least 1, and replicates {replicates} at least 2")
    plans, spent, tally = orders * replicates, 0, Tally(progress)
    nats = torch.zeros(len(x_0), replicates, dtype=torch.float64)
    size = maskable.sum(-1)
    for unit in units_of(plans * size, size, batch):
        open_ = maskable[unit]
        u = [keyed_uniforms(seed, [numbers[i] for i in unit.tolist()], open_.shape[1:], PLAN, j) for j in range(plans)]
        steps = torch.stack([plan_of(policy, open_, each) for each in u], 1)
        owner = unit.repeat_interleave(plans)
        each = _token_nats(network, x_0, steps.flatten(0, 1), owner, batch, tally).sum(-1)
        nats[unit] = math.log(orders) - (-each.view(len(unit), replicates, orders)).logsumexp(-1)
        spent += int(nfe_of(steps.flatten(0, 1)).sum())
    return Estimate.of(
        nats,
        maskable,
        documents,
        estimator=f"{orders} plans of {policy}",
        precision=precision_of(network),
        bound="importance bound",
        draws=plans,
        evaluations=evaluations(network) * spent,
        seed=seed,
    )


def decoder_log_likelihood(
    network: Network,
    x_0: Int[Tensor, "S L"],
    maskable: Bool[Tensor, "S L"],
    policy: Policy,
    *,
    batch: int = 64,
    documents: Int[Tensor, " S"] | None = None,
    progress: Progress | None = None,
) -> Estimate:
    """Exact -log p of each text under the decoder that would write it, at temperature 1.

    Defined for a policy whose order is a function of the visible tokens: Confidence, Margin, Entropy, Threshold,
    EntropyBound, LeftToRight, FixedOrder, blocks of these, and Speculative around such an order. Raises ValueError,
    saying why, for one that looks at the tokens drawn (LowConfidence, Greedy) and for one whose plan is random
    (RandomOrder, Tweedie, Euler, any other whose plans differ from draw to draw), whose likelihood is a mean over
    plans: `importance_log_likelihood` bounds it and `ordered_log_likelihood` gives that of one plan.
    """
    x_0, maskable, _ = checked(network, x_0, maskable, None, documents)
    if bool((x_0 == network.mask_id).any()):
        raise ValueError("a decoder writes every open position: hidden ones (masks in x_0) have no place here")
    policy = policy.inside if isinstance(policy, Speculative) else policy
    if is_drawn(policy, maskable):
        raise ValueError(
            f"{type(inside_of(policy)).__name__} draws its plan, so its likelihood is a mean over all plans: take an "
            "order that is not random, or from Python importance_log_likelihood, which bounds it"
        )
    nats, cost = decode_nats(network, x_0, maskable, policy, batch=batch, progress=progress)
    return Estimate.of(
        nats[:, None],
        maskable,
        documents,
        estimator=f"chain rule, {policy}",
        precision=precision_of(network),
        evaluations=int(cost.sum()),
    )


def _planned(
    network: Network, x_0: Int[Tensor, "S L"], plan: Int[Tensor, "S L"], documents: Int[Tensor, " S"] | None = None
) -> tuple[Int[Tensor, "S L"], Bool[Tensor, "S L"], Int[Tensor, "S L"]]:
    """(x_0, what is scored, the plan without gaps), checked."""
    require_rows("plan", plan)
    if not bool((plan >= 0).any()):
        raise ValueError("nothing to score: the plan reveals no position")
    x_0, scored, _ = checked(network, x_0, plan >= 0, None, documents)
    steps = without_gaps(plan.cpu().long())
    if network.causal and not torch.equal(steps, draw_plan(LeftToRight(), scored)):
        raise ValueError("a causal network has the likelihood of one order: from left to right")
    return x_0, scored, steps


def _token_nats(
    network: Network,
    x_0: Int[Tensor, "S L"],
    steps: Int[Tensor, "P L"],
    owner: Int[Tensor, " P"],
    batch: int,
    tally: Tally,
) -> Float[Tensor, "P L"]:
    """-log q of every token at its step, by plan; `owner` is the sequence of each plan."""
    count = nfe_of(steps)
    plan = torch.repeat_interleave(torch.arange(len(steps)), count)
    turn = torch.arange(len(plan)) - (count.cumsum(0) - count)[plan]
    nats = torch.zeros(steps.shape, dtype=torch.float64)

    def score(which: slice) -> None:
        step, rows = turn[which, None], owner[plan[which]]
        now = steps[plan[which]]
        canvas = x_0[rows].masked_fill(now >= step, network.mask_id)
        level = (now >= step).sum(-1).double() / (now >= 0).sum(-1)
        at, value = token_nats(network, x_0[rows], now == step, canvas=canvas, level=level, rows=rows)
        nats.view(-1)[plan[which][at // steps.shape[1]] * steps.shape[1] + at % steps.shape[1]] = value.cpu().double()

    tally.expect(len(plan))
    in_batches(network, len(plan), batch, tally, score)
    return nats
