"""The network against a plain statement of itself, and what its call promises."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import unmask.network
from unmask.network import Nats, Target
from unmask.objectives import AnyOrder, NextToken
from unmask.transformer import Transformer, TransformerConfig, rotary_tables, rotate

LLAMA = TransformerConfig(vocab=13, layers=2, heads=4, width=16, mlp=24)
CONFIGS = {
    "llama": LLAMA,
    "llama causal": replace(LLAMA, causal=True),
    "llama grouped": replace(LLAMA, kv_heads=2),
    "llama causal grouped": replace(LLAMA, causal=True, kv_heads=1),
    "llama bfloat16 tables": replace(LLAMA, rotary_dtype="bfloat16"),
    "llama mask within": replace(LLAMA, mask_id=5),
    "llama tied": replace(LLAMA, tied=True),
    "llama tied causal, mask within": replace(LLAMA, tied=True, causal=True, mask_id=5),
    "llama grouped with biases": replace(LLAMA, kv_heads=2, qkv_bias=True),
    "llama shifted": replace(LLAMA, shifted=True, mask_id=5),
    "llama slower": replace(LLAMA, causal=True, rotary_scaling=(4.0, 1.0, 4.0, 8.0)),
    "dit": replace(LLAMA, flavour="dit"),
    "dit tied": replace(LLAMA, flavour="dit", tied=True),
    "dit causal grouped": replace(LLAMA, flavour="dit", causal=True, kv_heads=2),
}
every_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())


def built(config: TransformerConfig, dtype: torch.dtype = torch.float64) -> Transformer:
    """A network none of whose parameters is zero or one, so that each shows in the result."""
    network = Transformer(config, seed=3).to(dtype)
    generator = torch.Generator().manual_seed(4)
    for parameter in network.parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / 4
        parameter.data += noise.to(dtype)
    return network


def some_tokens(config: TransformerConfig, rows: int = 2, length: int = 7, masked: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    tokens = torch.randint(config.vocab, (rows, length), generator=generator)
    tokens[tokens == config.mask] = (config.mask + 1) % config.vocab
    if not config.causal:
        tokens[:, 2 : 2 + masked] = config.mask
    return tokens


def predictable(config: TransformerConfig, tokens: Tensor) -> Tensor:
    """Flat indices of all positions but, for a causal network, the first of each row."""
    return torch.arange(tokens.numel()).view(tokens.shape)[:, int(config.causal) :].flatten()


# ---- the plain statement: one sequence, one position, one head at a time


def plain_norm(x: Tensor, w: dict[str, Tensor], name: str, config: TransformerConfig) -> Tensor:
    if config.flavour == "llama":
        return x / ((x * x).sum() / len(x) + config.norm_eps).sqrt() * w[f"{name}.weight"]
    centred = x - x.sum() / len(x)
    return centred / ((centred**2).sum() / len(x) + config.norm_eps).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]


def plain_turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Coordinates j and j + d/2 as the complex number that position turns by its angle."""
    half = len(x) // 2
    z = torch.complex(x[:half], x[half:]) * torch.complex(cos[:half].to(x), sin[half:].to(x))
    return torch.cat([z.real, z.imag])


def plain_attention(xs: list[Tensor], w: dict[str, Tensor], name: str, config: TransformerConfig) -> list[Tensor]:
    d, groups = config.width // config.heads, config.kv_heads or config.heads
    qkv, length = w[f"{name}.qkv.weight"], len(xs)
    if config.qkv_bias:  # one more column, on which a one stands
        qkv, xs = torch.cat([qkv, w[f"{name}.qkv.bias"][:, None]], 1), [torch.cat([x, x.new_ones(1)]) for x in xs]
    cos, sin = (table[:, 0] for table in rotary_tables(config, length, torch.device("cpu")))
    outputs: list[list[Tensor]] = [[] for _ in xs]
    for head in range(config.heads):
        group = head * groups // config.heads
        q_rows = qkv[head * d : (head + 1) * d]
        k_rows = qkv[config.width + group * d : config.width + (group + 1) * d]
        v_rows = qkv[config.width + (groups + group) * d : config.width + (groups + group + 1) * d]
        q, k = ([plain_turn(rows @ xs[i], cos[i], sin[i]) for i in range(length)] for rows in (q_rows, k_rows))
        v = [v_rows @ x for x in xs]
        for i in range(length):
            seen = range(i + 1) if config.causal else range(length)
            weights = [(q[i] @ k[j] / math.sqrt(d)).exp() for j in seen]
            outputs[i].append(sum(a * v[j] for a, j in zip(weights, seen, strict=True)) / sum(weights))
    return [w[f"{name}.project.weight"] @ torch.cat(parts) for parts in outputs]


