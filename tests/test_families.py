"""Published networks: their tensors, outputs, losses, gradients and sizes are ours.

The numbers of the published code are not part of this project: UNMASK_DATA names the folder that holds
`fixtures/radd` and `fixtures/smdm`, and the tests that need them are skipped where it is not set. Errors are measured
on an x86 CPU in float32; the tolerances leave room for another machine's order of summation.
"""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from unmask.families import RADD, SMDM, Family, config_of, to_ours, to_published
from unmask.likelihood import log_likelihood, ordered_log_likelihood
from unmask.network import Target
from unmask.objectives import AnyOrder, Corruption, LambdaDCE, TimeDCE, TimeDSE, weighted
from unmask.sampling import LeftToRight, draw_plan
from unmask.transformer import Transformer, TransformerConfig, rotary_tables, rotate

HEADS = {"radd": 2, "smdm": 4}


def fixtures(name: str) -> Path:
    root = os.environ.get("UNMASK_DATA")
    folder = Path(root or ".") / "fixtures" / name
    if root is None or not folder.is_dir():
        pytest.skip(f"needs the published code's numbers: UNMASK_DATA/fixtures/{name} is not there")
    return folder


def published(family: Family, path: Path, **known: object) -> tuple[Transformer, dict[str, Tensor]]:
    """(network, their tensors)."""
    tensors = load_file(path)
    config = config_of(family, tensors, heads=HEADS[family.name.lower()])
    network = Transformer(replace(config, **known), seed=None)
    network.load_state_dict(to_ours(family, tensors, config), assign=True)
    return network.eval().requires_grad_(True), tensors


@pytest.fixture(scope="module")
def radd() -> tuple[Transformer, dict[str, Tensor], dict[str, Tensor]]:
    folder = fixtures("radd")
    return published(RADD, folder / "model.safetensors")[0], *(
        load_file(folder / f"{name}.safetensors") for name in ("forward", "losses")
    )


@pytest.fixture(scope="module")
def smdm() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    return tuple(load_file(fixtures("smdm") / f"{name}.safetensors") for name in ("forward", "losses"))


def everywhere(network: Transformer, tokens: Tensor, skip: int = 0) -> Tensor:
    """Logits at all positions but each row's first `skip`."""
    rows, length = tokens.shape
    at = torch.arange(rows * length).view(rows, length)[:, skip:]
    with torch.no_grad():
        return network(tokens, at.flatten()).view(rows, length - skip, -1)


def close(ours: Tensor, theirs: Tensor, *, atol: float = 0.0, rtol: float = 0.0) -> None:
    torch.testing.assert_close(ours.double(), theirs.double(), atol=atol, rtol=rtol)


def test_radd_forward(radd):
    """Largest errors seen: logits (up to 7.5) 4.9e-6, log-probabilities (down to -14) 5.7e-6."""
    network, forward, _ = radd
    logits = everywhere(network, forward["x"])
    close(logits, forward["logits"][..., :-1], atol=5e-5)
    close(logits.log_softmax(-1), forward["log_probs"][..., :-1], atol=5e-5)


def test_radd_rotary(radd):
    network, forward, _ = radd
    cos, sin = rotary_tables(network.config, 32, torch.device("cpu"))
    turned, given = forward["rotary.qkv_out"], forward["rotary.qkv_in"]
    for kind in (0, 1):
        close(rotate(given[:, :, kind], (cos, sin)), turned[:, :, kind], atol=4e-6)
    assert torch.equal(given[:, :, 2], turned[:, :, 2])


def level_of(losses: dict[str, Tensor], name: str) -> Tensor:
    """u that leads `corrupt` to the recorded level: t = (1 - e^-sigma) / (1 - eps), lambda, or a point in k's bin."""
    level = losses[f"{name}.level"].flatten().double()
    if name == "k_DCE":
        return (level - 0.5) / losses["x0"].shape[1]
    return level if name == "lambda_DCE" else -torch.expm1(-level) / (1 - 1e-3)


RADD_LOSSES = {
    "t_DSE": TimeDSE(power=1.0),
    "t_DCE": TimeDCE(power=1.0),
    "lambda_DCE": LambdaDCE(power=1.0),
    "k_DCE": AnyOrder(),
}


