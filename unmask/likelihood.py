"""Likelihood with its error: what was estimated, how surely, and of which law.

For a bidirectional network the random-order bound of RADD's four losses is estimated by Monte Carlo; for a stated
order (that of a causal network, or any order in which an MDM decodes) the chain rule is exact. Two errors are kept
apart: `stderr_mc` is that of the maskings with the texts held fixed, `stderr_data` that of the texts.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from scipy.stats import t as student
from torch import Tensor

from unmask.corruption import stratified
from unmask.draws import LEVEL, MASK, keyed_uniforms
from unmask.network import Network
from unmask.objectives import AnyOrder, Denoising, NextToken, cross_entropy, reading_of, weighted
from unmask.sampling import (
    Blocks,
    Euler,
    LeftToRight,
    Policy,
    RandomOrder,
    Speculative,
    Tweedie,
    decode_nats,
    draw_plan,
    nfe_of,
    without_gaps,
)

Bound = Literal["exact", "upper bound"]


@dataclass(frozen=True)
class Estimate:
    """An estimate of -log p over a set of sequences, in nats (totals, not means), and all that is needed to judge
    it.
    """

    nats: float
    stderr_mc: float
    """Standard error of `nats` from the random maskings, texts held fixed; 0 where nothing is random."""
    stderr_data: float
    """Standard error of `nats` as a total over this many tokens of such texts, clustered by document; nan for one
    document.
    """
    tokens: int
    sequences: int
    documents: int
    evaluations: int
    """Network evaluations: rows run."""
    bound: Bound
    estimator: str
    draws: int
    """Maskings a sequence; 0 where nothing is random."""
    freedom: float
    """Degrees of freedom of stderr_mc; 0 where nothing is random."""
    precision: str
    seed: int
    per_sequence: Float[Tensor, " S"]
    """Nats of each sequence, float64."""
    stderr_per_sequence: Float[Tensor, " S"]
    """Standard error of each from the random maskings; 0 where nothing is random."""

    @classmethod
    def of(
        cls,
        nats: Float[Tensor, "S R"],
        maskable: Bool[Tensor, "S L"],
        documents: Int[Tensor, " S"] | None = None,
        *,
        estimator: str,
        precision: str,
        bound: Bound = "exact",
        draws: int = 0,
        evaluations: int = 0,
        seed: int = 0,
    ) -> "Estimate":
        """From R independent replicates of each sequence's value (R = 1 where nothing is random), in nats."""
        replicates = nats.shape[1]
        variances = nats.var(-1) / replicates if replicates > 1 else torch.zeros(len(nats))
        mc = float(variances.sum())
        # Welch and Satterthwaite: a few uncertain rows among many certain ones have the freedom of the few
        freedom = mc**2 * (replicates - 1) / float(variances.square().sum()) if mc > 0 else 0.0
        per_sequence, tokens = nats.mean(-1), maskable.sum(-1)
        scored = tokens > 0  # the other rows are known exactly and say nothing of texts
        clusters = (torch.arange(len(nats)) if documents is None else documents)[scored].unique(return_inverse=True)[1]
        return cls(
            nats=float(per_sequence.sum()),
            stderr_mc=math.sqrt(mc),
            stderr_data=_clustered(per_sequence[scored], tokens[scored], clusters, mc),
            tokens=int(tokens.sum()),
            sequences=len(nats),
            documents=int(clusters.max()) + 1,
            evaluations=evaluations,
            bound=bound,
            estimator=estimator,
            draws=draws,
            freedom=freedom,
            precision=precision,
            seed=seed,
            per_sequence=per_sequence,
            stderr_per_sequence=variances.sqrt(),
        )

    @property
    def perplexity(self) -> float:
        """exp(nats / tokens): of a bound, an upper bound of the perplexity."""
        rate = self.nats / self.tokens
        return math.exp(rate) if rate < 700 else math.inf

    @property
    def perplexity_stderr(self) -> tuple[float, float]:
        """(from the maskings, from the texts), by the delta method."""
        slope = self.perplexity / self.tokens
        return slope * self.stderr_mc, slope * self.stderr_data

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Confidence interval of `nats` for these texts (maskings only), by Student's t."""
        half = self.stderr_mc * float(student.ppf((1 + level) / 2, self.freedom)) if self.freedom else 0.0
        return self.nats - half, self.nats + half

    def bits_per_byte(self, count: float) -> float:
        """Bits a byte of UTF-8 text, given the number of bytes that the scored tokens stand for."""
        return self.nats / math.log(2) / count

    def row(self) -> dict[str, object]:
        """The JSON row of a result file: everything but the values of single sequences."""
        names = (
            "nats",
            "stderr_mc",
            "stderr_data",
            "tokens",
            "sequences",
            "documents",
            "evaluations",
            "bound",
        )
        values = {name: getattr(self, name) for name in (*names, "estimator", "draws", "precision", "seed")}
        return {**values, "perplexity": self.perplexity}