def plain_mlp(x: Tensor, w: dict[str, Tensor], name: str, config: TransformerConfig) -> Tensor:
    if config.flavour == "llama":
        gate = w[f"{name}.gate_up.weight"][: config.mlp_width] @ x
        up = w[f"{name}.gate_up.weight"][config.mlp_width :] @ x
        return w[f"{name}.down.weight"] @ (gate / (1 + (-gate).exp()) * up)
    up = w[f"{name}.up.weight"] @ x + w[f"{name}.up.bias"]
    inner = math.sqrt(2 / math.pi) * (up + 0.044715 * up**3)
    gelu = up * (1 + (inner.exp() - (-inner).exp()) / (inner.exp() + (-inner).exp())) / 2
    return w[f"{name}.down.weight"] @ gelu + w[f"{name}.down.bias"]


def plain_logits(tokens: Tensor, w: dict[str, Tensor], config: TransformerConfig) -> Tensor:
    """[L V], row i the prediction OF position i; a causal network's has no row 0."""
    xs = [w["embedding.weight"][token] for token in tokens.tolist()]
    for layer in range(config.layers):
        name = f"blocks.{layer}"
        normed = [plain_norm(x, w, f"{name}.norm_1", config) for x in xs]
        xs = [x + y for x, y in zip(xs, plain_attention(normed, w, f"{name}.attention", config), strict=True)]
        xs = [x + plain_mlp(plain_norm(x, w, f"{name}.norm_2", config), w, f"{name}.mlp", config) for x in xs]
    xs = [plain_norm(x, w, "norm", config) for x in xs]
    head = w["embedding.weight"][: config.vocab] if config.tied else w["output.weight"]
    logits = torch.stack([head @ x + w.get("output.bias", 0) for x in xs])
    if config.mask < config.vocab:
        logits = torch.stack([row.where(torch.arange(config.vocab) != config.mask, -torch.inf) for row in logits])
    if config.shifted:
        return torch.cat([logits[:1], logits[:-1]])
    return logits[:-1] if config.causal else logits


@every_config
def test_logits_and_gradients_are_those_of_a_plain_statement(config: TransformerConfig):
    """float64: logits, and the gradient of every parameter of a sum of log-probabilities, to 1e-11."""
    network, tokens = built(config), some_tokens(config)
    at = predictable(config, tokens)
    goal = tokens.roll(3).flatten()[at]
    goal = torch.where(goal == config.mask, (config.mask + 1) % config.vocab, goal)
    weights = {name: parameter.detach().clone().requires_grad_() for name, parameter in network.named_parameters()}
    plain = torch.cat([plain_logits(row, weights, config) for row in tokens])
    logits = network(tokens, at)
    torch.testing.assert_close(logits, plain, atol=1e-11, rtol=1e-11)
    plain_value = plain.log_softmax(-1)[torch.arange(len(at)), goal]
    value = network(tokens, at, then=Target(goal, network.vocab))
    torch.testing.assert_close(value, plain_value, atol=1e-11, rtol=1e-11)
    scale = torch.linspace(-1, 2, len(at), dtype=torch.float64)
    ours = torch.autograd.grad((value * scale).sum(), list(network.parameters()))
    theirs = torch.autograd.grad((plain_value * scale).sum(), list(weights.values()))
    for name, ours_, theirs_ in zip(weights, ours, theirs, strict=True):
        assert bool(theirs_.any()), name
        torch.testing.assert_close(ours_, theirs_, atol=1e-10, rtol=1e-9)


