"""SEDD and MDLM: the published networks' numbers, and a plain statement of the network, term by term."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from test_families import assert_same, close, fixtures
from torch import Tensor

from unmask.conditioned import Conditioned, ConditionedConfig
from unmask.families import MDLM, SEDD, config_of, network_of, to_ours, to_published
from unmask.likelihood import (
    decoder_log_likelihood,
    importance_log_likelihood,
    log_likelihood,
    ordered_log_likelihood,
)
from unmask.network import Target
from unmask.objectives import Corruption, ScoreEntropy, TimeDSE, weighted
from unmask.sampling import Confidence, RandomOrder, Speculative, draw_plan, sample
from unmask.transformer import rotary_tables

SMALL = ConditionedConfig(vocab=7, layers=2, heads=2, width=8, condition=6)


@pytest.fixture(scope="module")
def mdlm() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    return tuple(load_file(fixtures("mdlm") / f"{name}.safetensors") for name in ("model", "forward"))


def read(tensors: dict[str, Tensor], **known: object) -> Conditioned:
    config = config_of(MDLM, tensors, heads=2, **known)
    network = network_of(config)
    network.load_state_dict(to_ours(MDLM, tensors, config), assign=True)
    return network.eval()


def at_level(network: Conditioned, tokens: Tensor, level: Tensor) -> Tensor:
    with torch.no_grad():
        logits = network(tokens, torch.arange(tokens.numel()), level=level)
    return logits.view(*tokens.shape, -1)


def level_of(sigma: Tensor) -> Tensor:
    return -torch.expm1(-sigma.double())


def test_mdlm_forward(mdlm):
    """Logits up to 9: largest error seen 5e-6; without time conditioning the level is not looked at."""
    tensors, forward = mdlm
    x, level = forward["x"], level_of(forward["sigma"])
    close(at_level(read(tensors, timed=True), x, level), forward["backbone_at_sigma"][..., :-1], atol=5e-5)
    untimed = read(tensors)
    close(at_level(untimed, x, level), forward["backbone_at_0"][..., :-1], atol=5e-5)
    masked = x == untimed.mask_id
    assert bool(masked.any())
    for network, name in ((untimed, "subs_log_probs"), (read(tensors, timed=True), "subs_log_probs_time_cond")):
        log_q = at_level(network, x, level).log_softmax(-1)
        close(log_q[masked], forward[name][..., :-1][masked], atol=5e-5)


def test_mdlm_embedding_of_the_level(mdlm):
    tensors, forward = mdlm
    network = read(tensors, timed=True)
    seen = []
    network.level.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    network.told(forward["sigma"].double())
    close(seen[0], forward["timestep_embedding"], atol=2e-6)


def plain(network: Conditioned, tokens: Tensor, sigma: float) -> Tensor:
    """The output layer's numbers [L V] of one text, by the definitions of SEDD (arXiv 2310.16834) and DiT (2212.09748),
    one position and one head at a time.
    """
    w, config = dict(network.named_parameters()), network.config
    d, c = config.width // config.heads, config.condition

    def linear(x: Tensor, name: str) -> Tensor:
        return w[f"{name}.weight"] @ x + w.get(f"{name}.bias", 0)

    def silu(x: Tensor) -> Tensor:
        return x / (1 + (-x).exp())

    def norm(x: Tensor, name: str) -> Tensor:
        centred = x - x.mean()
        return centred / (centred.square().mean() + 1e-5).sqrt() * w[f"{name}.weight"]

    f = [10_000 ** (-j / 128) for j in range(128)]
    waves = torch.tensor([math.cos(sigma * a) for a in f] + [math.sin(sigma * a) for a in f], dtype=torch.float64)
    told = silu(linear(silu(linear(waves, "level.0")), "level.2"))
    assert told.shape == (c,)
    cos, sin = (table[:, 0].double() for table in rotary_tables(config.inner, len(tokens), torch.device("cpu")))

    def turned(x: Tensor, i: int) -> Tensor:
        half = len(x) // 2
        return x * cos[i] + torch.cat([x[half:], x[:half]]) * sin[i]

    xs = [w["embedding.weight"][token] for token in tokens.tolist()]
    for layer in range(config.layers):
        name = f"blocks.{layer}"
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = linear(told, f"{name}.modulation").split(config.width)
        rows = [linear(norm(x, f"{name}.norm_1") * (1 + scale_1) + shift_1, f"{name}.attention.qkv") for x in xs]
        heads = [[] for _ in xs]
        for h in range(config.heads):
            q, k, v = ([r[n * config.width + h * d :][:d] for r in rows] for n in range(3))
            q, k = ([turned(x, i) for i, x in enumerate(part)] for part in (q, k))
            for i, out in enumerate(heads):
                weights = torch.stack([q[i] @ key / math.sqrt(d) for key in k]).softmax(0)
                out.append(sum(a * value for a, value in zip(weights, v, strict=True)))
        attended = [linear(torch.cat(out), f"{name}.attention.project") for out in heads]
        xs = [x + gate_1 * y for x, y in zip(xs, attended, strict=True)]
        for i, x in enumerate(xs):
            inner = F.gelu(
                linear(norm(x, f"{name}.norm_2") * (1 + scale_2) + shift_2, f"{name}.mlp.up"), approximate="tanh"
            )
            xs[i] = x + gate_2 * linear(inner, f"{name}.mlp.down")
    shift, scale = linear(told, "modulation").split(config.width)
    return torch.stack([linear(norm(x, "norm") * (1 + scale) + shift, "output") for x in xs])


def lively(config: ConditionedConfig, seed: int = 0) -> Conditioned:
    """A network in float64 none of whose parameters is zero or one."""
    network = Conditioned(config, seed=seed).double()
    generator = torch.Generator().manual_seed(seed + 1)
    for parameter in network.parameters():
        parameter.data += torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / 4
    return network


@pytest.mark.parametrize("reading", ["law", "score", "scaled score"])
def test_the_network_is_its_definition(reading: str):
    """Each row at its own sigma; exp(logits) are s / r, and SEDD's log s is raw - log(e^sigma - 1) - log V, or raw."""
    network = lively(replace(SMALL, reading=reading))
    tokens = torch.tensor([[7, 3, 7, 1, 7], [7, 7, 7, 7, 2]])
    sigma = torch.tensor([0.3, 4.0], dtype=torch.float64)
    with torch.no_grad():
        logits = at_level(network, tokens, level_of(sigma))
        raw = torch.stack([plain(network, row, float(s)) for row, s in zip(tokens, sigma, strict=True)])
    log_r = -torch.expm1(sigma).log()[:, None, None]
    if reading == "law":
        close(logits, raw, atol=1e-6)  # waves and rotary tables are float32
    elif reading == "score":
        close(logits + log_r, raw, atol=1e-6)
    else:
        close(logits + log_r, raw + log_r - math.log(7), atol=1e-6)
    assert network.normalised == (reading == "law")


