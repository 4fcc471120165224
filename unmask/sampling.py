"""Sampling: where to write is planned first, what to write is drawn from the network.

A time-free network's prediction depends on the canvas alone, and in tau-leaping, any-order and left-to-right
sampling WHERE to write next does not depend on WHAT was written. So a policy draws the whole plan of a sequence
before the first call, and three things follow, all exact: steps at which nothing changes cost nothing (RADD's cache,
without a cache), rows never wait for each other, and the output layer runs only where a token is drawn.

A canvas holds tokens, and `mask_id` where text is wanted: free generation, a prompt, prefix and suffix and a form
with blanks are all canvases. A policy is a frozen dataclass with `plan` and `exact_for`; that is the whole of what a
new one needs.
"""

import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from unmask.corruption import LogLinear, Schedule, order_of
from unmask.draws import LENGTH, PLAN, TOKEN, categorical, keyed_uniforms, widest
from unmask.network import Network


class Policy(Protocol):
    """Decides where to write next, by drawing a plan."""

    @property
    def exact_for(self) -> str:
        """The law that samples follow exactly when tokens are drawn at temperature 1."""
        ...

    def plan(self, open_: Bool[Tensor, "B L"], u: Float[Tensor, "B L"]) -> Int[Tensor, "B L"]:
        """The step at which each open position is revealed; `u` are uniforms in [0, 1), one a position."""
        ...


@dataclass(frozen=True)
class Tweedie:
    """Tau-leaping: from t to s each masked position is revealed with probability (alpha_s - alpha_t) / (1 - alpha_t).

    The last step reveals what is left (docs/theory.md). NFE: the steps at which something is revealed, not `steps`.
    """

    steps: int = 64
    schedule: Schedule = field(default_factory=LogLinear)

    def __post_init__(self) -> None:
        _at_least_one(self, "steps")

    @property
    def exact_for(self) -> str:
        return f"tau-leaping with {self.steps} steps, which tends to the random-order law as steps grow"

    def plan(self, open_: Bool[Tensor, "B L"], u: Float[Tensor, "B L"]) -> Int[Tensor, "B L"]:
        t, s = _grid(self.steps)
        alpha_t, alpha_s = self.schedule.alpha(t), self.schedule.alpha(s)
        return _by_hazard((alpha_s - alpha_t) / (1 - alpha_t), open_, u)


@dataclass(frozen=True)
class Euler:
    """Tau-leaping by Euler's rule: probability (t - s) (-alpha'_t) / (1 - alpha_t), clamped to [0, 1].

    The last step reveals what is left. Under the log-linear schedule this is Tweedie's rate.
    """

    steps: int = 64
    schedule: Schedule = field(default_factory=LogLinear)

    def __post_init__(self) -> None:
        _at_least_one(self, "steps")

    @property
    def exact_for(self) -> str:
        return f"Euler tau-leaping with {self.steps} steps, which tends to the random-order law as steps grow"

    def plan(self, open_: Bool[Tensor, "B L"], u: Float[Tensor, "B L"]) -> Int[Tensor, "B L"]:
        t, s = _grid(self.steps)
        return _by_hazard((t - s) * self.schedule.rate(t) / (1 - self.schedule.alpha(t)), open_, u)


@dataclass(frozen=True)
class RandomOrder:
    """Any-order sampling, `tokens` a step in a uniformly random order; with one it is first hitting and exact.

    Only the order of the hitting times matters to a time-free network (docs/theory.md), so no time is simulated.
    """

    tokens: int = 1

    def __post_init__(self) -> None:
        _at_least_one(self, "tokens")

    @property
    def exact_for(self) -> str:
        return _one_or_parallel("the random-order law", self.tokens)

    def plan(self, open_: Bool[Tensor, "B L"], u: Float[Tensor, "B L"]) -> Int[Tensor, "B L"]:
        return order_of(open_, u) // self.tokens


@dataclass(frozen=True)
class LeftToRight:
    """Open positions from the left, `tokens` a step: the order a causal network must be sampled in."""

    tokens: int = 1

    def __post_init__(self) -> None:
        _at_least_one(self, "tokens")

    @property
    def exact_for(self) -> str:
        return _one_or_parallel("the left-to-right chain rule", self.tokens)

    def plan(self, open_: Bool[Tensor, "B L"], u: Float[Tensor, "B L"]) -> Int[Tensor, "B L"]:
        return (open_.long().cumsum(-1) - 1) // self.tokens