def test_rotary_angles():
    """position * base^(-2 j / d), to the 2e-7 that float32 keeps of an angle; bfloat16 tables are these, rounded."""
    config = replace(LLAMA, width=64, heads=2, rotary_base=500.0)
    cos, sin = rotary_tables(config, 2048, torch.device("cpu"))
    for position in (0, 1, 3, 500, 2047):
        for j in range(16):
            angle = position * 500.0 ** (-2 * j / 32)
            assert float(cos[position, 0, j]) == pytest.approx(math.cos(angle), abs=1e-6 + 2e-7 * angle)
            assert float(sin[position, 0, j + 16]) == pytest.approx(math.sin(angle), abs=1e-6 + 2e-7 * angle)
            assert float(sin[position, 0, j]) == -float(sin[position, 0, j + 16])
            assert float(cos[position, 0, j]) == float(cos[position, 0, j + 16])
    for rounded, table in zip(
        rotary_tables(replace(config, rotary_dtype="bfloat16"), 64, torch.device("cpu")), (cos, sin), strict=True
    ):
        assert torch.equal(rounded, table[:64].bfloat16().float())
        assert not torch.equal(rounded, table[:64])


def test_attention_depends_on_distance_alone():
    """Rotary positions are relative: a bidirectional network's single block sees a shifted text as the same."""
    network = built(replace(LLAMA, layers=1))
    block, length = network.blocks[0], 6
    x = torch.randn(1, length, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    tables = rotary_tables(network.config, length + 9, torch.device("cpu"))
    first, later = (tuple(table[start : start + length] for table in tables) for start in (0, 9))
    torch.testing.assert_close(block(x, first), block(x, later), atol=1e-5, rtol=0)
    assert not torch.allclose(block(x, first), block(x.flip(1), first).flip(1), atol=1e-3)


# ---- the call: at, then, chunks


@every_config
def test_at_is_a_slice_of_all_logits(config: TransformerConfig):
    network, tokens = built(config), some_tokens(config, rows=3)
    everywhere = predictable(config, tokens)
    full = network(tokens, everywhere)
    which = torch.tensor([0, 5, 4, 17, 5])  # any order, repeats
    torch.testing.assert_close(network(tokens, everywhere[which]), full[which], atol=1e-12, rtol=0)
    assert network(tokens, everywhere[:0]).shape == (0, config.vocab)


@every_config
@pytest.mark.parametrize("rows", [8, 16, 100])
def test_chunks_change_nothing(config: TransformerConfig, rows: int, monkeypatch: pytest.MonkeyPatch):
    """`then`, single and tupled, in chunks of `rows` logits: values and gradients of the whole."""
    network, tokens = built(config), some_tokens(config)
    at = predictable(config, tokens)[1:]
    goal = torch.full_like(at, 2)
    full = network(tokens, at).log_softmax(-1)
    whole = full[:, 2]
    expected = torch.autograd.grad(whole.square().sum(), list(network.parameters()))
    monkeypatch.setattr(unmask.network, "CHUNK", rows * config.vocab)
    sizes: list[int] = []

    def then(logits: Tensor, which: slice) -> tuple[Tensor, Tensor]:
        sizes.append(len(logits))
        return Target(goal, network.vocab)(logits, which), logits.softmax(-1).amax(-1)

    value, peak = network(tokens, at, then=then)
    assert sizes == [min(rows, len(at) - i) for i in range(0, len(at), rows)]
    torch.testing.assert_close(value, whole, atol=1e-12, rtol=0)
    torch.testing.assert_close(peak, full.exp().amax(-1), atol=1e-12, rtol=0)
    torch.testing.assert_close(network(tokens, at, then=Target(goal, network.vocab)), whole, atol=1e-12, rtol=0)
    actual = torch.autograd.grad(value.square().sum(), list(network.parameters()))
    for mine, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-11, rtol=1e-9)
    with torch.no_grad():
        torch.testing.assert_close(network(tokens, at, then=Target(goal, network.vocab)), whole, atol=1e-12, rtol=0)
        assert network(tokens, at[:0], then=Target(goal[:0], network.vocab)).shape == (0,)


@pytest.mark.parametrize("through_then", [True, False])
def test_logits_are_not_kept_for_the_backward_pass(through_then: bool, monkeypatch: pytest.MonkeyPatch):
    """No tensor as large as a chunk's logits is saved between forward and backward, but where logits are returned."""
    config = replace(LLAMA, vocab=5000)
    network, tokens = Transformer(config), torch.zeros(4, 32, dtype=torch.long)
    at = torch.arange(tokens.numel())
    monkeypatch.setattr(unmask.network, "CHUNK", 64 * config.vocab)
    own = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    saved: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            saved.append(tensor.numel())
        return tensor

    target = Target(torch.zeros_like(at), network.vocab)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        value = network(tokens, at, then=target) if through_then else target(network(tokens, at), slice(None))
    assert (max(saved) < 64 * config.vocab) == through_then
    value.sum().backward()


