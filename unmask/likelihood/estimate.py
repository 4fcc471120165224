"""What an estimate says of itself: the number, its two errors, what it cost and what it is a bound of."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from scipy.special import stdtrit
from torch import Tensor

from unmask.network import Network

Bound = Literal["exact", "upper bound", "importance bound", "difference", "no bound"]


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
    """Maskings, or orders, a sequence whose are random (their mean where it differs); 0 where nothing is random."""
    freedom: float
    """Degrees of freedom of stderr_mc; 0 where nothing is random."""
    precision: str
    seed: int
    replicates: Float[Tensor, "S R"]
    """Nats of each sequence by each replicate of the design, float64."""
    sizes: Int[Tensor, " S"]
    """Tokens scored of each sequence."""
    clusters: Int[Tensor, " S"]
    """The document of each sequence."""

    @classmethod
    def of(
        cls,
        nats: Float[Tensor, "S R"],
        scored: Bool[Tensor, "S L"] | Int[Tensor, " S"],
        documents: Int[Tensor, " S"] | None = None,
        *,
        estimator: str,
        precision: str,
        bound: Bound = "exact",
        draws: int = 0,
        evaluations: int = 0,
        seed: int = 0,
    ) -> "Estimate":
        """From R independent replicates of each sequence's value (R = 1 where nothing is random), in nats.

        `scored` tells which tokens, or how many of each sequence.
        """
        sizes = scored.sum(-1) if scored.dtype == torch.bool else scored
        clusters = torch.arange(len(nats)) if documents is None else documents.cpu()
        variances, freedom = _spread(nats)
        mc, per_sequence = float(variances.sum()), nats.mean(-1)
        told = sizes > 0  # the other rows are known exactly and say nothing of texts
        document = clusters[told].unique(return_inverse=True)[1]
        return cls(
            nats=float(per_sequence.sum()),
            stderr_mc=math.sqrt(mc),
            stderr_data=_clustered(per_sequence[told], sizes[told], document, mc),
            tokens=int(sizes.sum()),
            sequences=len(nats),
            documents=int(document.max()) + 1,
            evaluations=evaluations,
            bound=bound,
            estimator=estimator,
            draws=draws,
            freedom=freedom,
            precision=precision,
            seed=seed,
            replicates=nats,
            sizes=sizes,
            clusters=clusters,
        )

    @property
    def per_sequence(self) -> Float[Tensor, " S"]:
        """Nats of each sequence."""
        return self.replicates.mean(-1)

    @property
    def stderr_per_sequence(self) -> Float[Tensor, " S"]:
        """Standard error of each sequence's nats from the random maskings; 0 where nothing is random."""
        return _spread(self.replicates)[0].sqrt()

    @property
    def perplexity(self) -> float:
        """exp(nats / tokens): of a bound, an upper bound of the perplexity; of a difference, a ratio of two."""
        rate = self.nats / self.tokens
        return math.inf if rate >= 700 else math.exp(rate)

    @property
    def perplexity_stderr(self) -> tuple[float, float]:
        """(from the maskings, from the texts), by the delta method."""
        slope = self.perplexity / self.tokens
        return slope * self.stderr_mc, slope * self.stderr_data

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Confidence interval of `nats` for these texts (maskings only), by Student's t."""
        half = self.stderr_mc * float(stdtrit(self.freedom, (1 + level) / 2)) if self.freedom else 0.0
        return self.nats - half, self.nats + half

    def bits_per_byte(self, count: float) -> float:
        """Bits a byte of UTF-8 text, given the number of bytes that the scored tokens stand for."""
        return self.nats / math.log(2) / count

    def row(self) -> dict[str, object]:
        """The JSON row of a result file: everything but the values of single sequences."""
        names = ("nats", "stderr_mc", "stderr_data", "tokens", "sequences", "documents", "evaluations", "bound")
        values = {name: getattr(self, name) for name in (*names, "estimator", "draws", "precision", "seed")}
        return {**values, "perplexity": self.perplexity}


def compare(first: Estimate, second: Estimate) -> Estimate:
    """first - second in nats, paired: its errors are those of the difference, sequence by sequence.

    Two networks on the same texts, or two answers to the same questions, scored under the same seed and sequence
    numbers saw the same maskings, and what these do to both cancels; so does what the texts do to both.
    The difference of two bounds is not a bound of anything. Raises ValueError where the two do not pair.
    """
    one, two = first.replicates, second.replicates
    if len(one) != len(two) or not torch.equal(first.clusters, second.clusters):
        raise ValueError(f"{len(one)} and {len(two)} sequences, or other documents: only the same ones can be paired")
    if min(one.shape[1], two.shape[1]) > 1 and one.shape[1] != two.shape[1]:
        raise ValueError(f"{one.shape[1]} and {two.shape[1]} replicates: score both with the same number")
    return Estimate.of(
        one - two,
        first.sizes,
        first.clusters,
        estimator=f"{first.estimator} - {second.estimator}",
        precision=first.precision,
        bound="difference",
        draws=max(first.draws, second.draws),
        evaluations=first.evaluations + second.evaluations,
        seed=first.seed,
    )


def precision_of(network: Network) -> str:
    """The dtype of the weights of a network, or of the one that it wraps."""
    parameters = getattr(network, "parameters", None)
    if callable(parameters):
        first = next(parameters(), None)
        return "its own" if first is None else str(first.dtype).removeprefix("torch.")
    inside = getattr(network, "network", None)
    return "its own" if inside is None else precision_of(inside)


def _spread(nats: Float[Tensor, "S R"]) -> tuple[Float[Tensor, " S"], float]:
    """(variance of each sequence's mean over its replicates, degrees of freedom of their sum).

    Welch and Satterthwaite: a few uncertain rows among many certain ones have the freedom of the few. With v the
    variances, (R+1) (sum v)^2 / sum v^2 - 2 puts unbiased estimates of (sum V)^2 and sum V^2 into their formula: the
    plain one, (R-1) (sum v)^2 / sum v^2, tends to S/3 for S equal rows of two replicates, not to S.
    """
    replicates = nats.shape[1]
    variances = nats.var(-1) / replicates if replicates > 1 else torch.zeros(len(nats), dtype=nats.dtype)
    total, squares = float(variances.sum()), float(variances.square().sum())
    return variances, (replicates + 1) * total**2 / squares - 2 if squares > 0 else 0.0


def ratio_variance(total: Float[Tensor, " C"], size: Float[Tensor, " C"]) -> float:
    """Variance of sum(total) from one of C independent parts to the next, at a fixed sum(size): a ratio estimator's.

    The jackknife's, (C-1)/C sum_c ((total_c - rate size_c) / (1 - share_c))^2: a part that holds much of the size
    draws the rate towards its own, and its residual is the smaller for it. nan for one part.
    """
    count, residual = len(total), total - total.sum() / size.sum() * size
    return float((residual / (1 - size / size.sum())).square().sum()) * (count - 1) / count if count > 1 else math.nan


def _clustered(nats: Float[Tensor, " S"], tokens: Int[Tensor, " S"], clusters: Int[Tensor, " S"], mc: float) -> float:
    """Standard error of the total from document to document, at a fixed number of tokens, the share of the maskings
    (`mc`, a variance) taken out.
    """
    count = int(clusters.max()) + 1
    total = nats.new_zeros(count).index_add(0, clusters, nats)
    size = nats.new_zeros(count).index_add(0, clusters, tokens.to(nats.dtype))
    variance = ratio_variance(total, size)
    return math.sqrt(max(0.0, variance - mc)) if math.isfinite(variance) else math.nan
