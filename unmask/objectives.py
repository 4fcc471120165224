"""Losses that are estimators: each returns, for every sequence, an unbiased estimate in nats of (a bound on) -log
p(x_0).

The four denoising losses of RADD (arXiv 2406.03736, section 3.3 and appendix; docs/theory.md) draw a level, mask at
that level, and weigh the cross entropy of what is masked. Their expectations are one and the same bound; they differ
in variance.

The level comes from a uniform u of the caller, who may stratify it. Independent masks weighted by 1/lambda have
infinite variance under a uniform level (E[X^2] contains the integral of L/lambda), so t and lambda are drawn as
u^power with the density's inverse in the weight: power 2 makes every moment that matters finite and needs no clip,
hence no bias.
"""

from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from unmask.corruption import LogLinear, Schedule, mask_each, mask_exactly, masking_law, require_falling
from unmask.draws import log_probabilities, sent, widest
from unmask.network import Nats, Network, Target, Then, require_width


class Corruption(NamedTuple):
    """One draw of the forward process: which positions are masked, and the weight of their cross entropy."""

    masked: Bool[Tensor, "B L"]
    weight: Float[Tensor, " B"]
    level: Float[Tensor, " B"]
    """Probability of a mask, for networks that want time."""


class Denoising(Protocol):
    """An objective that masks and scores what it masked; `noise` are uniforms in [0, 1), float64."""

    def corrupt(
        self, maskable: Bool[Tensor, "B L"], u: Float[Tensor, " B"], noise: Float[Tensor, "B L"]
    ) -> Corruption: ...


@dataclass(frozen=True)
class ScoreEntropy:
    """`then` that reads minus the score-entropy term of a score network: -(Z - 1 - logit_target)."""

    ids: Int[Tensor, " N"]
    vocab: int

    def __call__(self, logits: Float[Tensor, "n V"], which: slice) -> Float[Tensor, " n"]:
        require_width(logits, self.vocab)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        ids = sent(self.ids[which], logits.device)
        return logits.gather(-1, ids[:, None]).squeeze(-1) + 1 - logits.logsumexp(-1).exp()


def token_nats(
    network: Network,
    tokens: Int[Tensor, "B L"],
    scored: Bool[Tensor, "B L"],
    *,
    canvas: Int[Tensor, "B L"] | None = None,
    level: Float[Tensor, " B"] | None = None,
    rows: Int[Tensor, " B"] | None = None,
    reading: type[Target] | type[ScoreEntropy] = Target,
) -> tuple[Int[Tensor, " N"], Float[Tensor, " N"]]:
    """(flat index, -log q(token | canvas)) of every scored position, in nats, float64; `canvas` defaults to tokens."""
    at = scored.flatten().nonzero().squeeze(-1)
    then: Then = reading(tokens.flatten()[at], network.vocab)
    value = network(tokens if canvas is None else canvas, at, then=then, rows=rows, level=level)
    assert isinstance(value, Tensor)
    return at, -value.to(widest(value.device))


def cross_entropy(
    network: Network,
    tokens: Int[Tensor, "B L"],
    scored: Bool[Tensor, "B L"],
    *,
    weight: Float[Tensor, " B"] | None = None,
    canvas: Int[Tensor, "B L"] | None = None,
    level: Float[Tensor, " B"] | None = None,
    rows: Int[Tensor, " B"] | None = None,
    reading: type[Target] | type[ScoreEntropy] = Target,
) -> Float[Tensor, " B"]:
    """Each row's `weight` (1) times its sum of -log q(token | canvas) over the scored positions, in float64."""
    at = scored.flatten().nonzero().squeeze(-1)
    row = at // tokens.shape[-1]
    weight = torch.ones(len(tokens), dtype=torch.float64, device=row.device) if weight is None else weight
    then = Nats(reading(tokens.flatten()[at], network.vocab), weight[row], row, len(tokens))
    value = network(tokens if canvas is None else canvas, at, then=then, rows=rows, level=level)
    assert isinstance(value, Tensor)
    return value.sum(0)