# ---- who sees whom


@pytest.mark.parametrize("flavour", ["llama", "dit"])
def test_a_causal_network_never_sees_the_future(flavour: str):
    config = replace(LLAMA, causal=True, flavour=flavour)
    network, tokens = built(config), some_tokens(config)
    before = network(tokens, predictable(config, tokens)).view(2, 6, -1)
    for first in range(1, 7):
        changed = tokens.clone()
        changed[:, first:] = (changed[:, first:] + 1) % config.vocab
        after = network(changed, predictable(config, tokens)).view(2, 6, -1)
        # predictions of positions 1..first read tokens 0..first-1
        torch.testing.assert_close(after[:, :first], before[:, :first], atol=1e-12, rtol=0)
        if first < 6:
            assert bool(((after - before)[:, first:].abs().amax(-1) > 1e-6).all())


def test_masks_of_a_causal_canvas_are_not_seen():
    """What stands for text that is not written yet does not matter to what is left of it."""
    config = replace(LLAMA, causal=True)
    network, tokens = built(config), some_tokens(config)
    canvas = tokens.clone()
    canvas[:, 4:] = network.mask_id
    at = torch.tensor([3, 4, 10, 11])
    torch.testing.assert_close(network(canvas, at), network(tokens, at), atol=1e-12, rtol=0)
    with pytest.raises(ValueError, match="begin each sequence with a given token"):
        network(canvas, torch.tensor([3, 7]))


@pytest.mark.parametrize("flavour", ["llama", "dit"])
def test_a_bidirectional_network_sees_both_sides(flavour: str):
    config = replace(LLAMA, flavour=flavour)
    network, tokens = built(config), some_tokens(config, rows=1, masked=1)
    before = network(tokens, torch.arange(7))
    for position in range(7):
        changed = tokens.clone()
        changed[0, position] = (changed[0, position] + 1) % config.vocab
        assert bool(((network(changed, torch.arange(7)) - before).abs().amax(-1) > 1e-6).all())


@every_config
def test_rows_do_not_see_each_other(config: TransformerConfig):
    network, tokens = built(config), some_tokens(config, rows=3)
    at = predictable(config, tokens[:1])
    alone = torch.cat([network(row[None], at) for row in tokens])
    torch.testing.assert_close(network(tokens, predictable(config, tokens)), alone, atol=1e-12, rtol=0)


def test_time_and_row_numbers_are_ignored():
    network, tokens = built(LLAMA), some_tokens(LLAMA)
    told = network(tokens, torch.arange(14), rows=torch.tensor([7, 1]), level=torch.tensor([0.1, 0.9]))
    assert torch.equal(told, network(tokens, torch.arange(14)))


@pytest.mark.parametrize("flavour", ["llama", "dit"])
def test_a_mask_within_the_vocabulary_is_never_predicted(flavour: str):
    """Its probability is exactly zero, the other probabilities sum to one, and gradients are finite."""
    config = replace(LLAMA, mask_id=5, flavour=flavour)
    network, tokens = built(config), some_tokens(config)
    assert network.embedding.weight.shape == network.output.weight.shape == (13, 16)
    probability = network(tokens, torch.arange(14)).softmax(-1)
    assert not bool(probability[:, 5].any())
    torch.testing.assert_close(probability.sum(-1), torch.ones(14, dtype=torch.float64))
    at = (tokens == 5).flatten().nonzero().squeeze(-1)
    network(tokens, at, then=Target(torch.full_like(at, 3), network.vocab)).sum().backward()
    assert all(bool(parameter.grad.isfinite().all()) for parameter in network.parameters())
    assert not bool(network.output.weight.grad[5].any())


# ---- precision


@pytest.mark.parametrize("flavour", ["llama", "dit"])
def test_bfloat16_weights_give_float32_logits(flavour: str):
    """The output layer's product is in float32: its logits are not bfloat16 numbers, and equal a float32 product."""
    network = built(replace(LLAMA, flavour=flavour), torch.bfloat16)
    tokens = some_tokens(LLAMA)
    with torch.no_grad():
        logits = network(tokens, torch.arange(14))
        state = network.hidden(tokens).flatten(0, 1)
    assert (logits.dtype, state.dtype) == (torch.float32, torch.bfloat16)
    product = torch.nn.functional.linear(
        state.double(), network.output.weight.double(), None if flavour == "llama" else network.output.bias.double()
    )
    torch.testing.assert_close(logits.double(), product, atol=2e-6, rtol=2e-6)
    assert float((logits != logits.bfloat16()).float().mean()) > 0.9
    value = network(tokens, torch.arange(14), then=Target(torch.zeros(14, dtype=torch.long), network.vocab))
    assert value.dtype == torch.float32


