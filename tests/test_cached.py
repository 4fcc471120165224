"""A causal network with a memory gives the answers of one without, whatever it is asked and in whatever order.

Each check is also run on planted faults and must fail there.
"""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from unmask import cache
from unmask.cache import Cache
from unmask.checkpoint import Model
from unmask.likelihood import log_likelihood
from unmask.network import Network
from unmask.sampling import Draw, LeftToRight, Samples, decode_nats, sample
from unmask.transformer import Cached, Transformer, TransformerConfig, rotary_tables
from unmask.transformer.row import Row
from unmask.wrappers import Biased, Guided

LLAMA = TransformerConfig(vocab=13, layers=2, heads=4, width=16, mlp=24, causal=True)
CONFIGS = {
    "llama": LLAMA,
    "llama grouped": replace(LLAMA, kv_heads=2),
    "llama mask within": replace(LLAMA, mask_id=5),
    "llama bfloat16 tables": replace(LLAMA, rotary_dtype="bfloat16"),
    "llama biases": replace(LLAMA, qkv_bias=True),
    "dit": replace(LLAMA, flavour="dit"),
    "dit grouped": replace(LLAMA, flavour="dit", kv_heads=1),
}
every_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())


def built(config: TransformerConfig = LLAMA, dtype: torch.dtype = torch.float64) -> Transformer:
    """Random weights, none of them zero or one, sharp enough for predictions to depend on all tokens."""
    network = Transformer(config, seed=3).to(dtype)
    generator = torch.Generator().manual_seed(4)
    for parameter in network.parameters():
        parameter.data += (torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / 3).to(dtype)
    return network.eval()


class Forgetful:
    """The same network, without the offer to remember."""

    def __init__(self, network: Network) -> None:
        self.network, self.vocab, self.mask_id = network, network.vocab, network.mask_id
        self.causal, self.normalised = network.causal, network.normalised

    def __call__(self, tokens, at, **options):
        return self.network(tokens, at, **options)


def tokens_of(config: TransformerConfig, *shape: int, seed: int = 0) -> Tensor:
    tokens = torch.randint(config.vocab, shape, generator=torch.Generator().manual_seed(seed))
    return tokens.masked_fill(tokens == config.mask, (config.mask + 1) % config.vocab)


def canvases(config: TransformerConfig, count: int = 11) -> list[Tensor]:
    """Two lengths, prompts of 1 to 8 tokens: rows begin and end at different calls."""
    rows = [tokens_of(config, 12 if i % 4 else 9, seed=i) for i in range(count)]
    for i, row in enumerate(rows):
        row[1 + 5 * i % 8 :] = config.mask
    return rows


# ---- sampling


def check_sampling(network: Transformer, rows: list[Tensor], atol: float = 1e-12, **options) -> Samples:
    """Tokens, order and cost are those without a cache, and the probabilities too."""
    ours, plain = (sample(each, rows, LeftToRight(), **options) for each in (network, Forgetful(network)))
    assert (ours.calls, ours.nfe.tolist()) == (plain.calls, plain.nfe.tolist())
    for mine, other in ((ours.tokens, plain.tokens), (ours.reveal, plain.reveal)):
        assert all(torch.equal(a, b) for a, b in zip(mine, other, strict=True)), "another text"
    for a, b in zip(ours.confidence, plain.confidence, strict=True):
        torch.testing.assert_close(a, b, atol=atol, rtol=0)
    return ours


@every_config
@pytest.mark.parametrize("batch", [1, 3, 16])
def test_samples_are_those_without_a_cache(config: TransformerConfig, batch: int):
    """Ragged prompts, two lengths, slots that pass from row to row; float64, to 1e-12."""
    check_sampling(built(config), canvases(config), batch=batch, seed=1)