def radd_losses(radd, name: str) -> tuple[Tensor, Corruption]:
    """Our objective at the published level, with the masks that the published code drew."""
    network, _, losses = radd
    x_0, objective = losses["x0"], RADD_LOSSES[name]
    corruption = objective.corrupt(
        torch.ones_like(x_0, dtype=torch.bool), level_of(losses, name), torch.rand(x_0.shape)
    )
    corruption = corruption._replace(masked=losses[f"{name}.xt"] == network.mask_id)
    return weighted(network, x_0, corruption), corruption


@pytest.mark.parametrize("name", RADD_LOSSES)
def test_radd_losses(radd, name: str):
    """Nats of each of eight sequences (up to 332); largest relative error seen: 2.1e-7."""
    nats, (masked, weight, _) = radd_losses(radd, name)
    if name == "t_DCE":  # the published code leaves the score's log(e^sigma - 1) in, whose mean over levels is zero
        sigma = radd[2]["t_DCE.level"].flatten().double()
        nats = nats + weight * masked.sum(-1) * torch.expm1(sigma).log()
    close(nats.detach(), radd[2][f"{name}.loss"], rtol=2e-6)


def test_radd_dse_is_dce(radd):
    """The score entropy as published, a sum of V exponentials that cancel, is the weighted cross entropy."""
    network, _, losses = radd
    x_0, x_t = losses["x0"], losses["t_DSE.xt"]
    sigma = losses["t_DSE.level"].double()
    log_q = everywhere(network, x_t).double().log_softmax(-1)
    log_s = log_q - torch.expm1(sigma).log()[..., None]
    ratio = 1 / torch.expm1(sigma)
    term = log_s.exp().sum(-1) - ratio * log_s.gather(-1, x_0[..., None]).squeeze(-1) + ratio * (ratio.log() - 1)
    rate = (1 - 1e-3) * sigma.exp()
    close((rate * term * (x_t == network.mask_id)).sum(-1), losses["t_DSE.loss"], rtol=2e-6)
    close(radd_losses(radd, "t_DSE")[0].detach(), (rate * term * (x_t == network.mask_id)).sum(-1), rtol=2e-6)


def test_radd_gradients(radd):
    """Norms of the mean lambda-DCE's gradients; largest relative error seen: 1.9e-7."""
    network, _, losses = radd
    gradients = gradients_of(RADD, network, radd_losses(radd, "lambda_DCE")[0].mean())
    assert_norms(gradients, {k.removeprefix("grad."): v for k, v in losses.items() if k.startswith("grad.")})


@pytest.mark.parametrize("order", ["ar_forward", "ar_backward", "ar_random"])
def test_radd_orders(radd, order: str):
    """-log p of four sequences in a given order; largest relative error seen: 1.7e-7."""
    network, _, losses = radd
    plan = losses[f"{order}.order"].argsort().expand(4, -1)
    estimate = ordered_log_likelihood(network, losses["x0"][:4], plan)
    close(estimate.per_sequence, losses[f"{order}.loss"], rtol=2e-6)
    assert estimate.evaluations == 4 * 32


@pytest.mark.parametrize(("tables", "suffix"), [("bfloat16", ""), ("float32", "_fp32_rope")])
@pytest.mark.parametrize("name", ["mdm", "arm"])
def test_smdm_forward(smdm, name: str, tables: str, suffix: str):
    """Largest error seen in logits (up to 11): none with bfloat16 tables, 6.7e-6 with float32 ones, which differ from
    theirs by 2.4e-7. Between the two kinds of tables logits differ by more than 0.01.
    """
    forward, _ = smdm
    network, _ = published(SMDM, fixtures("smdm") / f"{name}.safetensors", rotary_dtype=tables)
    assert network.causal == (name == "arm")
    theirs = forward[f"{name}.logits{suffix}"]
    # theirs stand at the position that is read, ours at the one that is predicted: a given token before, none after
    ours = everywhere(network, forward["x"], 1) if network.causal else everywhere(network, forward["x_masked"])
    close(ours, theirs[:, :-1] if network.causal else theirs, atol=5e-5)
    other = forward[f"{name}.logits" if suffix else f"{name}.logits_fp32_rope"]
    assert float((theirs - other).abs().max()) > 0.01