def test_autocast_rounds_the_output_only_where_it_trains():
    network, tokens = built(LLAMA, torch.float32), some_tokens(LLAMA)
    with torch.autocast("cpu", torch.bfloat16):
        trained = network(tokens, torch.arange(14))
        with torch.no_grad():
            evaluated = network(tokens, torch.arange(14))
    assert trained.dtype == evaluated.dtype == torch.float32
    assert torch.equal(trained, trained.bfloat16().float())
    assert float((evaluated != evaluated.bfloat16()).float().mean()) > 0.9
    exact = network(tokens, torch.arange(14)).detach()
    assert float((evaluated - exact).abs().max()) < 0.1 * float(exact.abs().max())


def test_an_evaluation_in_inference_mode_leaves_training_possible():
    """The cached rotary tables of a length first seen in inference mode serve a backward pass too."""
    network, tokens = Transformer(LLAMA), some_tokens(LLAMA)
    with torch.inference_mode():
        network(tokens, torch.arange(14))
    network(tokens, torch.arange(14)).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_dropout_is_for_training_only():
    network, tokens = Transformer(replace(LLAMA, dropout=0.5)), some_tokens(LLAMA)
    at = torch.arange(14)
    assert not torch.equal(network(tokens, at), network(tokens, at))
    network.eval()
    assert torch.equal(network(tokens, at), network(tokens, at))
    assert torch.equal(network(tokens, at), Transformer(LLAMA)(tokens, at))


# ---- initialisation


def test_llama_initialisation_is_smdms():
    """std sqrt(2 / (5 D)), and 1 / (sqrt(D) layers) for what is added to the stream; means and stds within 4 sigma."""
    config = TransformerConfig(vocab=300, layers=3, heads=4, width=128)
    for name, parameter in Transformer(config, seed=7).named_parameters():
        if "norm" in name:
            assert bool((parameter == 1).all())
            continue
        added = name.endswith(("project.weight", "down.weight"))
        std = 1 / (math.sqrt(128) * 3) if added else math.sqrt(2 / (5 * 128))
        assert_law(parameter, std, kurtosis=3.0)


def test_dit_initialisation_is_radds():
    """torch's uniform within 1 / sqrt(fan in), output zero, norms' weight AND bias one."""
    config = TransformerConfig(vocab=300, layers=3, heads=4, width=128, flavour="dit")
    network = Transformer(config, seed=7)
    for name, parameter in network.named_parameters():
        if "norm" in name:
            assert bool((parameter == 1).all())
        elif name.startswith("output"):
            assert not bool(parameter.any())
        else:
            bound = 1 / math.sqrt(512 if ".down." in name else 128)
            assert bound * (1 - 20 / parameter.numel()) < float(parameter.detach().abs().max()) <= bound
            assert_law(parameter, bound / math.sqrt(3), kurtosis=1.8)
    tokens = torch.full((2, 5), config.mask)
    assert not bool(network(tokens, torch.arange(10)).any())  # so training starts at the uniform law: log V nats


def assert_law(parameter: Tensor, std: float, kurtosis: float) -> None:
    """Mean 0 and this std, each within 4 of its standard errors."""
    values, n = parameter.detach().double().flatten(), parameter.numel()
    assert abs(float(values.mean())) < 4 * std / math.sqrt(n)
    variance = float(values.square().mean())
    assert abs(variance / std**2 - 1) < 4 * math.sqrt((kurtosis - 1) / n)


@pytest.mark.parametrize("flavour", ["llama", "dit"])
def test_a_seed_is_its_weights(flavour: str):
    config = replace(LLAMA, flavour=flavour)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = Transformer(config, seed=5).state_dict()
    assert torch.equal(torch.get_rng_state(), state)  # the global generator is left alone
    torch.manual_seed(2)
    second, other = Transformer(config, seed=5).state_dict(), Transformer(config, seed=6).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["embedding.weight"], other["embedding.weight"])
    assert not torch.equal(first["blocks.0.attention.qkv.weight"], first["blocks.1.attention.qkv.weight"])