def denoise(
    self: Denoising,
    network: Network,
    x_0: Int[Tensor, "B L"],
    maskable: Bool[Tensor, "B L"],
    u: Float[Tensor, " B"],
    generator: torch.Generator | Float[Tensor, "B L"],
) -> Float[Tensor, " B"]:
    """Corrupt once and weigh the cross entropy of what is masked: an unbiased estimate of the bound, in nats.

    The noise comes from a generator, or is given: uniforms in [0, 1), float64.
    """
    if isinstance(generator, torch.Generator):
        generator = torch.rand(maskable.shape, generator=generator, dtype=torch.float64, device=generator.device)
    return weighted(network, x_0, self.corrupt(maskable, u, generator), reading_of(self, network))


def reading_of(objective: Denoising, network: Network) -> type[Target] | type[ScoreEntropy]:
    """What an objective reads of the logits: cross entropy, but for the score entropy of a score network."""
    return ScoreEntropy if isinstance(objective, TimeDSE) and not network.normalised else Target


def weighted(
    network: Network,
    x_0: Int[Tensor, "B L"],
    corruption: Corruption,
    reading: type[Target] | type[ScoreEntropy] = Target,
) -> Float[Tensor, " B"]:
    """The estimate that one given corruption makes: weight x cross entropy at its masked positions, in nats."""
    require_bidirectional(network)
    masked, weight, level = corruption
    canvas = x_0.masked_fill(masked, network.mask_id)
    return cross_entropy(network, x_0, masked, weight=weight, canvas=canvas, level=level, reading=reading)


def require_bidirectional(network: Network) -> None:
    """Raises ValueError for a causal network, which cannot be asked what stands at a mask."""
    if network.causal:
        raise ValueError("a denoising loss needs a bidirectional network; train a causal one with NextToken")


def require_causal(network: Network) -> None:
    """Raises ValueError for a network that sees the token it predicts."""
    if not network.causal:
        raise ValueError("NextToken needs a causal network: a bidirectional one would see the token it predicts")


@dataclass(frozen=True)
class AnyOrder:
    """k-DCE = any-order autoregression: E_k (n/k) sum_masked -log q, exactly k of the n maskable positions masked.

    k is drawn with probability proportional to k^-importance and the weight is 1 / (k P(k)): any exponent is unbiased
    (docs/theory.md). `unmask train tiny` and `log_likelihood` take 0.5, which has less variance.
    """

    importance: float = 0.0
    """Exponent of the law of k, 0 to 2; 0 is the published uniform one."""

    def __post_init__(self) -> None:
        if not 0 <= self.importance <= 2:
            raise ValueError(f"AnyOrder: importance {self.importance} must be in [0, 2]")

    def corrupt(self, maskable: Bool[Tensor, "B L"], u: Float[Tensor, " B"], noise: Float[Tensor, "B L"]) -> Corruption:
        """Exact counts. A row without maskable positions gets k = 0 and weight 0."""
        n = maskable.sum(-1)
        counts = torch.arange(1, maskable.shape[-1] + 1, dtype=torch.float64, device=maskable.device)
        mass = counts**-self.importance
        total = torch.cat([mass.new_zeros(1), mass.cumsum(0)])
        k = torch.searchsorted(total, u.double() * total[n], right=True).clamp(max=n)
        weight = total[n] / (k * mass[(k - 1).clamp(min=0)]).clamp(min=1e-300)
        weight = torch.where(n > 0, weight, 0.0)
        return Corruption(mask_exactly(maskable, k, noise), weight, k / n.clamp(min=1))

    __call__ = denoise


@dataclass(frozen=True)
class LambdaDCE:
    """lambda-DCE: E_lambda (1/lambda) sum_masked -log q, each position masked with probability lambda = u^power."""

    power: float = 2.0
    """The level is u^power, power 1 to 8; 1 is the published uniform one, whose variance is infinite."""

    def __post_init__(self) -> None:
        _require_power(self.power)

    def corrupt(self, maskable: Bool[Tensor, "B L"], u: Float[Tensor, " B"], noise: Float[Tensor, "B L"]) -> Corruption:
        """Independent masks; weight (1/lambda) (d lambda/du) = power / u. At u = 0 nothing is masked."""
        level = u.double() ** self.power
        weight = torch.where(level > 0, self.power / u.double().clamp(min=1e-300), 0.0)
        return Corruption(mask_each(maskable, level, noise), weight, level)

    __call__ = denoise