def test_smdm_rotary(smdm):
    forward, _ = smdm
    config = TransformerConfig(vocab=128, layers=1, heads=4, width=64)
    for dtype, tables, turned in (("float32", "fp32", "fp32_table"), ("bfloat16", "bf16", "bf16_table")):
        cos, sin = rotary_tables(replace(config, rotary_dtype=dtype), 64, torch.device("cpu"))
        close(cos[:, 0, :8], forward[f"rope.cos_{tables}"], atol=4e-6)
        close(sin[:, 0, 8:], forward[f"rope.sin_{tables}"], atol=4e-6)
        close(rotate(forward["rope.q_in"], (cos, sin)), forward[f"rope.q_out_{turned}"], atol=4e-6)


def test_smdm_pretraining_loss(smdm):
    """Sum of cross entropy / p over B L; relative errors seen: loss 3e-8, a token 1.4e-7, gradients' norms 2.2e-7."""
    _, losses = smdm
    network, _ = published(SMDM, fixtures("smdm") / "mdm.safetensors")
    x_0, masked, p = (losses[f"pretrain.{name}"] for name in ("x0", "mask", "p_mask"))
    assert torch.equal(x_0.masked_fill(masked, network.mask_id), losses["pretrain.noisy"])
    loss = weighted(network, x_0, Corruption(masked, 1 / p.double(), p)).sum() / x_0.numel()
    close(loss.detach(), losses["pretrain.loss"], rtol=2e-6)
    with torch.no_grad():
        at = masked.flatten().nonzero().squeeze(-1)
        each = (
            -network(losses["pretrain.noisy"], at, then=Target(x_0.flatten()[at], network.vocab))
            / p[at // x_0.shape[1]]
        )
    close(each, losses["pretrain.per_masked_token"], rtol=2e-6)
    prefix = "pretrain.grad_norm."
    assert_norms(
        gradients_of(SMDM, network, loss), {k.removeprefix(prefix): v for k, v in losses.items() if prefix in k}
    )


@pytest.mark.parametrize("dropped", [0, 1])
def test_smdm_fine_tuning_loss(smdm, dropped: int):
    """Only answers (with their padding) are masked and counted; dropped = 1 masks the whole prompt, unscored."""
    _, losses = smdm
    network, _ = published(SMDM, fixtures("smdm") / "mdm.safetensors")
    noisy, masked, p = (losses[f"sft.cfgdrop{dropped}.{name}"] for name in ("noisy", "mask", "p_mask"))
    x_0, prompt = losses["sft.data"][:, : noisy.shape[1]], losses["sft.input_length"]
    in_prompt = torch.arange(x_0.shape[1]) < prompt[:, None]
    scored = masked & ~in_prompt
    at = scored.flatten().nonzero().squeeze(-1)
    with torch.no_grad():
        nats = -network(noisy, at, then=Target(x_0.flatten()[at], network.vocab)) / p[at // x_0.shape[1]]
    close(nats.sum() / (x_0.numel() - prompt.sum()), losses[f"sft.cfgdrop{dropped}.loss"], rtol=2e-6)


def test_smdm_likelihoods(smdm):
    """An answer given a prefix: chain rule of both networks, and 32 recorded maskings; relative error seen: 4e-8."""
    _, losses = smdm
    x_0 = torch.cat([losses["lik.prefix"], losses["lik.target"]])[None]
    answer = torch.arange(x_0.shape[1])[None] >= len(losses["lik.prefix"])
    arm, _ = published(SMDM, fixtures("smdm") / "arm.safetensors")
    mdm, _ = published(SMDM, fixtures("smdm") / "mdm.safetensors")
    close(log_likelihood(arm, x_0, answer).per_sequence[0], losses["lik.arm_nll"], rtol=2e-6)
    chain = ordered_log_likelihood(mdm, x_0, draw_plan(LeftToRight(), answer))
    close(chain.per_sequence[0], losses["lik.chain_rule.cfg0.0.nll"], rtol=2e-6)
    p = losses["lik.mc32.cfg0.0.p_mask"].double()
    masked = (losses["lik.mc32.cfg0.0.xt_before_prefix_restore"] == mdm.mask_id) & answer
    with torch.no_grad():
        nats = weighted(mdm, x_0.expand(32, -1), Corruption(masked, 1 / p, p))
    close(nats.mean(), losses["lik.mc32.cfg0.0.nll"], rtol=2e-6)


def gradients_of(family: Family, network: Transformer, loss: Tensor) -> dict[str, Tensor]:
    """Gradients in the published names: the maps are linear, so they carry gradients as they carry weights."""
    names, parameters = zip(*network.named_parameters(), strict=True)
    gradients = torch.autograd.grad(loss, parameters)
    return to_published(family, dict(zip(names, gradients, strict=True)), network.config)


def assert_norms(gradients: dict[str, Tensor], norms: dict[str, Tensor]) -> None:
    assert norms.keys() == gradients.keys() - RADD.buffers.keys()
    for name, norm in norms.items():
        close(gradients[name].norm(), norm, rtol=2e-6)


@pytest.mark.parametrize("name", ["mdm", "arm"])
def test_smdm_round_trip_is_bitwise(name: str, tmp_path: Path):
    network, tensors = published(SMDM, fixtures("smdm") / f"{name}.safetensors")
    back = to_published(SMDM, network.state_dict(), network.config)
    assert_same(back, tensors)
    save_file(back, tmp_path / "back.safetensors")
    assert_same(load_file(tmp_path / "back.safetensors"), tensors)


def test_radd_round_trip_is_bitwise_up_to_the_mask(radd, tmp_path: Path):
    tensors = load_file(fixtures("radd") / "model.safetensors")
    back = to_published(RADD, radd[0].state_dict(), radd[0].config)
    for name in ("output_layer.linear.weight", "output_layer.linear.bias"):
        assert not bool(back[name][-1].any())
        tensors[name][-1] = 0
    assert_same(back, tensors)
    save_file(back, tmp_path / "back.safetensors")
    assert_same(load_file(tmp_path / "back.safetensors"), tensors)


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype
        assert torch.equal(ours[name], tensor), name


CONFIGS = {
    "radd": (RADD, TransformerConfig(vocab=11, layers=3, heads=2, width=8, flavour="dit")),
    "mdm": (SMDM, TransformerConfig(vocab=11, layers=2, heads=6, kv_heads=2, width=24, mlp=20)),
    "arm": (SMDM, TransformerConfig(vocab=11, layers=2, heads=4, width=16, mlp=24, causal=True)),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_there_and_back(name: str):
    """Ours -> theirs -> ours is bitwise the same, and the shapes give the configuration back."""
    family, config = CONFIGS[name]
    weights = Transformer(config, seed=1).state_dict()
    tensors = to_published(family, weights, config)
    assert_same(to_ours(family, tensors, config), dict(weights))
    found = config_of(family, tensors, heads=config.heads, kv_heads=config.kv_heads)
    assert (found.parameters(), found.causal, found.flavour) == (config.parameters(), config.causal, config.flavour)
    assert found == replace(config, mlp=config.mlp_width, **family.config)
    assert found.rotary_dtype == ("float32" if family is RADD else "bfloat16")
    without_buffers = {key: tensor for key, tensor in tensors.items() if key not in family.buffers}
    assert_same(to_ours(family, without_buffers, config), dict(weights))


def test_grouped_queries_row_by_row():
    """Head h's queries, and its group's keys and values, stand where SMDM's fused layout has them."""
    config = CONFIGS["mdm"][1]
    d, share = config.head_width, config.heads // config.groups
    theirs = to_published(SMDM, Transformer(config, seed=2).state_dict(), config)
    packed = theirs["transformer.h.1.attn.attn.weight"]
    q, k, v = to_ours(SMDM, theirs, config)["blocks.1.attention.qkv.weight"].split(
        [config.width, config.groups * d, config.groups * d]
    )
    for head in range(config.heads):
        start = ((share + 2) * (head // share) + head % share) * d
        assert torch.equal(q[head * d : (head + 1) * d], packed[start : start + d])
    for group in range(config.groups):
        start = ((share + 2) * group + share) * d
        assert torch.equal(k[group * d : (group + 1) * d], packed[start : start + d])
        assert torch.equal(v[group * d : (group + 1) * d], packed[start + d : start + 2 * d])


def test_errors_name_every_tensor_that_is_wrong():
    family, config = CONFIGS["mdm"]
    tensors = to_published(family, Transformer(config).state_dict(), config)
    del tensors["transformer.h.1.norm_2.weight"]
    tensors["adapter.bias"] = torch.zeros(3)
    tensors["lm_head.weight"] = torch.zeros(11, 23)
    with pytest.raises(ValueError, match="missing") as caught:
        to_ours(family, tensors, config)
    message = str(caught.value)
    assert "missing: transformer.h.1.norm_2.weight; surplus: adapter.bias;" in message
    assert "misshapen: lm_head.weight (11, 23) instead of (11, 24)" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("family", "config"),
    [
        (RADD, CONFIGS["mdm"][1]),
        (SMDM, CONFIGS["radd"][1]),
        (RADD, replace(CONFIGS["radd"][1], causal=True)),
        (RADD, replace(CONFIGS["radd"][1], kv_heads=1)),
        (SMDM, replace(CONFIGS["mdm"][1], rotary_base=5e5)),
        (SMDM, replace(CONFIGS["mdm"][1], mask_id=3)),
    ],
)
def test_a_network_that_the_published_code_has_not_is_refused(family: Family, config: TransformerConfig):
    with pytest.raises(ValueError, match=f"{family.name} has no such network .*: it requires flavour"):
        to_published(family, Transformer(config, seed=None).state_dict(), config)


def test_another_familys_tensors_are_refused():
    family, config = CONFIGS["mdm"]
    tensors = to_published(family, Transformer(config).state_dict(), config)
    with pytest.raises(ValueError, match=r"not a checkpoint of RADD: it has no vocab_embed\.embedding"):
        config_of(RADD, tensors, heads=2)
    with pytest.raises(ValueError, match=r"not a checkpoint of SMDM: .* should be matrices"):
        config_of(SMDM, {**tensors, "lm_head.weight": torch.zeros(3)}, heads=6)


@pytest.mark.parametrize("size", ["small", "medium"])
def test_radd_sizes(size: str):
    """Published counts hold the mask's output row, D + 1 numbers that are never predicted, which ours leaves out."""
    real = json.loads((fixtures("radd") / "real_shapes.json").read_text(encoding="utf-8"))[size]
    shapes = {name: torch.empty(shape, device="meta") for name, shape in real["state_dict"].items()}
    config = config_of(RADD, shapes, heads={"small": 12, "medium": 16}[size])
    network = Transformer(config, seed=None)
    network.load_state_dict(to_ours(RADD, shapes, config), assign=True)
    total = sum(parameter.numel() for parameter in network.parameters())
    assert total == config.parameters()["total"] == real["params"] - (config.width + 1)
    assert config.parameters()["non_embedding"] == real["non_embedding_params"]
    back = to_published(RADD, network.state_dict(), config)
    assert {name: list(tensor.shape) for name, tensor in back.items()} == real["state_dict"]


def test_smdm_sizes():
    """All thirty sizes; the published totals are the MDMs', an ARM has no embedding of the mask."""
    sizes = json.loads((fixtures("smdm") / "family.json").read_text(encoding="utf-8"))
    assert len(sizes) == 30
    for size in sizes.values():
        config = TransformerConfig(
            vocab=32_000,
            layers=size["n_layer"],
            heads=size["n_head"],
            kv_heads=size["n_query_groups"],
            width=size["n_embd"],
            mlp=size["intermediate_size"],
        )
        for causal, mask_row in ((False, 0), (True, size["n_embd"])):
            network = Transformer(replace(config, causal=causal), seed=None)
            total = sum(parameter.numel() for parameter in network.parameters())
            assert total == network.config.parameters()["total"] == size["params"] - mask_row
            assert network.config.parameters()["non_embedding"] == size["non_embedding"]