def test_no_seed_is_no_memory():
    network = Transformer(LLAMA, seed=None)
    assert all(parameter.is_meta for parameter in network.parameters())
    weights = Transformer(LLAMA, seed=1).state_dict()
    network.load_state_dict(weights, assign=True)
    tokens = some_tokens(LLAMA)
    assert torch.equal(network(tokens, torch.arange(14)), Transformer(LLAMA, seed=1)(tokens, torch.arange(14)))


# ---- sizes, costs, errors


@every_config
def test_parameters_in_closed_form(config: TransformerConfig):
    network = Transformer(config, seed=None)
    count = {name: parameter.numel() for name, parameter in network.named_parameters()}
    outside = ("embedding.", "output.")
    assert config.parameters() == {
        "total": sum(count.values()),
        "non_embedding": sum(number for name, number in count.items() if not name.startswith(outside)),
    }
    assert network.embedding.num_embeddings == config.vocab + (not config.causal and config.mask == config.vocab)


@pytest.mark.parametrize(
    ("layers", "heads", "width", "mlp", "non_embedding"),
    [
        (6, 4, 256, None, 6_294_784),
        (16, 8, 640, 1600, 75_387_520),
        (18, 12, 768, None, 169_897_728),
        (20, 14, 1792, None, 1_027_677_952),
        (28, 17, 2176, None, 2_121_393_280),
    ],
)
def test_smdms_sizes(layers: int, heads: int, width: int, mlp: int | None, non_embedding: int):
    """Rows of SMDM's family, named by millions of non-embedding parameters."""
    config = TransformerConfig(vocab=32_000, layers=layers, heads=heads, width=width, mlp=mlp)
    assert config.parameters() == {
        "total": non_embedding + 64_001 * width,
        "non_embedding": non_embedding,
    }


@every_config
def test_flops_in_closed_form(config: TransformerConfig):
    """torch's own count, with attention as plain products (no counter sees the CPU's fused kernel)."""
    network, tokens = Transformer(config), some_tokens(config, rows=3, length=8)
    at = predictable(config, tokens)[:7]
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        network(tokens, at)
    assert counter.get_total_flops() == 3 * config.forward_flops(8, predicted=7 / 3)


@every_config
def test_a_training_step_is_three_forward_passes(config: TransformerConfig, monkeypatch: pytest.MonkeyPatch):
    """Through logits kept, and through the loss, which keeps none; any other `then` costs one output layer more.

    With torch's attention: ours for CPUs computes its scores again, in products that no counter sees.
    """
    monkeypatch.setattr("unmask.cpu.by_hand", lambda x: False)
    network, tokens = Transformer(config).double(), some_tokens(config, rows=3, length=8)
    at = predictable(config, tokens)[:7]
    forward = 3 * config.forward_flops(8, predicted=7 / 3)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        network(tokens, at).sum().backward()
    assert counter.get_total_flops() == 3 * forward
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        network(tokens, at, then=Target(torch.zeros_like(at), network.vocab)).sum().backward()
    assert counter.get_total_flops() == 3 * forward + 2 * 7 * config.width * config.vocab
    then = Nats(
        Target(torch.ones_like(at), network.vocab), torch.ones(len(at), dtype=torch.float64), torch.zeros_like(at), 1
    )
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        network(tokens, at, then=then).sum().backward()
    bias = 2 * 7 * config.vocab if config.flavour == "dit" and not config.tied else 0  # its gradient, a product here
    assert counter.get_total_flops() == 3 * forward + bias


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"vocab": 0}, "every size must be at least 1"),
        ({"layers": 0}, "every size must be at least 1"),
        ({"kv_heads": 0}, "every size must be at least 1"),
        ({"mlp": 0}, "every size must be at least 1"),
        ({"rotary_base": -1.0}, "rotary_base -1.0 must be above 0"),
        ({"norm_eps": -1e-5}, "norm_eps -1e-05 0 or more"),
        ({"kv_heads": -2}, "every size must be at least 1"),
        ({"mlp": -5}, "every size must be at least 1"),
        ({"width": 18}, "width 18 must be an even multiple of heads 4"),
        ({"width": 12}, "width 12 must be an even multiple of heads 4"),
        ({"kv_heads": 3}, "kv_heads 3 must divide heads 4"),
        ({"dropout": 1.0}, "dropout 1.0 must be in"),
        ({"mask_id": 14}, "mask_id 14 must lie in 0..vocab = 13"),
        ({"mask_id": -1}, "mask_id -1 must lie in"),
        ({"flavour": "gpt"}, "flavour 'gpt' must be llama or dit"),
        ({"rotary_dtype": "float16"}, "rotary_dtype 'float16'"),
        ({"rotary_scaling": (8.0, 1.0)}, "rotary_scaling (8.0, 1.0) must be"),
    ],
)
def test_sizes_that_do_not_fit_are_named(wrong: dict[str, object], message: str):
    with pytest.raises(ValueError, match="must") as caught:
        replace(LLAMA, **wrong)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_it_learns():
    """A few steps on one text: both a bidirectional and a causal network fit it, so gradients point downhill."""
    x_0 = torch.tensor([[0, 3, 1, 4, 1, 5, 9, 2, 6]]).repeat(8, 1)
    maskable = torch.arange(9).expand(8, -1) > 0
    for config, objective in ((LLAMA, AnyOrder()), (replace(LLAMA, causal=True), NextToken())):
        network = Transformer(config, seed=0)
        optimiser = torch.optim.AdamW(network.parameters(), lr=1e-2)
        generator = torch.Generator().manual_seed(0)
        losses = []
        for _ in range(60):
            u = torch.rand(8, generator=generator, dtype=torch.float64)
            loss = objective(network, x_0, maskable, u, generator).sum() / maskable.sum()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(float(loss.detach()))
        assert losses[0] > 1.5
        assert sum(losses[-5:]) / 5 < 0.5


