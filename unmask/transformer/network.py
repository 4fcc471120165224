"""The network itself: embedding, blocks and output layer, which answer as `unmask.network.Network` says."""

import math
from collections.abc import Iterable, Sequence
from functools import partial
from typing import cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from unmask import cpu
from unmask.cache import Attend, Cache
from unmask.draws import sent
from unmask.head import row_nats
from unmask.network import SAME, Nats, Network, Reading, Target, Then, read_out, require_something_left
from unmask.transformer.config import TransformerConfig
from unmask.transformer.layers import Block, embedding, norm, output_product
from unmask.transformer.rotary import frequencies, rotary_tables
from unmask.transformer.row import Row

PAIRS, SCORE = 5, 6.0  # of `look_at_neighbours`


class Transformer(nn.Module):
    """See the package's text; the call is `unmask.network.Network`'s.

    `seed` initialises the weights as the flavour's paper does, from a generator of its own; None leaves them on the
    meta device, without memory, for weights that are to be assigned (`load_state_dict(..., assign=True)`).

    A subclass may have blocks of its own: a `block` is made of the configuration and called as `Block` is. Its
    configuration `build`s it and counts its parameters and FLOPs.
    """

    normalised = True
    block: type[nn.Module] = Block

    def __init__(self, config: TransformerConfig, seed: int | None = 0) -> None:
        super().__init__()
        cpu.keep_freed()
        self.config = config
        self.vocab, self.mask_id, self.causal = config.vocab, config.mask, config.causal
        with torch.device("meta"):
            self.embedding = embedding(config.embedding_rows, config.width)
            self.blocks = nn.ModuleList(self.block(config) for _ in range(config.layers))
            self.norm = norm(config)
            self.output = None if config.tied else nn.Linear(config.width, config.vocab, config.flavour == "dit")
        self._rotary: dict[tuple[int, torch.device], tuple[Tensor, Tensor]] = {}
        if seed is not None:
            self.to_empty(device="cpu")
            self.initialise(torch.Generator().manual_seed(seed))

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """Draw the weights as the flavour's paper does, in place.

        llama (SMDM): normal, std sqrt(2 / (5 D)); what is added to the stream has std 1 / (sqrt(D) layers).
        dit (RADD's code): uniform within 1/sqrt(fan in), output layer zero, LayerNorm weight AND bias one.
        """
        config = self.config
        for name, parameter in self.named_parameters():
            leaf = name.rsplit(".", 2)[-2:]
            if "norm" in name:
                parameter.fill_(1.0)
            elif leaf == ["qkv", "bias"]:
                parameter.zero_()
            elif config.flavour == "llama":
                added = leaf[0] in ("project", "down")
                std = 1 / (math.sqrt(config.width) * config.layers) if added else math.sqrt(2 / (5 * config.width))
                parameter.normal_(0, std, generator=generator)
            elif leaf[0] == "output":
                parameter.zero_()
            else:
                fan_in = config.mlp_width if leaf[0] == "down" else config.width
                parameter.uniform_(-1 / math.sqrt(fan_in), 1 / math.sqrt(fan_in), generator=generator)
        if config.neighbours:
            look_at_neighbours(self)

    def hidden(
        self,
        tokens: Int[Tensor, "B L"],
        at: Int[Tensor, " N"] | None = None,
        *,
        rotary: tuple[Tensor, Tensor] | None = None,
        attends: Sequence[Attend] | None = None,
        seen: Bool[Tensor, "B 1 L L"] | None = None,
    ) -> Float[Tensor, "B L D"] | Float[Tensor, "N D"]:
        """The last layer's normalised state, before the output layer, at every position or at the flat ones `at`.

        The positions are 0..L-1 and see each other, unless their own rotary tables, what is `seen`, or each layer's
        attention say otherwise. What nothing reads any more is not computed: the last layer's MLP runs at `at` alone.
        """
        tokens = sent(tokens, self.embedding.weight.device)
        if self.causal:
            # A causal canvas may hold masks where nothing is written yet: no position left of them sees what stands in.
            tokens = tokens.masked_fill(tokens == self.mask_id, 0)
        x = self.embedding(tokens)
        rotary = rotary or self._tables(tokens.shape[1], x.device)
        read = [None] * (len(self.blocks) - 1) + [None if at is None else sent(at, x.device)]
        for block, attend, of in zip(self.blocks, attends or [None] * len(self.blocks), read, strict=True):
            x = block(x, rotary, attend, of, seen)
        return self.norm(x)

    def cached(self, slots: int, length: int) -> Network:
        """A view of the causal network that remembers up to `slots` rows of up to `length` tokens.

        A subclass remembers nothing, unless it says by a `cached` of its own that its blocks can do with the tokens
        that are new and what `attend` gives of the others.
        """
        return Cached(self, slots, length) if type(self) is Transformer else self

    def forward(
        self,
        tokens: Int[Tensor, "B L"],
        at: Int[Tensor, " N"],
        *,
        then: Then | None = None,
        rows: Int[Tensor, " B"] | None = None,
        level: Float[Tensor, " B"] | None = None,
        cache: Cache | None = None,
        segments: Int[Tensor, "B T"] | None = None,
    ) -> Reading:
        """Logits [N V] in float32 at the flat positions `at`, or what `then` makes of them.

        `level` is ignored, the network being time-free, and so is `rows` without a `cache`. Given `segments`, a
        prediction depends on the tokens of its own segment alone (`unmask.wrappers.Apart`); ValueError for a shifted
        network that is asked for a segment's first position, whose prediction is read in the segment before.

        Where no gradient is wanted the output layer's product is computed in float32, whatever the precision of
        the rest: a bfloat16 logit is off by up to one part in 256, and a sequence adds its errors up. In training
        it follows autocast, before a float32 softmax. Raises ValueError when a causal network is asked for a first
        position, which has nothing to its left.
        """
        if self.causal:
            require_something_left(tokens, at)
            at = at - 1
        elif self.config.shifted:
            left = torch.where(at % tokens.shape[1] == 0, at, at - 1)
            if segments is not None and at.device.type == segments.device.type == "cpu":
                where = segments[:, : tokens.shape[1]].flatten()
                if bool((where[at] != where[left]).any()):
                    raise ValueError("a shifted network reads a token left of it: begin segments with a given token")
            at = left
        if cache is None:
            state = self.hidden(tokens, at, seen=None if segments is None else self._apart(segments, tokens.shape[1]))
        else:
            state = self._read_on(tokens, at, rows, cache)

        def logits_of(part: Tensor) -> Tensor:
            logits = output_product(part, *self.head())
            if self.mask_id >= self.vocab:
                return logits
            return logits.index_fill(-1, torch.tensor([self.mask_id], device=logits.device), -torch.inf)

        if isinstance(then, Nats) and isinstance(then.of, Target) and torch.is_grad_enabled():
            banned = self.mask_id if self.mask_id < self.vocab else None
            return row_nats(state, *self.head(), then.of.ids, then, banned)

        def recomputed(part: Tensor, which: slice) -> Reading:
            """`then` of the logits, which are not kept for the backward pass but computed again."""
            assert then is not None
            return checkpoint(lambda part: then(logits_of(part), which), part, use_reentrant=False)

        if then is not None and torch.is_grad_enabled():
            return read_out(lambda which: state[which], len(at), self.vocab, recomputed)
        return read_out(lambda which: logits_of(state[which]), len(at), self.vocab, then)

    def head(self) -> tuple[Float[Tensor, "V D"], Float[Tensor, " V"] | None]:
        """Weight and bias of the output layer."""
        if self.output is None:
            return self.embedding.weight[: self.vocab], None
        return self.output.weight, self.output.bias

    def _apart(self, segments: Int[Tensor, "B T"], length: int) -> Bool[Tensor, "B 1 L L"]:
        """What each of `length` positions may look at: its own segment.

        A causal network's state goes with the segment of what is predicted from it: the end token of a text is where
        the next one begins. `segments` may say it of what follows the last as well.
        """
        segments = sent(segments, self.embedding.weight.device)
        if self.causal:
            segments = torch.cat([segments, segments[:, -1:]], 1)[:, 1:]
        segments = segments[:, :length]
        seen = segments[:, None, :, None] == segments[:, None, None, :]
        return seen.tril() if self.causal else seen

    def _read_on(
        self, tokens: Int[Tensor, "B L"], at: Int[Tensor, " N"], rows: Int[Tensor, " B"] | None, cache: Cache
    ) -> Float[Tensor, "N D"]:
        """The states at `at`, what the cache does not remember of each row being read behind what it does."""
        device, states, asked = self.embedding.weight.device, [], []
        cos, sin = self._tables(cache.length, device)
        row = None if torch.is_autocast_enabled("cpu") or cache.memory[-1] is None else cache.row
        if row is not None and (position := cache.single(tokens, at)) is not None:
            state = row(int(tokens[0, position]), position, (cos[position], sin[position]), cache.memory)
            cache.read[0, position] = tokens[0, position]
            return state
        for window in cache.windows(tokens, at, rows, device):
            attends = [partial(cache.attend, layer, window) for layer in range(len(self.blocks))]
            rotary = cos[window.where[1]], sin[window.where[1]]
            states.append(self.hidden(window.tokens, window.at, rotary=rotary, attends=attends))
            asked.append(window.asked)
        return states[0] if len(states) == 1 else torch.cat(states)[sent(torch.cat(asked).argsort(), device)]

    def _tables(self, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        key = (length, device)
        if key not in self._rotary:
            # made during an evaluation under inference_mode, the tables could not serve the next training step
            with torch.inference_mode(False):
                self._rotary = {key: rotary_tables(self.config, length, device)}
        return self._rotary[key]


class Cached:
    """A causal Transformer with a memory: the same answers, but each row read on from where it was left.

    `slots` rows of up to `length` tokens can be remembered at a time (unmask/cache.py); no gradient flows. Raises
    ValueError for a bidirectional network: a new token changes all that it made of the others.
    """

    vocab, mask_id, causal, normalised = SAME

    def __init__(self, network: Transformer, slots: int, length: int) -> None:
        if not network.causal:
            raise ValueError("a bidirectional network has nothing to remember: every token changes all states")
        self.network, self.cache = network, Cache(network.config.layers, slots, length)
        if slots == 1:
            for layer in network.modules():
                if isinstance(layer, nn.Linear):
                    cpu.lay_for_rows(layer)
            if type(network) is Transformer and Row.fits(network):
                self.cache.row = Row(network)

    @torch.no_grad()
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
        return self.network(tokens, at, then=then, rows=rows, level=level, cache=self.cache)


@torch.no_grad()
def look_at_neighbours(network: Transformer) -> None:
    """Turn the first `config.neighbours` heads of each layer to one neighbour each, in place.

    Coordinate 0 of all embeddings becomes the same number, half of the square of their norm, and what the heads'
    queries and keys make of it outweighs the rest: in the fastest rotary pairs j keys get a constant, queries the same
    turned by the neighbour's distance d, so that the score of what stands at distance x is
    SCORE sum_j cos(f_j (x - d)), whose maximum is at d.
    """
    config = network.config
    embedding, width = network.embedding.weight, config.head_width
    embedding[:, 0] = math.sqrt(config.width) * embedding.std()
    turns = frequencies(config, embedding.device)[:PAIRS]
    size = math.sqrt(SCORE * math.sqrt(width) / (config.width / 2))  # times sqrt(D / 2), which the norm makes of it
    for block in cast(Iterable[Block], network.blocks):
        rows = block.attention.qkv.weight
        for head in range(min(config.neighbours, config.heads)):
            distance = -1 - head if config.causal else (head // 2 + 1) * (-1) ** (head + 1)
            query, key = rows[head * width :], rows[config.width + head * config.groups // config.heads * width :]
            query[:width, 0], key[:width, 0] = 0.0, 0.0
            query[: len(turns), 0] = size * (turns * distance).cos()
            query[width // 2 : width // 2 + len(turns), 0] = size * (turns * distance).sin()
            key[: len(turns), 0] = size
        # written by no layer at the start, the number stays what it is
        block.attention.project.weight[0] = 0.0
        block.mlp.down.weight[0] = 0.0