@dataclass(frozen=True)
class FixedOrder:
    """Open positions in a stated order of positions, `tokens` a step; positions not listed follow, from the left.

    `order=(-1, -2)` counts from the right end, so `order=tuple(range(-1, -L - 1, -1))` writes backward.
    """

    order: tuple[int, ...] = ()
    tokens: int = 1

    def __post_init__(self) -> None:
        _at_least_one(self, "tokens")

    @property
    def exact_for(self) -> str:
        return _one_or_parallel("the chain rule in the stated order", self.tokens)

    def plan(self, open_: Bool[Tensor, "B L"], u: Float[Tensor, "B L"]) -> Int[Tensor, "B L"]:
        length = open_.shape[-1]
        listed = [position % length for position in self.order if -length <= position < length]
        if len(listed) != len(self.order) or len(set(listed)) != len(listed):
            raise ValueError(f"FixedOrder {self.order}: positions must be distinct and lie in the canvas of {length}")
        priority = torch.arange(length, dtype=torch.float64) + length
        priority[torch.tensor(listed, dtype=torch.long)] = torch.arange(len(listed), dtype=torch.float64)
        return order_of(open_, priority.expand(open_.shape)) // self.tokens


Planned = Tweedie | Euler | RandomOrder | LeftToRight | FixedOrder