def test_levels():
    """None is the share of masks; past the schedule's end is its end; an untimed network looks at none."""
    network = lively(replace(SMALL, reading="score"))
    tokens = torch.tensor([[7, 3, 7, 1], [7, 7, 7, 7]])
    at = torch.arange(8)
    share = torch.tensor([0.5, 1.0])
    with torch.no_grad():
        assert torch.equal(network(tokens, at), network(tokens, at, level=share))
        ends = network(tokens, at, level=torch.tensor([0.999, 0.9999]).double())
        close(ends, network(tokens, at, level=torch.tensor([1 - 1e-3, 1.0]).double()), atol=1e-12)
        assert bool(network(tokens, at, level=torch.zeros(2)).isfinite().all())
        untimed = lively(replace(SMALL, timed=False))
        assert torch.equal(untimed(tokens, at, level=torch.tensor([0.1, 0.9])), untimed(tokens, at))


def test_bound_likelihoods_and_sampler_tell_one_level():
    """That of what there is to write, whatever is given: one open token has one law, and each policy that of a plan."""
    network = lively(SMALL)
    x, open_ = torch.tensor([[1, 3, 0, 6, 2, 5]]), torch.tensor([[False, False, True, False, False, False]])
    kinds = (log_likelihood, importance_log_likelihood, partial(decoder_log_likelihood, policy=Confidence()))
    told = [read(network, x, open_).nats for read in kinds]
    told.append(ordered_log_likelihood(network, x, draw_plan(RandomOrder(), open_)).nats)
    assert max(told) - min(told) < 1e-9
    open_ = torch.tensor([[False, True, True, False, False, True]])  # thirds, which float32 would round
    canvas = x.masked_fill(open_, network.mask_id)
    for policy in (RandomOrder(), RandomOrder(2), Speculative(RandomOrder())):
        samples = sample(network, canvas, policy, seed=3)
        plan = draw_plan(policy, open_, seed=3)
        exact = ordered_log_likelihood(network, samples.tokens[0][None], plan)
        assert float(-samples.confidence[0].log().sum()) == pytest.approx(exact.nats, abs=1e-11)


