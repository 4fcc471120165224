"""How long a run is, by tokens, FLOPs as the papers count them, or true FLOPs; and what it needs of a machine."""

import time
from dataclasses import replace

import torch

from unmask.corruption import stratified
from unmask.files import Row, is_number
from unmask.objectives import AnyOrder
from unmask.train.config import TrainConfig
from unmask.train.optimiser import hidden_matrices
from unmask.train.precision import Precision, autocast
from unmask.transformer import TransformerConfig


def steps_for(
    config: TrainConfig, *, tokens: float | None = None, flops: float | None = None, true_flops: float | None = None
) -> int:
    """Steps that come nearest to a budget, at least one; `flops` is 6ND, N without embedding and output layer.

    Raises ValueError unless exactly one budget, above 0 and finite, is given.
    """
    given = {"tokens": tokens, "flops_6nd": flops, "flops_true": true_flops}
    given = {name: value for name, value in given.items() if value is not None}
    if len(given) != 1 or not all(is_number(value) and value > 0 for value in given.values()):
        raise ValueError(
            f"a budget is one number above 0, below 1e100, of tokens, FLOPs or true FLOPs: {given or 'none given'}"
        )
    ((name, value),) = given.items()
    many = 1_000_000  # one step's tokens are rounded to a whole number
    return max(1, round(value / (replace(config, steps=many).cost()[name] / many)))


def memory(config: TrainConfig) -> Row:
    """Bytes: of weights, gradients, two moments and the average, in float32; and about what one part of a step keeps.

    The activations are in float32, of a position and layer 8 widths and 3 of the MLP's; bfloat16 takes half.
    """
    size = config.network
    positions = config.batch // config.accumulate * (config.length + 1)
    return {
        "state": sum(state(config).values()),
        "activations": 4 * positions * size.layers * (8 * size.width + 3 * size.mlp_width),
    }


def state(config: TrainConfig) -> Row:
    """Bytes in float32 of what a run keeps from step to step; all but the gradients of what is trained is saved.

    Muon keeps one moment of its matrices; weights that have adapters keep neither gradients nor moments.
    """
    total, matrices = config.network.parameters()["total"], 0
    if config.optimiser.muon:
        matrices = sum(p.numel() for p in hidden_matrices(config.network.build(None)))
    learnt = config.adapters() or total
    counts = {"weights": total + config.adapters(), "gradients": learnt, "moments": 2 * learnt - matrices}
    return {name: 4 * count for name, count in {**counts, "average": learnt if config.ema else 0}.items()}


def saved(config: TrainConfig) -> int:
    """Bytes of a checkpoint: of the weights that are trained, their moments and average."""
    kept = state(config)
    return kept["gradients"] + kept["moments"] + kept["average"]


PROBE = TransformerConfig(vocab=4096, layers=4, heads=8, width=512)


def measured_rate(
    device: torch.device,
    precision: Precision,
    *,
    size: TransformerConfig = PROBE,
    shape: tuple[int, int] | None = None,
    seconds: float = 2.0,
) -> float:
    """True FLOPs a second of this machine in steps of an MDM of that size on (rows, length) tokens, two at least."""
    network = replace(size, causal=False).build().to(device)
    optimiser = torch.optim.AdamW(network.parameters(), fused=device.type in ("cpu", "cuda"))
    rows, length = shape or ((4, 256) if device.type == "cpu" else (64, 1024))
    generator = torch.Generator().manual_seed(0)
    x_0 = torch.randint(size.vocab, (rows, length), generator=generator)
    maskable = torch.ones_like(x_0, dtype=torch.bool)
    u = stratified(rows, torch.tensor(0.5, dtype=torch.float64))

    def step() -> None:
        with autocast(device, precision):
            loss = AnyOrder()(network, x_0, maskable, u, generator).sum() / x_0.numel()
        loss.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        float(loss.detach())  # waits for the device

    step()
    start, count = time.perf_counter(), 0
    while count < 2 or time.perf_counter() - start < seconds:
        step()
        count += 1
    flops = 3 * network.config.forward_flops(length, (length + 1) / 2) * rows * count
    return flops / (time.perf_counter() - start)