@pytest.mark.parametrize(
    "config",
    [
        TransformerConfig(64, 2, 4, 128, neighbours=4),
        TransformerConfig(64, 2, 4, 128, neighbours=3, causal=True),
        TransformerConfig(64, 2, 4, 128, neighbours=4, flavour="dit"),
        TransformerConfig(64, 2, 4, 128, neighbours=4, kv_heads=2, qkv_bias=True),
        TransformerConfig(64, 2, 8, 512, neighbours=6),
    ],
)
@torch.no_grad()
def test_heads_begin_by_looking_at_neighbours(config: TransformerConfig):
    """In the first layer, where no more is added to the embedding yet, its neighbour has most of a head's weight."""
    network, tokens = Transformer(config, seed=5), torch.arange(72).view(3, 24) % 64
    block, rotary = network.blocks[0], rotary_tables(config, 24, torch.device("cpu"))
    qkv = block.attention.qkv(block.norm_1(network.embedding(tokens)))
    q, k, _ = qkv.unflatten(-1, (-1, config.head_width)).split([config.heads, config.groups, config.groups], -2)
    k = rotate(k, rotary).repeat_interleave(config.heads // config.groups, 2)
    scores = torch.einsum("blhd,bmhd->bhlm", rotate(q, rotary), k) / math.sqrt(config.head_width)
    for head in range(config.neighbours):
        distance = (-1, -2, -3)[head] if config.causal else (-1, 1, -2, 2, -3, 3)[head]
        shares = scores[:, head].softmax(-1)
        assert float(torch.stack([shares[:, i, i + distance] for i in range(8, 16)]).mean()) > 0.5


def test_other_heads_and_the_rest_are_drawn_as_ever():
    plain, begun = (Transformer(TransformerConfig(64, 2, 4, 128, neighbours=n)) for n in (0, 2))
    one, two = plain.blocks[1].attention.qkv.weight, begun.blocks[1].attention.qkv.weight
    assert torch.equal(one[64:128], two[64:128])
    assert torch.equal(one[:, 1:], two[:, 1:])
    assert torch.equal(plain.embedding.weight[:, 1:], begun.embedding.weight[:, 1:])


def test_as_many_neighbours_as_there_are_heads():
    two, more = (Transformer(TransformerConfig(64, 2, 2, 64, neighbours=n)).state_dict() for n in (2, 5))
    assert all(torch.equal(two[name], more[name]) for name in two)
    with pytest.raises(ValueError, match="neighbours -1 must be 0 or more"):
        TransformerConfig(64, 2, 4, 128, neighbours=-1)
