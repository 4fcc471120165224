"""Tricks on a network, each a network again: guidance, a bias on tokens, texts that share a sequence kept apart. And
a module of anyone's made one.

What wraps a network changes its law, so samplers, likelihoods and constraints apply to the changed law unchanged.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from unmask.conditioned import Conditioned
from unmask.draws import log_probabilities, sent
from unmask.network import SAME, Network, Reading, Then, evaluations, read_out, remembering, require_something_left


@dataclass(frozen=True, eq=False)
class Plain:
    """A module that says `module(tokens Int[B L]) -> logits Float[B L V]`, as a network; gradients pass through.

    `vocab` is V, the real tokens alone: logits as wide as that, or a ValueError says so where they are read. A causal
    module's logits at a position are of the token behind it, as is the custom; a bidirectional one's are of the
    position itself. An answer with `.logits`, as the models of transformers give, is taken as these. All logits
    of a call exist at once, which the package's own network avoids.
    """

    network: nn.Module
    vocab: int
    mask_id: int
    causal: bool = False
    normalised = True

    def __call__(
        self,
        tokens: Int[Tensor, "B L"],
        at: Int[Tensor, " N"],
        *,
        then: Then | None = None,
        rows: Int[Tensor, " B"] | None = None,
        level: Float[Tensor, " B"] | None = None,
    ) -> Reading:
        """See `unmask.network.Network`. Raises ValueError where a causal module is asked for a first position."""
        if self.causal:
            require_something_left(tokens, at)
            at = at - 1
        weight = next(self.network.parameters(), tokens)
        answer = self.network(tokens.to(weight.device))
        logits = getattr(answer, "logits", answer).flatten(0, 1)
        at = sent(at, logits.device)
        return read_out(lambda which: logits[at[which]], len(at), self.vocab, then)


@dataclass(frozen=True)
class Guided:
    """Classifier-free guidance: log q~ = (1 + w) log q(. | c, x_t) - w log q(. | m, x_t), renormalised over V.

    m is the condition with every token replaced, by default by the mask: the unsupervised guidance of SMDM (arXiv
    2410.18514, section 4), which needs no paired data and pairs a condition with masks of the same length. A network
    fine-tuned with the condition dropped (standard guidance) takes the same wrapper, and `absent` where it was dropped
    for another token. Each row runs twice, in one call. Weight 0 is no guidance, -1 leaves the condition out
    of what is possible under it.

    The commands guide by what a canvas gives behind its begin token, which is `Guided.of(network, canvases, weight)`.
    A condition that holds the begin token too is another law: the prediction without it loses that token as well.

    A token that is impossible with the condition or without it keeps its conditional probability. Raises ValueError
    for a causal network without `absent`, which cannot read a mask, for a score network, which has no law to
    combine, and for sequences that have no condition of their own, of their length.
    """

    network: Network
    condition: Sequence[Bool[Tensor, " L"]] | Bool[Tensor, "S L"]
    """Which positions of each sequence are its condition; a call's `rows` are indices into it."""
    weight: float
    absent: int | None = None
    vocab, mask_id, causal, normalised = SAME

    def __post_init__(self) -> None:
        if not -1 <= self.weight < float("inf"):
            raise ValueError(f"guidance weight {self.weight} must be -1 or more, and finite")
        if not self.network.normalised:
            raise ValueError("guidance needs a network with normalised predictions")
        if self.network.causal and self.absent is None:
            raise ValueError("guidance masks the condition, which a causal network cannot read: name an `absent` token")
        readable = range(self.network.vocab + (not self.network.causal and self.network.mask_id == self.network.vocab))
        if self.absent is not None and self.absent not in readable:
            raise ValueError(f"guidance: absent {self.absent} is no token that the network reads: 0..{readable[-1]}")

    @classmethod
    def of(
        cls,
        network: Network,
        canvases: Sequence[Int[Tensor, " L"]] | Int[Tensor, "S L"],
        weight: float,
        absent: int | None = None,
    ) -> "Guided":
        """Guided by what each canvas gives behind its begin token."""
        given = [canvas != network.mask_id for canvas in canvases]
        return cls(network, [each & (torch.arange(each.numel()) > 0).to(each.device) for each in given], weight, absent)

    @property
    def evaluations(self) -> int:
        """Rows run for one row of a call."""
        return 2 * evaluations(self.network)

    def cached(self, slots: int, length: int) -> "Guided":
        """See `unmask.network.remembering`: a row has two slots, with its condition and without."""
        return replace(self, network=remembering(self.network, 2 * slots, length))

    def __call__(
        self,
        tokens: Int[Tensor, "B L"],
        at: Int[Tensor, " N"],
        *,
        then: Then | None = None,
        rows: Int[Tensor, " B"] | None = None,
        level: Float[Tensor, " B"] | None = None,
    ) -> Reading:
        """See `unmask.network.Network`; the two predictions of a position are read side by side."""
        rows = torch.arange(len(tokens)) if rows is None else rows
        condition = torch.stack([self._of_row(i, tokens.shape[1]) for i in rows.tolist()]).to(tokens.device)
        dropped = torch.where(condition, self.mask_id if self.absent is None else self.absent, tokens)
        pairs = torch.stack([at, at + tokens.numel()], -1).flatten()

        def read(logits: Float[Tensor, "n2 V"], pair: slice) -> Reading:
            given, absent = log_probabilities(logits).unflatten(0, (-1, 2)).unbind(1)
            push = torch.where(absent.isfinite() & given.isfinite(), self.weight * (given - absent), 0.0)
            guided = log_probabilities(given + push)
            return guided if then is None else then(guided, slice(pair.start // 2, pair.stop // 2))

        return self.network(
            torch.cat([tokens, dropped]),
            pairs,
            then=read,
            rows=torch.cat([rows, rows]),
            level=None if level is None else torch.cat([level, level]),
        )

    def _of_row(self, row: int, length: int) -> Bool[Tensor, " L"]:
        if row >= len(self.condition):
            raise ValueError(f"guidance has {len(self.condition)} conditions and none for row {row}: give each row one")
        condition = self.condition[row]
        if condition.shape != (length,) or condition.dtype != torch.bool:
            found = f"{str(condition.dtype).removeprefix('torch.')} {list(condition.shape)}"
            raise ValueError(f"guidance condition {row} is {found}: give each row of the canvases one, bool [{length}]")
        return condition


@dataclass(frozen=True)
class Biased:
    """Logits with a bias, in nats, on some tokens: -inf bans a token, inf bans all but the tokens that have it.

    A token that must stand at one place is simply written there in the canvas.
    """

    network: Network
    bias: Mapping[int, float]
    vocab, mask_id, causal, normalised = SAME

    def __post_init__(self) -> None:
        outside = [token for token in self.bias if not 0 <= token < self.network.vocab]
        if outside:
            raise ValueError(f"bias on token {outside[0]}: the network's vocabulary has {self.network.vocab}")
        most = torch.finfo(torch.float32).max
        wrong = [value for value in self.bias.values() if not (abs(value) <= most or abs(value) == torch.inf)]
        if wrong:
            raise ValueError(f"bias {wrong[0]} must be a number of nats up to {most:.1e}, -inf or inf")
        if bool((self._vector() == -torch.inf).all()):
            raise ValueError("bias bans every token")

    @property
    def evaluations(self) -> int:
        return evaluations(self.network)

    def cached(self, slots: int, length: int) -> "Biased":
        """See `unmask.network.remembering`."""
        return replace(self, network=remembering(self.network, slots, length))

    def _vector(self) -> Float[Tensor, " V"]:
        vector = torch.zeros(self.network.vocab)
        for token, value in self.bias.items():
            vector[token] = value
        only = vector == torch.inf
        return torch.where(only, 0.0, -torch.inf) if bool(only.any()) else vector

    def __call__(
        self,
        tokens: Int[Tensor, "B L"],
        at: Int[Tensor, " N"],
        *,
        then: Then | None = None,
        rows: Int[Tensor, " B"] | None = None,
        level: Float[Tensor, " B"] | None = None,
    ) -> Reading:
        """See `unmask.network.Network`."""
        vector = self._vector()

        def read(logits: Float[Tensor, "n V"], which: slice) -> Reading:
            biased = logits + vector.to(logits.device, logits.dtype)
            return biased if then is None else then(biased, which)

        return self.network(tokens, at, then=read, rows=rows, level=level)


@dataclass(frozen=True)
class Apart:
    """A Transformer that predicts each position from the tokens of its own document alone, though several share a row.

    End tokens may be masked, so the network cannot find the edges by itself: they are handed over beside the tokens.
    Raises ValueError around what does not know them: another wrapper, or a network that is told the level.
    """

    network: Network
    """A Transformer, or a model of one."""
    segments: Int[Tensor, "S L"]
    """The document of each position of each sequence (`unmask.data.Packed.segments`); a call's `rows` are indices into
    it.
    """
    vocab, mask_id, causal, normalised = SAME

    def __post_init__(self) -> None:
        if isinstance(self.network, Guided | Biased | Apart | Counted):
            name = type(self.network).__name__
            raise ValueError(f"Apart goes around the model itself, others around it: {name}(Apart(model, …), …)")
        inside = getattr(self.network, "network", self.network)  # a Transformer, or what compiles or replicates one
        if isinstance(self.network, Plain) or isinstance(inside, Conditioned) or not isinstance(inside, nn.Module):
            raise ValueError(f"Apart is for a Transformer or a model of one: {type(self.network).__name__} is none")

    def __call__(
        self,
        tokens: Int[Tensor, "B L"],
        at: Int[Tensor, " N"],
        *,
        then: Then | None = None,
        rows: Int[Tensor, " B"] | None = None,
        level: Float[Tensor, " B"] | None = None,
    ) -> Reading:
        """See `unmask.network.Network`."""
        segments = self.segments if rows is None else self.segments[rows.cpu()]
        if segments.shape[0] != tokens.shape[0] or segments.shape[1] < tokens.shape[1]:
            raise ValueError(f"segments {tuple(self.segments.shape)} for tokens {tuple(tokens.shape)}: give one each")
        network: Callable[..., Reading] = getattr(self.network, "network", self.network)  # a model's own
        return network(tokens, at, then=then, rows=rows, level=level, segments=segments)


@dataclass(frozen=True)
class Counted:
    """A network (or a model) that counts the rows it runs; in all else what it wraps."""

    network: Any
    calls: list[int] = field(default_factory=list)
    """Rows of each call."""

    @property
    def ran(self) -> int:
        """Rows run."""
        return sum(self.calls)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "network":  # asked for of a copy that holds nothing yet
            raise AttributeError(name)
        return getattr(self.network, name)

    def cached(self, slots: int, length: int) -> "Counted":
        """See `unmask.network.remembering`; what the view runs is counted here."""
        return replace(self, network=remembering(self.network, slots, length))

    def __call__(
        self,
        tokens: Int[Tensor, "B L"],
        at: Int[Tensor, " N"],
        *,
        then: Then | None = None,
        rows: Int[Tensor, " B"] | None = None,
        level: Float[Tensor, " B"] | None = None,
    ) -> Reading:
        """See `unmask.network.Network`."""
        self.calls.append(len(tokens) * evaluations(self.network))
        return self.network(tokens, at, then=then, rows=rows, level=level)