@dataclass(frozen=True)
class TimeDCE:
    """t-DCE: E_t [-alpha'(t) / (1 - alpha(t))] sum_masked -log q, at t = u^power on any noise schedule."""

    schedule: Schedule = field(default_factory=LogLinear)
    power: float = 2.0
    """The time is u^power, power 1 to 8; 1 is the published uniform one."""

    def __post_init__(self) -> None:
        _require_power(self.power)
        require_falling(self.schedule)

    def corrupt(self, maskable: Bool[Tensor, "B L"], u: Float[Tensor, " B"], noise: Float[Tensor, "B L"]) -> Corruption:
        """Independent masks at probability 1 - alpha(t), alpha rescaled to [0, 1] (see `masking_law`)."""
        u = u.double()
        level, rate = masking_law(self.schedule, u**self.power)
        slope = self.power * u ** (self.power - 1)
        weight = torch.where(level > 0, rate * slope / level.clamp(min=1e-300), 0.0)
        return Corruption(mask_each(maskable, level, noise), weight, level)

    __call__ = denoise


@dataclass(frozen=True)
class TimeDSE:
    """t-DSE, denoising score entropy: E_t sigma(t) sum_masked [ sum_v s_v - r log s_x0 + K(r) ], K(a) = a (log a - 1).

    r = alpha / (1 - alpha) and s = r exp(logits), so each masked term is sigma r (Z - 1 - logit_x0) with Z = sum_v
    exp(logit_v), and sigma r is t-DCE's weight. For a normalised network Z = 1 and the term is exactly -log q: it is
    then computed so, since V exponentials that cancel only add rounding. For score networks (SEDD) Z differs from 1
    and the loss is the larger.
    """

    schedule: Schedule = field(default_factory=LogLinear)
    power: float = 2.0
    """The time is u^power, power 1 to 8; 1 is the published uniform one."""

    def __post_init__(self) -> None:
        _require_power(self.power)
        require_falling(self.schedule)

    def corrupt(self, maskable: Bool[Tensor, "B L"], u: Float[Tensor, " B"], noise: Float[Tensor, "B L"]) -> Corruption:
        """As t-DCE."""
        return TimeDCE(self.schedule, self.power).corrupt(maskable, u, noise)

    __call__ = denoise


@dataclass(frozen=True)
class NextToken:
    """-log p(x_0) of a causal network by the chain rule, exactly: no level is drawn and `u`, `generator` are not
    used.
    """

    def __call__(
        self,
        network: Network,
        x_0: Int[Tensor, "B L"],
        maskable: Bool[Tensor, "B L"],
        u: Float[Tensor, " B"] | None = None,
        generator: torch.Generator | Float[Tensor, "B L"] | None = None,
    ) -> Float[Tensor, " B"]:
        require_causal(network)
        return cross_entropy(network, x_0, maskable)


Objective = AnyOrder | LambdaDCE | TimeDCE | TimeDSE | NextToken


def concrete_score(network: Network, x_t: Int[Tensor, "B L"], alpha: Float[Tensor, " B"]) -> Float[Tensor, "N V"]:
    """log p_t(x with token v written on a masked position) / p_t(x_t), at every masked position of x_t in order.

    = log(alpha / (1 - alpha)) + log q(v | visible tokens): RADD's Theorem 1. Time enters as a factor only, but for a
    network that is told the level, which is told 1 - alpha. Raises ValueError for a causal network.
    """
    require_bidirectional(network)
    at = (x_t == network.mask_id).flatten().nonzero().squeeze(-1)
    logits = network(x_t, at, level=1 - alpha)
    assert isinstance(logits, Tensor)
    log_q = log_probabilities(logits) if network.normalised else logits
    ratio = (alpha / (1 - alpha)).log()
    return ratio.to(log_q)[at.to(log_q.device) // x_t.shape[-1]][:, None] + log_q


def _require_power(power: float) -> None:
    if not 1 <= power <= 8:
        raise ValueError(f"power {power} must be in [1, 8]: below 1 the estimate misses the small levels")