def test_chunks_rows_and_indices_change_nothing(monkeypatch: pytest.MonkeyPatch):
    network = lively(replace(SMALL, reading="scaled score"))
    tokens = torch.tensor([[7, 3, 7, 1], [7, 7, 7, 7], [1, 2, 7, 0]])
    level = torch.tensor([0.2, 0.9, 0.4])
    at = torch.tensor([9, 0, 5, 2, 10])
    with torch.no_grad():
        whole = at_level(network, tokens, level).flatten(0, 1)[at]
        monkeypatch.setattr("unmask.network.CHUNK", 14)
        ids = torch.tensor([1, 2, 3, 4, 5])
        got = network(tokens, at, then=Target(ids, network.vocab), level=level)
        close(got, whole.log_softmax(-1).gather(-1, ids[:, None])[:, 0], atol=1e-12)
        close(network(tokens[1:2], torch.tensor([1]), level=level[1:2]), whole[2:3], atol=1e-12)


def test_sizes_in_closed_form():
    network = Conditioned(SMALL)
    total = sum(parameter.numel() for parameter in network.parameters())
    outside = network.embedding.weight.numel() + sum(p.numel() for p in network.output.parameters())
    assert SMALL.parameters() == {"total": total, "non_embedding": total - outside}
    published = ConditionedConfig(vocab=50_257, reading="scaled score")
    assert sum(p.numel() for p in network_of(published).parameters()) == published.parameters()["total"]


def test_published_initialisation():
    """Nothing is predicted, and the level changes nothing, before the first step."""
    network = Conditioned(SMALL, seed=1)
    with torch.no_grad():
        assert not bool(at_level(network, torch.tensor([[7, 1, 7]]), torch.tensor([0.5])).any())
    assert float(network.blocks[0].mlp.down.bias.detach().abs().max()) <= 32**-0.5
    assert torch.equal(network.embedding.weight, Conditioned(SMALL, seed=1).embedding.weight)