@pytest.mark.parametrize(
    "draw", [Draw(0.0), Draw(0.7), Draw(1.3, top_k=4), Draw(top_p=0.8), Draw(0.5, top_k=9, top_p=0.9)], ids=repr
)
def test_draws_are_those_without_a_cache(draw: Draw):
    check_sampling(built(), canvases(LLAMA), batch=3, draw=draw, seed=2)


@pytest.mark.parametrize("flavour", ["llama", "dit"])
def test_float32_writes_the_same_texts(flavour: str):
    config = replace(LLAMA, flavour=flavour)
    check_sampling(built(config, torch.float32), canvases(config, 40), batch=7, seed=3, atol=1e-5)


def test_guided_and_biased_networks_remember_too():
    """Each row runs twice, with its condition and without, and both are remembered while rows come and go."""
    rows = [row for row in canvases(LLAMA) if len(row) == 12]
    condition = [(row != LLAMA.mask) & (torch.arange(len(row)) > 0) for row in rows]
    network = built()

    def wrapped(inner: Network) -> Biased:
        return Biased(Guided(inner, condition, 0.7, absent=2), {3: -torch.inf, 4: 1.0})

    ours, plain = (sample(wrapped(each), rows, LeftToRight(), batch=3) for each in (network, Forgetful(network)))
    assert all(torch.equal(a, b) for a, b in zip(ours.tokens, plain.tokens, strict=True))
    # prompts of 6, 3 and 8: all three rows for 4 calls, two for 2 more, one for the last 3
    read = positions_read(network, lambda: sample(wrapped(network), rows[:3], LeftToRight(), batch=3))
    assert read == [2 * 3 * 8] + [2 * 3] * 3 + [2 * 2] * 2 + [2] * 3


def test_steps_are_told_as_without_a_cache():
    told: list[list[tuple[int, list[int], list[int], list[int]]]] = []
    for network in (built(), Forgetful(built())):
        steps: list[tuple[int, list[int], list[int], list[int]]] = []

        def watch(step, steps=steps):
            steps.append((step.call, step.sequence.tolist(), step.position.tolist(), step.token.tolist()))

        sample(network, canvases(LLAMA), LeftToRight(), batch=3, on_step=watch)
        told.append(steps)
    assert told[0] == told[1]


def test_a_text_scored_as_it_would_be_written_has_its_chain_rule():
    """One position a call behind what is remembered, against all positions in one call."""
    network, x_0 = built(), tokens_of(LLAMA, 7, 12)
    maskable = torch.arange(12).expand(7, -1) > torch.arange(7)[:, None]
    nats, evaluations = decode_nats(network, x_0, maskable, LeftToRight(), batch=3)
    torch.testing.assert_close(nats, log_likelihood(network, x_0, maskable).per_sequence, atol=1e-11, rtol=0)
    assert evaluations.tolist() == maskable.sum(-1).tolist()


# ---- any call


def check_any_calls(config: TransformerConfig, network: Transformer, calls: int = 60, slots: int = 4) -> None:
    """Rows that come, go and change places, texts that change, predictions asked for anywhere; float64, to 1e-12."""
    generator = torch.Generator().manual_seed(6)

    def below(n: int) -> int:
        return int(torch.randint(n, (), generator=generator))

    view, texts = network.cached(slots, length=11), tokens_of(config, 6, 11)
    for _ in range(calls):
        rows = torch.randperm(6, generator=generator)[: 1 + below(slots)]
        for _ in range(below(3)):
            texts[below(6), below(11)] = config.mask if not below(4) else int(tokens_of(config, 1, seed=below(1000)))
        length = 11 if below(4) else 2 + below(9)
        count = below(2 * len(rows) + 1)
        at = torch.randint(len(rows), (count,), generator=generator) * length
        at += torch.randint(1, length, (count,), generator=generator)
        told = (rows, rows, None, rows.flip(0), torch.zeros_like(rows))[below(5)]
        plain, ours = network(texts[rows, :length], at).detach(), view(texts[rows, :length], at, rows=told)
        assert not ours.requires_grad
        torch.testing.assert_close(ours, plain, atol=1e-12, rtol=0)