@dataclass(frozen=True)
class Draw:
    """How a token is drawn from a prediction. Defaults draw from the network's own law; anything else is another law.

    temperature: logits are divided by it; 0 takes the most probable token. top_k: keep the k most probable. top_p:
    keep the fewest most probable tokens whose mass reaches p. Filters apply after the temperature, top_k first.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature {self.temperature} must be 0 or more, and finite")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k {self.top_k} must be at least 1")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p {self.top_p} must be in (0, 1]")

    def __call__(
        self, logits: Float[Tensor, "N V"], u: Float[Tensor, " N"]
    ) -> tuple[Int[Tensor, " N"], Float[Tensor, " N"]]:
        """(token, its log-probability under the network's own law), one uniform a row; exact by inverse CDF in
        float64.
        """
        tokens = logits.argmax(-1) if self.temperature == 0 else categorical(self.adjust(logits), u)
        wide = logits.to(widest(logits.device))
        return tokens, wide.gather(-1, tokens[:, None]).squeeze(-1) - wide.logsumexp(-1)

    def adjust(self, logits: Float[Tensor, "N V"]) -> Float[Tensor, "N V"]:
        """Logits of the law that tokens are drawn from, in float64."""
        logits = logits.to(widest(logits.device))
        logits = (logits - logits.amax(-1, keepdim=True)) / self.temperature  # the largest is 0: no overflow
        if self.top_k is not None and self.top_k < logits.shape[-1]:
            least = logits.topk(self.top_k, -1).values[:, -1:]
            logits = logits.masked_fill(logits < least, -torch.inf)
        if self.top_p is not None and self.top_p < 1:
            ordered, index = logits.sort(-1, descending=True)
            before = ordered.softmax(-1).cumsum(-1).roll(1, -1)
            before[:, 0] = 0  # the most probable token stays, whatever p
            drop = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, index, before >= self.top_p)
            logits = logits.masked_fill(drop, -torch.inf)
        return logits


@dataclass(frozen=True)
class Step:
    """What one network call wrote: flat arrays over the N positions revealed, on the host."""

    call: int
    sequence: Int[Tensor, " N"]
    """Index into the canvases given to `sample`."""
    position: Int[Tensor, " N"]
    token: Int[Tensor, " N"]
    confidence: Float[Tensor, " N"]
    """Probability of the token under the network's law."""


@dataclass(frozen=True)
class Samples:
    """Finished sequences, and what each cost."""

    tokens: list[Int[Tensor, " L"]]
    nfe: Int[Tensor, " S"]
    """Network evaluations of each sequence: the rows run for it."""
    calls: int
    """Batched network calls."""
    reveal: list[Int[Tensor, " L"]]
    """The evaluation, counted from 0 within its sequence, at which each position was written; -1 where given."""
    confidence: list[Float[Tensor, " L"]]
    """Probability of each written token under the network's law; 1 where given."""


def sample(
    network: Network,
    canvases: Sequence[Int[Tensor, " L"]] | Int[Tensor, "S L"],
    policy: Policy | None = None,
    *,
    draw: Draw | None = None,
    seed: int = 0,
    sequences: Sequence[int] | None = None,
    batch: int = 16,
    on_step: Callable[[Step], None] | None = None,
) -> Samples:
    """Fill the open positions of every canvas by a policy (default RandomOrder(): exact for the random-order law).

    `sequences` number the canvases (default 0, 1, ...): a sequence is the same under (seed, number) in whatever
    batch it runs. `on_step` is told of each call. Raises ValueError for an empty canvas, or a policy that a causal
    network cannot follow.
    """
    policy, draw = policy or RandomOrder(), draw or Draw()
    numbers = list(range(len(canvases))) if sequences is None else list(sequences)
    if len(numbers) != len(canvases):
        raise ValueError(f"{len(numbers)} sequence numbers for {len(canvases)} canvases: give one each")
    if batch < 1:
        raise ValueError(f"batch {batch} must be at least 1")
    work = [_plan(network, canvases, index, policy, seed, numbers) for index in _same_length(canvases)]
    calls = 0
    for group in work:
        for step in _run(network, group, draw, batch, calls):
            calls += 1
            if on_step is not None:
                on_step(step)
    rows = sorted((int(i), group, j) for group in work for j, i in enumerate(group.index))
    nfe = torch.tensor([int(group.nfe[j]) for _, group, j in rows], dtype=torch.long)
    columns = ([getattr(group, name)[j] for _, group, j in rows] for name in ("tokens", "reveal", "confidence"))
    tokens, reveal, confidence = columns
    return Samples(tokens, nfe, calls, reveal, confidence)


@dataclass(frozen=True)
class _Work:
    """Sequences of one length; `tokens` and `confidence` are written in place."""

    index: Int[Tensor, " S"]
    tokens: Int[Tensor, "S L"]
    reveal: Int[Tensor, "S L"]
    nfe: Int[Tensor, " S"]
    uniforms: Float[Tensor, "S L"]
    confidence: Float[Tensor, "S L"]


def _same_length(canvases: Sequence[Tensor] | Tensor) -> list[list[int]]:
    groups: dict[int, list[int]] = {}
    for i, canvas in enumerate(canvases):
        if canvas.dim() != 1 or not len(canvas):
            raise ValueError(f"a canvas is one row of at least one token, not a tensor of shape {tuple(canvas.shape)}")
        groups.setdefault(len(canvas), []).append(i)
    return [groups[length] for length in sorted(groups)]


def _plan(
    network: Network,
    canvases: Sequence[Tensor] | Tensor,
    index: list[int],
    policy: Policy,
    seed: int,
    numbers: list[int],
) -> _Work:
    tokens = torch.stack([canvases[i].detach().to("cpu", torch.long) for i in index])
    open_ = tokens == network.mask_id
    outside = tokens[~open_ & ((tokens < 0) | (tokens >= network.vocab))]
    if len(outside):
        raise ValueError(f"token {int(outside[0])} of a canvas is not in the network's vocabulary of {network.vocab}")
    keys = [numbers[i] for i in index]
    reveal = draw_plan(policy, open_, seed=seed, sequences=keys)
    if network.causal:
        _require_causal(reveal, open_, policy)
    uniforms = keyed_uniforms(seed, keys, tokens.shape[1:], TOKEN)
    return _Work(torch.tensor(index), tokens, reveal, nfe_of(reveal), uniforms, torch.ones_like(uniforms))


def draw_plan(
    policy: Policy, open_: Bool[Tensor, "B L"], *, seed: int = 0, sequences: Sequence[int] | None = None
) -> Int[Tensor, "B L"]:
    """The evaluation, 0 first, at which each open position is revealed, -1 elsewhere; depends on (seed, number) alone.

    Steps at which a row reveals nothing are left out, so a row's evaluations are counted without gaps.
    """
    numbers = range(len(open_)) if sequences is None else sequences
    steps = policy.plan(open_, keyed_uniforms(seed, numbers, open_.shape[1:], PLAN))
    return without_gaps(steps.masked_fill(~open_, -1))


def without_gaps(plan: Int[Tensor, "B L"]) -> Int[Tensor, "B L"]:
    """The plan with its distinct steps numbered 0, 1, ... in each row; negative steps, of what is given, become -1."""
    ordered, index = plan.clamp(min=-1).sort(dim=-1)
    new = torch.cat([ordered[:, :1] >= 0, ordered[:, 1:] > ordered[:, :-1]], -1).long().cumsum(-1)
    return torch.empty_like(plan).scatter_(-1, index, new - 1)


def nfe_of(plan: Int[Tensor, "B L"]) -> Int[Tensor, " B"]:
    """Network evaluations of each row of a plan without gaps."""
    return plan.amax(-1) + 1


def _require_causal(plan: Int[Tensor, "B L"], open_: Bool[Tensor, "B L"], policy: Policy) -> None:
    suffix = (open_.long().diff(dim=-1) < 0).any()
    falling = ((plan.diff(dim=-1) <= 0) & open_[:, 1:]).any()
    if bool(open_[:, 0].any() | suffix | falling):
        raise ValueError(
            f"{type(policy).__name__}: a causal network writes one token at a time from the left, after a given "
            "beginning and without a suffix: use LeftToRight() and a canvas that is open at its end only"
        )


def _run(network: Network, work: _Work, draw: Draw, batch: int, call: int) -> Iterator[Step]:
    """Every row at its own next evaluation; a finished row's slot goes to the next sequence, so calls stay full."""
    waiting = iter(work.nfe.nonzero().squeeze(-1).tolist())
    row, turn = torch.empty(0, dtype=torch.long), torch.empty(0, dtype=torch.long)
    while True:
        fresh = torch.tensor(list(itertools.islice(waiting, batch - len(row))), dtype=torch.long)
        row, turn = torch.cat([row, fresh]), torch.cat([turn, torch.zeros_like(fresh)])
        if not len(row):
            return
        yield _reveal(network, work, row, turn, draw, call)
        call += 1
        turn = turn + 1
        going = turn < work.nfe[row]
        row, turn = row[going], turn[going]


def _reveal(
    network: Network, work: _Work, row: Int[Tensor, " R"], turn: Int[Tensor, " R"], draw: Draw, call: int
) -> Step:
    """One call: `row` are run, each at its evaluation `turn`; tokens are drawn where their plan says, and nowhere
    else.
    """
    now = work.reveal[row] == turn[:, None]
    slot, position = now.nonzero(as_tuple=True)
    written = row[slot]
    u = work.uniforms[written, position]
    at = slot * work.tokens.shape[1] + position
    with torch.inference_mode():
        drawn = network(work.tokens[row], at, then=lambda logits, which: draw(logits, u[which]), rows=work.index[row])
    token, log_p = (part.cpu() for part in drawn)
    confidence = log_p.double().exp()
    work.tokens[written, position] = token
    work.confidence[written, position] = confidence
    return Step(call, work.index[written], position, token, confidence)


def expected_nfe(steps: int, open_: int, schedule: Schedule | None = None) -> float:
    """E[NFE] of Tweedie tau-leaping: sum over steps of 1 - (1 - q_s)^n, q_s the chance to be revealed at step s.

    With the log-linear schedule T (1 - (1 - 1/T)^n) (docs/theory.md).
    """
    t, s = _grid(steps)
    schedule = schedule or LogLinear()
    alpha_t, alpha_s = schedule.alpha(t), schedule.alpha(s)
    cdf = _cdf((alpha_s - alpha_t) / (1 - alpha_t))
    q = cdf.diff(prepend=cdf.new_zeros(1))
    return float((1 - (1 - q) ** open_).sum())


BLANK = re.compile(r"\{\{\s*(\d+)\s*(?:\.\.\s*(\d+)\s*)?\}\}")


def template(
    text: str,
    encode: Callable[[str], list[int]],
    mask_id: int,
    *,
    begin: Sequence[int] = (),
    seed: int = 0,
    sequence: int = 0,
) -> Int[Tensor, " L"]:
    """The canvas of a text with blanks: `{{8}}` is eight open tokens, `{{2..12}}` a uniformly drawn number of them.

    The text between blanks is encoded piece by piece; `begin` goes in front. Raises ValueError for a blank that asks
    for nothing or whose bounds are reversed.
    """
    canvas, end = list(begin), 0
    lengths = keyed_uniforms(seed, [sequence], (len(BLANK.findall(text)),), LENGTH)[0].tolist()
    for blank, u in zip(BLANK.finditer(text), lengths, strict=True):
        least, most = int(blank[1]), int(blank[2] or blank[1])
        if not 1 <= least <= most:
            raise ValueError(f"blank {blank[0]}: write {{{{8}}}} for eight tokens or {{{{2..12}}}} for two to twelve")
        canvas += encode(text[end : blank.start()]) if blank.start() > end else []
        canvas += [mask_id] * (least + int(u * (most - least + 1)))
        end = blank.end()
    canvas += encode(text[end:]) if end < len(text) else []
    return torch.tensor(canvas, dtype=torch.long)


def _grid(steps: int) -> tuple[Float[Tensor, " T"], Float[Tensor, " T"]]:
    """(t, s) of each step from t = 1 down to s = 0, equally spaced."""
    ends = 1 - torch.arange(steps + 1, dtype=torch.float64) / steps
    return ends[:-1], ends[1:]


def _cdf(hazard: Float[Tensor, " T"]) -> Float[Tensor, " T"]:
    """P(revealed by each step) from the chance at each step given masked before; the last step reveals what is left."""
    cdf = 1 - (1 - hazard.clamp(0, 1)).cumprod(0)
    cdf[-1] = 1.0
    return cdf


def _by_hazard(hazard: Float[Tensor, " T"], open_: Bool[Tensor, "B L"], u: Float[Tensor, "B L"]) -> Int[Tensor, "B L"]:
    return torch.searchsorted(_cdf(hazard), u.contiguous(), right=True)


def _one_or_parallel(law: str, tokens: int) -> str:
    return law if tokens == 1 else f"{law} with {tokens} tokens a step drawn independently of each other"


def _at_least_one(policy: Tweedie | Euler | RandomOrder | LeftToRight | FixedOrder, name: str) -> None:
    value = getattr(policy, name)
    if value < 1:
        raise ValueError(f"{type(policy).__name__}: {name} {value} must be at least 1")