@pytest.mark.parametrize("reading", ["scaled score", "score"])
def test_the_score_entropy_is_sedds_and_bounds_the_cross_entropy(reading: str):
    """dsigma sum_masked [sum_v s_v - r log s_x0 + K(r)], literally, from log s; it exceeds the cross entropy."""
    network = lively(replace(SMALL, reading=reading))
    x_0 = torch.randint(7, (6, 5), generator=torch.Generator().manual_seed(2))
    u = torch.linspace(0.2, 0.95, 6, dtype=torch.float64)
    objective = TimeDSE()
    noise = torch.rand(6, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    corruption = objective.corrupt(torch.ones_like(x_0, dtype=torch.bool), u, noise)
    with torch.no_grad():
        got = weighted(network, x_0, corruption, ScoreEntropy)
        cross = weighted(network, x_0, corruption, Target)
        masked, weight, level = corruption
        sigma = -torch.log1p(-level)
        r = (1 / torch.expm1(sigma))[:, None]
        log_s = at_level(network, x_0.masked_fill(masked, 7), level) + r.log()[..., None]
    log_s_x0 = log_s.gather(-1, x_0[..., None]).squeeze(-1)
    term = log_s.exp().sum(-1) - r * log_s_x0 + r * (r.log() - 1)
    close(got, (weight[:, None] / r * term * masked).sum(-1), rtol=1e-9)
    assert bool((got > cross)[masked.any(-1)].all())


def test_there_and_back():
    """Ours -> theirs -> ours is bitwise the same but for the mask's output row; the shapes give the sizes back."""
    for family, config in ((SEDD, replace(SMALL, reading="score")), (MDLM, replace(SMALL, timed=False))):
        weights = Conditioned(config, seed=1).state_dict()
        theirs = to_published(family, weights, config)
        assert_same(to_ours(family, theirs, config), dict(weights))
        found = config_of(family, theirs, heads=2, reading=config.reading, timed=config.timed)
        assert found == config
        with pytest.raises(ValueError, match="has no such network"):
            to_published(MDLM if family is SEDD else SEDD, weights, config)


@pytest.mark.parametrize("name", ["subs", "subs_cov"])
def test_mdlm_losses(mdlm, name: str):
    """Nats of each sequence at the recorded times and masks; largest relative error seen: 4e-7."""
    tensors, forward = mdlm
    network = read(tensors)
    x_0, x_t, t = forward["loss.x0"], forward[f"loss.{name}.xt"], forward[f"loss.{name}.t"].double()
    alpha = 1 - (1 - 1e-3) * t
    rate = (1 - 1e-3) / (1 - alpha)
    if name == "subs_cov":  # log(1 - e^-sigma) is drawn evenly, between its value at sigma 1e-3 and about 0
        rate = torch.full_like(t, -math.log(-math.expm1(-1e-3)))
    masked = x_t == network.mask_id
    with torch.no_grad():
        nats = weighted(network, x_0, Corruption(masked, rate, 1 - alpha))
    close(nats, forward[f"loss.{name}.nlls"].sum(-1), rtol=5e-6)


def with_the_masks_row(tensors: dict[str, Tensor]) -> Conditioned:
    """The untimed network that predicts the mask as well, as MDLM's d3pm does: no sampler of ours can use it."""
    network = read(tensors)
    for name in ("weight", "bias"):
        whole = tensors[f"backbone.output_layer.linear.{name}"]
        assert torch.equal(whole[:-1], getattr(network.output, name))
        setattr(network.output, name, torch.nn.Parameter(whole))
    return network


def test_mdlm_d3pm(mdlm):
    """Its law is one over tokens and mask; ours is that one, given that a token is written."""
    tensors, forward = mdlm
    x, level, theirs = forward["x"], level_of(forward["sigma"]), forward["d3pm_log_probs"]
    close(at_level(with_the_masks_row(tensors), x, level).log_softmax(-1), theirs, atol=5e-5)
    close(at_level(read(tensors), x, level).log_softmax(-1), theirs[..., :-1].log_softmax(-1), atol=5e-5)


def test_mdlm_d3pm_loss(mdlm):
    """T = 100 steps: with q_m = q(mask), a masked token pays T times the divergence of its posterior,
    (log(alpha_t q_m / t + 1) - log q(x_0)) / (T t) + (1 - 1/(T t)) log((alpha_t q_m / t + 1) / (alpha_s q_m / s + 1)),
    and 1/t times its cross entropy where the mask is not predicted: ours, at any T. d3pm also pays for reading off each
    token where it stands, -log q(x_0 | x_0), because its network need not copy. Largest relative error seen: 2e-7.
    """
    tensors, forward = mdlm
    steps, x_0, x_t = 100, forward["loss.x0"], forward["loss.d3pm_T100.xt"]
    t = forward["loss.d3pm_T100.t"].double()
    t = ((t * steps).long() / steps + 1 / steps)[:, None]  # their grid
    s, masked = t - 1 / steps, x_t == 50
    log_q, copied = (at_level(with_the_masks_row(tensors), x, t[:, 0]).double().log_softmax(-1) for x in (x_t, x_0))

    def nats(log_q: Tensor, q_m: Tensor) -> Tensor:
        log_q_0 = log_q.gather(-1, x_0[..., None]).squeeze(-1)
        now, then = (((1 - at) * q_m / at.clamp(min=1e-12) + 1).log() for at in (t, s))
        share = 1 / (steps * t)
        return (steps * (share * (now - log_q_0) + (1 - share) * (now - then)) * masked).sum(-1)

    copying = -copied.gather(-1, x_0[..., None]).squeeze(-1).sum(-1)
    got = copying + nats(log_q, log_q[..., -1].exp())
    close(got, forward["loss.d3pm_T100.nlls"].double().sum(-1), rtol=5e-6)
    ours = read(tensors)
    with torch.no_grad():
        got = weighted(ours, x_0, Corruption(masked, 1 / t[:, 0], t[:, 0]))
    log_p = at_level(ours, x_t, t[:, 0]).log_softmax(-1).double()
    close(got, nats(log_p, torch.zeros_like(log_p[..., 0])), rtol=1e-5)


@pytest.mark.parametrize("sampler", ["ddpm", "ddpm_cache", "analytic", "denoiser"])
def test_mdlm_samplers_follow_tau_leaping(mdlm, sampler: str):
    """A step from t to s reveals a masked token with Tweedie's probability, whichever way it is written there."""
    tensors, forward = mdlm
    x, t, s = forward["x"], forward["step.t"], forward["step.t"] - forward["step.dt"]
    masked = x == 50
    # the log-linear schedule with eps = 1e-3 keeps the ratio of levels
    reveal = torch.ones_like(t) if sampler == "denoiser" else 1 - s / t
    q = at_level(read(tensors), x, t[:, 0]).softmax(-1)
    ours = torch.cat([reveal[..., None] * q, (1 - reveal[..., None]).expand(*x.shape, 1)], -1)
    theirs = forward[f"step.{sampler}.unnormalised_probs"]
    theirs = theirs / theirs.sum(-1, keepdim=True)
    close(ours[masked], theirs[masked], atol=2e-6)