@every_config
@pytest.mark.parametrize("slots", [1, 4])
def test_any_call_is_answered_as_without_a_cache(config: TransformerConfig, slots: int):
    check_any_calls(config, built(config), slots=slots)


def test_under_autocast_one_row_is_read_as_many_are():
    network, texts = built(dtype=torch.float32), tokens_of(LLAMA, 1, 9)
    with torch.autocast("cpu", torch.bfloat16):
        view, at = network.cached(1, 9), torch.tensor([8])
        view(texts[:, :8], at - 1)
        torch.testing.assert_close(view(texts, at), network(texts, at).detach(), atol=0.1, rtol=0)


def test_then_is_told_of_the_positions_in_the_order_asked():
    network, texts = built(), tokens_of(LLAMA, 3, 9)
    view = network.cached(3, 9)
    view(texts, torch.tensor([4, 9 + 8]), rows=torch.tensor([0, 1, 2]))
    at = torch.tensor([18 + 3, 5, 9 + 2, 3, 18 + 8])
    ours, plain = (
        each(texts, at, then=lambda logits, which: (at[which], logits), rows=torch.tensor([0, 1, 2]))
        for each in (view, network)
    )
    assert torch.equal(ours[0], at)
    torch.testing.assert_close(ours[1], plain[1].detach(), atol=1e-12, rtol=0)


# ---- planted faults


def stale(self: Cache, tokens: Tensor) -> Tensor:
    """Trusts a row's number: what was read is never compared."""
    return (self.read[: len(tokens), : tokens.shape[1]] != cache.UNREAD).cumprod(-1).sum(-1)


def half_moved(self: Cache, old: int, new: int) -> None:
    """Takes down what a row has read in its new slot, but leaves the keys and values behind."""
    self.read[new] = self.read[old]