def log_likelihood(
    network: Network,
    x_0: Int[Tensor, "S L"],
    maskable: Bool[Tensor, "S L"] | None = None,
    *,
    estimator: Denoising | NextToken | None = None,
    draws: int = 32,
    replicates: int = 4,
    seed: int = 0,
    batch: int = 64,
    sequences: Sequence[int] | None = None,
    documents: Int[Tensor, " S"] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Estimate:
    """-log p(maskable tokens | the others) of each sequence: the random-order bound, or exact for a causal network.

    A causal network sees what is left of a token only: what is given to the right of a maskable one is not
    conditioned on.

    The default estimator of a bidirectional network is k-DCE with k drawn in proportion to k^-0.4. The `draws`
    maskings of a sequence are `replicates` independent sets, each stratified over its levels, so that the
    replicates' spread is an honest error (a naive formula over-covers). Results depend on (seed, sequence number)
    and not on `batch`. `documents` are the clusters of stderr_data (default: one a sequence). `progress(done,
    total)` counts evaluations.

    Raises ValueError where draws are fewer than two replicates, nothing is maskable, or estimator and network do not
    fit.
    """
    x_0 = x_0.cpu()
    maskable = torch.ones_like(x_0, dtype=torch.bool) if maskable is None else maskable.cpu()
    numbers = list(range(len(x_0))) if sequences is None else list(sequences)
    if maskable.shape != x_0.shape or len(numbers) != len(x_0):
        raise ValueError(f"x_0 {tuple(x_0.shape)}, maskable {tuple(maskable.shape)}, {len(numbers)} numbers do not fit")
    if not bool(maskable.any()):
        raise ValueError("nothing to score: no position is maskable")
    precision = precision_of(network)
    if estimator is None:
        estimator = NextToken() if network.causal else AnyOrder(importance=0.4)
    if isinstance(estimator, NextToken):
        nats = _in_batches(len(x_0), batch, progress, lambda rows: estimator(network, x_0[rows], maskable[rows]))
        return Estimate.of(
            nats[:, None], maskable, documents, estimator="chain rule", precision=precision, evaluations=len(x_0)
        )
    if replicates < 2 or draws < replicates or draws % replicates:
        raise ValueError(f"draws {draws} must be a multiple of replicates {replicates}, which must be at least 2")
    strata = draws // replicates

    def score(which: slice) -> Float[Tensor, " n"]:
        work = torch.arange(len(x_0) * draws)[which]
        owner, draw = work // draws, work % draws
        return _draw(network, x_0, maskable, estimator, seed, numbers, owner, draw, strata, replicates)

    nats = _in_batches(len(x_0) * draws, batch, progress, score).view(len(x_0), replicates, strata).mean(-1)
    name = type(estimator).__name__ + (f"({estimator.importance})" if isinstance(estimator, AnyOrder) else "")
    return Estimate.of(
        nats,
        maskable,
        documents,
        estimator=name,
        precision=precision,
        bound="upper bound",
        draws=draws,
        evaluations=len(x_0) * draws,
        seed=seed,
    )


def _draw(
    network: Network,
    x_0: Int[Tensor, "S L"],
    maskable: Bool[Tensor, "S L"],
    estimator: Denoising,
    seed: int,
    numbers: list[int],
    owner: Int[Tensor, " n"],
    draw: Int[Tensor, " n"],
    strata: int,
    replicates: int,
) -> Float[Tensor, " n"]:
    levels, noise = [], []
    for i in owner.unique().tolist():
        mine = draw[owner == i]
        offset = keyed_uniforms(seed, [numbers[i]], (replicates,), LEVEL)[0]
        levels.append(stratified(strata, offset).flatten()[mine])
        shape = (strata * replicates, x_0.shape[1])
        noise.append(keyed_uniforms(seed, [numbers[i]], shape, MASK)[0][mine])
    corruption = estimator.corrupt(maskable[owner], torch.cat(levels), torch.cat(noise))
    return weighted(network, x_0[owner], corruption, reading_of(estimator, network))


def ordered_log_likelihood(
    network: Network,
    x_0: Int[Tensor, "S L"],
    plan: Int[Tensor, "S L"],
    *,
    batch: int = 64,
    documents: Int[Tensor, " S"] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Estimate:
    """Exact -log p of the tokens with plan >= 0 under the decoder that reveals them at the steps of `plan`.

    = sum over steps of -log q(tokens of the step | tokens of earlier steps and those with plan < 0), the tokens of
    one step independent, as a parallel decoder draws them. One evaluation a distinct step and sequence; one a
    sequence for a causal network from left to right. `draw_plan(policy, maskable)` gives the
    likelihood of the order that would really be decoded.
    """
    x_0, plan = x_0.cpu(), plan.cpu()
    scored = plan >= 0
    if not bool(scored.any()):
        raise ValueError("nothing to score: the plan reveals no position")
    steps = without_gaps(plan)
    if network.causal:
        if not torch.equal(steps, draw_plan(LeftToRight(), scored)):
            raise ValueError("a causal network has the likelihood of one order: from left to right")
        return log_likelihood(network, x_0, scored, batch=batch, documents=documents, progress=progress)
    count = nfe_of(steps)
    owner = torch.repeat_interleave(torch.arange(len(x_0)), count)
    turn = torch.arange(len(owner)) - (count.cumsum(0) - count)[owner]

    def score(which: slice) -> Float[Tensor, " n"]:
        row, step = owner[which], turn[which][:, None]
        canvas = x_0[row].masked_fill(steps[row] >= step, network.mask_id)
        return cross_entropy(network, x_0[row], steps[row] == step, canvas=canvas)

    parts = _in_batches(len(owner), batch, progress, score)
    nats = parts.new_zeros(len(x_0)).index_add(0, owner, parts)
    precision = precision_of(network)
    return Estimate.of(
        nats[:, None], scored, documents, estimator="chain rule", precision=precision, evaluations=len(owner)
    )


def decoder_log_likelihood(
    network: Network,
    x_0: Int[Tensor, "S L"],
    maskable: Bool[Tensor, "S L"],
    policy: Policy,
    *,
    batch: int = 64,
    documents: Int[Tensor, " S"] | None = None,
) -> Estimate:
    """Exact -log p of each text under the decoder that would write it, at temperature 1.

    Defined for a policy whose order is a function of the visible tokens: Confidence, Margin, Entropy, Threshold,
    EntropyBound, LeftToRight, FixedOrder, and blocks of these. Raises ValueError, saying why, for one that looks at the
    tokens drawn (LowConfidence, Greedy) and for one that draws its plan (RandomOrder, Tweedie, Euler), whose likelihood
    is a mean over plans: `log_likelihood` bounds it and `ordered_log_likelihood` gives that of one plan.
    """
    x_0, maskable = x_0.cpu(), maskable.cpu()
    if not bool(maskable.any()):
        raise ValueError("nothing to score: no position is maskable")
    policy = policy.inside if isinstance(policy, Speculative) else policy
    inside = policy.inside if isinstance(policy, Blocks) else policy
    if isinstance(inside, RandomOrder | Tweedie | Euler):
        raise ValueError(
            f"{type(inside).__name__} draws its plan, so its likelihood is a mean over all plans: bound it with "
            "log_likelihood, or score one plan with ordered_log_likelihood"
        )
    nats, evaluations = decode_nats(network, x_0, maskable, policy, batch=batch)
    return Estimate.of(
        nats[:, None],
        maskable,
        documents,
        estimator=f"chain rule, {policy}",
        precision=precision_of(network),
        evaluations=int(evaluations.sum()),
    )


def _in_batches(
    count: int,
    batch: int,
    progress: Callable[[int, int], None] | None,
    score: Callable[[slice], Float[Tensor, " n"]],
) -> Float[Tensor, " N"]:
    if batch < 1:
        raise ValueError(f"batch {batch} must be at least 1")
    parts = []
    with torch.inference_mode():
        for start in range(0, count, batch):
            parts.append(score(slice(start, min(start + batch, count))).cpu().double())
            if progress is not None:
                progress(min(start + batch, count), count)
    return torch.cat(parts)


def _clustered(nats: Float[Tensor, " S"], tokens: Int[Tensor, " S"], clusters: Int[Tensor, " S"], mc: float) -> float:
    """Standard error of the total from document to document, at a fixed number of tokens: that of a ratio estimator.

    sqrt(C/(C-1) sum_c (nats_c - rate tokens_c)^2) over C documents, the share of the maskings (`mc`, a variance)
    taken out.
    """
    count = int(clusters.max()) + 1
    if count < 2:
        return math.nan
    total = nats.new_zeros(count).index_add(0, clusters, nats)
    size = nats.new_zeros(count).index_add(0, clusters, tokens.to(nats.dtype))
    residual = total - total.sum() / size.sum() * size
    variance = float(residual.square().sum()) * count / (count - 1)
    return math.sqrt(max(0.0, variance - mc))


def precision_of(network: Network) -> str:
    """The dtype of the network's weights."""
    parameters = getattr(network, "parameters", None)
    return str(next(parameters()).dtype).removeprefix("torch.") if callable(parameters) else "its own"