def turned_by_one(hidden: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A single token stands one position too far to the right in the rotary tables."""

    def late(self: Transformer, tokens: Tensor, at=None, *, rotary=None, **how) -> Tensor:
        if rotary is not None and tokens.shape[1] == 1:
            (cos, sin), (c, s) = rotary, (table[1] for table in rotary_tables(self.config, 2, tokens.device))
            rotary = cos * c - sin * s, sin * c + cos * s
        return hidden(self, tokens, at, rotary=rotary, **how)

    return late


def one_short(window: Callable[..., cache.Window]) -> Callable[..., cache.Window]:
    """No position sees its own key."""

    def short(*args) -> cache.Window:
        made = window(*args)
        seen = None if made.seen is None else made.seen & made.seen.roll(-1, -1)
        return replace(made, seen=seen)

    return short


def all_seen(window: Callable[..., cache.Window]) -> Callable[..., cache.Window]:
    """Rows that are further than others are looked at to the end."""
    return lambda *args: replace(window(*args), seen=None)


def row_too_early(read: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A row alone stands one position too far to the left."""
    return lambda self, token, at, rotary, memory: read(self, token, max(0, at - 1), rotary, memory)


def row_unturned(read: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A row alone is at position 0 in the rotary tables."""

    def unturned(self: Row, token: int, at: int, rotary, memory) -> Tensor:
        return read(self, token, at, (torch.ones_like(rotary[0]), torch.zeros_like(rotary[1])), memory)

    return unturned


def unwritten(allocate: Callable[[Cache, Tensor], Tensor]) -> Callable[[Cache, Tensor], Tensor]:
    """Memory as it is found, which may hold what is no number."""
    return lambda self, k: allocate(self, k).fill_(torch.nan)


FAULTS = {
    "unwritten": (Cache, "_allocate", unwritten),
    "stale": (Cache, "_remembered", lambda _: stale),
    "half moved": (Cache, "_move", lambda _: half_moved),
    "turned by one": (Transformer, "hidden", turned_by_one),
    "one short": (cache, "_window", one_short),
    "all seen": (cache, "_window", all_seen),
}


@pytest.mark.parametrize("wrong", [row_too_early, row_unturned])
def test_planted_faults_of_a_row_alone_are_seen(wrong, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Row, "__call__", wrong(Row.__call__))
    with pytest.raises(AssertionError, match="another text"):
        check_sampling(built(), canvases(LLAMA), batch=1, seed=1)
    with pytest.raises(AssertionError, match="not close"):
        check_any_calls(LLAMA, built(), slots=1)


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_seen(fault: str, monkeypatch: pytest.MonkeyPatch):
    """By the check of samples, and by that of any calls."""
    where, name, wrong = FAULTS[fault]
    monkeypatch.setattr(where, name, wrong(getattr(where, name)))
    with pytest.raises((AssertionError, ValueError), match=r"another text|predicts nan"):
        check_sampling(built(), canvases(LLAMA), batch=3, seed=1)
    with pytest.raises(AssertionError, match="not close"):
        check_any_calls(LLAMA, built())


def test_an_interrupted_call_leaves_nothing_half_written(monkeypatch: pytest.MonkeyPatch):
    """The first layer has written the keys of another text when the second fails; then the first text comes back."""

    def check() -> None:
        network, texts = built(), tokens_of(LLAMA, 2, 9)
        view, at = network.cached(2, 9), torch.tensor([8, 9 + 8])
        view(texts, at)
        hook = network.blocks[1].register_forward_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            view((texts + 1) % 13, at)
        hook.remove()
        torch.testing.assert_close(view(texts, at), network(texts, at).detach(), atol=1e-12, rtol=0)

    check()

    class Trusting(torch.Tensor):
        """Keeps what it holds when told to forget."""

        def __setitem__(self, index, value):
            if value is not cache.UNREAD:
                super().__setitem__(index, value)

    begin = Cache.__init__

    def trusting(self: Cache, *sizes: int) -> None:
        begin(self, *sizes)
        self.read = self.read.as_subclass(Trusting)

    monkeypatch.setattr(Cache, "__init__", trusting)
    with pytest.raises(AssertionError):
        check()


# ---- what it costs


def positions_read(network: Transformer, run: Callable[[], object]) -> list[int]:
    """Positions that go through the layers, window by window."""
    read: list[int] = []
    hook = network.embedding.register_forward_hook(lambda _, tokens, __: read.append(tokens[0].numel()))
    run()
    hook.remove()
    return read


def test_a_token_is_read_once():
    """The prompt at the first call, one position a row from then on."""
    network, rows = built(), torch.full((2, 40), LLAMA.mask)
    rows[:, :6] = tokens_of(LLAMA, 2, 6)
    read = positions_read(network, lambda: sample(network, rows, LeftToRight()))
    assert read == [2 * 6] + [2] * 33
    read = positions_read(network, lambda: sample(Forgetful(network), rows, LeftToRight()))
    assert read == [2 * 40] * 34


def test_a_prompt_met_again_in_a_slot_is_not_read_again():
    network, rows = built(), torch.full((6, 9), LLAMA.mask)
    rows[:, :6] = tokens_of(LLAMA, 6)
    read = positions_read(network, lambda: sample(network, rows, LeftToRight(), batch=2))
    assert read == [2 * 6] + [2] * 8


def test_new_rows_do_not_hold_up_the_others():
    """A row that joins brings its prompt along; the other row still reads one token."""
    network, rows = built(), torch.full((3, 12), LLAMA.mask)
    for row, prompt in zip(rows, (10, 3, 7), strict=True):
        row[:prompt] = tokens_of(LLAMA, prompt, seed=prompt)
    read = positions_read(network, lambda: sample(network, rows, LeftToRight(), batch=2))
    # both prompts, the shorter padded to 10; then a token of each; then row 2 takes over the slot of row 0
    assert read[:4] == [2 * 10, 2, 1, 7]
    assert sum(read[4:]) == (12 - 3 - 3) + (12 - 7 - 1)


def test_memory_is_allocated_once():
    network, texts = built(replace(LLAMA, kv_heads=2)), tokens_of(LLAMA, 3, 12)
    view = network.cached(slots=3, length=12)
    places = set()
    for i in range(1, 12):
        view(texts, torch.arange(3) * 12 + i)
        places.add(tuple(memory.data_ptr() for memory in view.cache.memory))
    assert len(places) == 1
    assert [tuple(memory.shape) for memory in view.cache.memory] == [(2, 3, 12, 2, 4)] * 2


# ---- precision, modes, who offers it


@pytest.mark.parametrize("flavour", ["llama", "dit"])
def test_bfloat16_is_within_its_own_error(flavour: str):
    """Logits differ from the exact ones no more than twice as much as those without a cache do."""
    config = replace(LLAMA, flavour=flavour, kv_heads=2)
    network, texts = built(config, torch.bfloat16), tokens_of(config, 4, 24)
    exact = built(config)
    exact.load_state_dict(network.state_dict())
    view, ours, plain, truth = network.cached(4, 24), [], [], []
    with torch.inference_mode():
        for i in range(1, 24):
            at = torch.arange(4) * 24 + i
            for out, each in ((ours, view), (plain, network), (truth, exact)):
                out.append(each(texts, at).double())
    assert view.cache.memory[0].dtype == torch.bfloat16
    mine, others = ((torch.stack(out) - torch.stack(truth)).square().mean().sqrt() for out in (ours, plain))
    assert 0 < float(mine) < 2 * float(others)


def test_it_works_in_and_out_of_inference_mode_and_leaves_training_alone():
    network, texts = built(), tokens_of(LLAMA, 2, 9)
    view = network.cached(2, 9)
    for i in range(1, 9):
        at = torch.tensor([i, 9 + i])
        with torch.inference_mode(i % 2 == 0):
            ours = view(texts, at)
        torch.testing.assert_close(ours.clone(), network(texts, at).detach(), atol=1e-12, rtol=0)
    network(texts, at).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_autocast_is_remembered_in_its_precision():
    network, texts = built(dtype=torch.float32), tokens_of(LLAMA, 2, 9)
    view = network.cached(2, 9)
    with torch.autocast("cpu", torch.bfloat16):
        for i in range(1, 9):
            at = torch.tensor([i, 9 + i])
            with torch.no_grad():
                plain = network(texts, at)
            assert float((view(texts, at) - plain).abs().max()) < 0.1 * float(plain.abs().max())
    assert view.cache.memory[0].dtype == torch.bfloat16


def test_a_loaded_model_samples_with_a_cache():
    network, rows = built(), torch.full((2, 20), LLAMA.mask)
    rows[:, 0] = 0
    read = positions_read(network, lambda: sample(Model(network, None, {}), rows, LeftToRight()))
    assert read == [2] * 19


def test_a_bidirectional_network_is_sampled_without():
    network = built(replace(LLAMA, causal=False))
    with pytest.raises(ValueError, match="every token changes all"):
        network.cached(1, 8)
    read = positions_read(network, lambda: sample(network, torch.full((1, 4), LLAMA.mask), LeftToRight()))
    assert read == [4] * 4


@pytest.mark.parametrize("shape", [(3, 9), (2, 10)])
def test_what_does_not_fit_is_refused(shape: tuple[int, int]):
    view = built().cached(2, 9)
    assert isinstance(view, Cached)
    with pytest.raises(ValueError, match=rf"{shape[0]} rows of {shape[1]} tokens in a cache for 2 of 9"):
        view(torch.zeros(shape, dtype=torch.long), torch.tensor([1]))
