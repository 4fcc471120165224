"""Training steps: tokens per second, and needed FLOPs as a share of the machine's measured matrix-product peak.

    python benchmarks/training.py [--threads 2]

Needed FLOPs are those of the closed form (attention included, the output layer where something is masked). The plain
trainer is written here as published ones are: torch's modules and attention, logits of all positions in float32, cross
entropy on all of them and independent levels, half of the work thrown away; it takes the library's weights, and its
loss of a given masking is checked against the library's. Steps are interleaved, ratios those of the fastest. Peak
memory is that of a process of its own. `--where` prints a profile: where the time of a step goes.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unmask.corruption import stratified
from unmask.cpu import times as by_onednn
from unmask.objectives import AnyOrder, Corruption, weighted
from unmask.train import Precision, autocast
from unmask.transformer import Transformer, TransformerConfig, rotary_tables

LAYERS, WIDTH, HEADS, LENGTH, BATCH = 6, 256, 8, 256, 8
CPU = torch.device("cpu")


def peak(dtype: torch.dtype) -> float:
    """FLOP/s of the fastest of a few large matrix products, by torch and by oneDNN."""
    a, b = torch.randn(2048, 1024, dtype=dtype), torch.randn(2048, 1024, dtype=dtype)
    with torch.no_grad():
        return 2 * 2048 * 1024 * 2048 / min(best(lambda: a @ b.t(), 10), best(lambda: by_onednn(a, b), 10))


def best(work: Callable[[], object], times: int) -> float:
    """Seconds of the fastest of some calls, after one to warm up."""
    seconds = []
    for _ in range(times + 1):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


def ours(network: Transformer, x_0: Tensor, generator: torch.Generator) -> Tensor:
    """The library's step: stratified k-DCE, logits where something is masked, in chunks."""
    u = stratified(len(x_0), torch.rand((), generator=generator, dtype=torch.float64))
    maskable = torch.ones_like(x_0, dtype=torch.bool)
    return AnyOrder()(network, x_0, maskable, u, generator).sum() / x_0.numel()


class Plain(nn.Module):
    """The llama flavour in torch's own words, with a Transformer's weights."""

    def __init__(self, network: Transformer) -> None:
        super().__init__()
        self.config, self.mask_id = network.config, network.mask_id
        self.inner: Any = network
        self.cos, self.sin = rotary_tables(network.config, LENGTH, CPU)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of all positions."""
        width, eps = self.config.width, self.config.norm_eps
        x = self.inner.embedding(tokens)
        for block in self.inner.blocks:
            qkv = F.linear(F.rms_norm(x, (width,), block.norm_1.weight, eps), block.attention.qkv.weight)
            q, k, v = (part.unflatten(-1, (HEADS, -1)) for part in qkv.chunk(3, -1))
            q, k, v = (part.transpose(1, 2) for part in (self.turn(q), self.turn(k), v))
            y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
            x = x + F.linear(y, block.attention.project.weight)
            y = F.linear(F.rms_norm(x, (width,), block.norm_2.weight, eps), block.mlp.gate_up.weight)
            gate, up = y.chunk(2, -1)
            x = x + F.linear(F.silu(gate) * up, block.mlp.down.weight)
        return F.linear(F.rms_norm(x, (width,), self.inner.norm.weight, eps), self.inner.output.weight)

    def turn(self, x: Tensor) -> Tensor:
        """Rotary positions."""
        first, second = x.chunk(2, -1)
        return x * self.cos + torch.cat([second, first], -1) * self.sin


def plain_loss(network: Plain, x_0: Tensor, masked: Tensor, level: Tensor) -> Tensor:
    """Cross entropy at all positions, what is not masked thrown away."""
    logits = network(x_0.masked_fill(masked, network.mask_id))
    nats = F.cross_entropy(logits.flatten(0, 1), x_0.flatten(), reduction="none").view_as(x_0)
    return (nats * masked / level).sum() / x_0.numel()


def plain(network: Plain, x_0: Tensor, generator: torch.Generator) -> Tensor:
    """The published way: independent levels, the output layer on every position."""
    level = (1 - 1e-3) * torch.rand(len(x_0), 1, generator=generator) + 1e-3
    return plain_loss(network, x_0, torch.rand(x_0.shape, generator=generator) < level, level)


def same(network: Transformer, x_0: Tensor) -> None:
    """Raises RuntimeError unless the plain loss of a masking is the library's."""
    level = torch.linspace(0.2, 0.8, len(x_0), dtype=torch.float64)
    masked = torch.rand(x_0.shape, generator=torch.Generator().manual_seed(1)) < level[:, None]
    with torch.no_grad():
        theirs = float(plain_loss(Plain(network), x_0, masked, level[:, None]))
        ours = float(weighted(network, x_0, Corruption(masked, 1 / level, level)).sum() / x_0.numel())
    if abs(ours - theirs) > 1e-4 * theirs:
        raise RuntimeError(f"the plain trainer's loss is {theirs}, the library's {ours}")


def stepper(vocab: int, precision: Precision, trainer: str, batch: int) -> Callable[[], None]:
    """One optimiser step."""
    network, generator = Transformer(sizes(vocab)), torch.Generator().manual_seed(0)
    optimiser = torch.optim.AdamW(network.parameters(), fused=True)
    x_0 = torch.randint(vocab, (batch, LENGTH), generator=generator)
    if trainer == "plain" and batch == BATCH:
        same(network, x_0)

    def step() -> None:
        with autocast(CPU, precision):
            value = ours(network, x_0, generator) if trainer == "ours" else plain(Plain(network), x_0, generator)
        value.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    return step


def sizes(vocab: int) -> TransformerConfig:
    """The issue's network."""
    return TransformerConfig(vocab=vocab, layers=LAYERS, width=WIDTH, heads=HEADS)


def needed(vocab: int, batch: int) -> float:
    """FLOPs of a step: three times the forward pass, the output layer at masked positions."""
    return 3 * sizes(vocab).forward_flops(LENGTH, (LENGTH + 1) / 2) * batch


def memory(vocab: int, precision: Precision, trainer: str, batch: int) -> float:
    """Bytes by which this process grows in two steps."""
    step = stepper(vocab, precision, trainer, batch)
    before = held()
    step()
    step()
    return held() - before


def held() -> float:
    """Most bytes this process has held in memory. (getrusage's ru_maxrss begins with that of the parent process.)"""
    status = Path("/proc/self/status").read_text()
    return 1024.0 * int(status.partition("VmHWM:")[2].split()[0])


def where(vocab: int, precision: Precision) -> None:
    """The profile of three steps."""
    step = stepper(vocab, precision, "ours", BATCH)
    step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        for _ in range(3):
            step()
    print(profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=20, max_name_column_width=40))


def child(*values: object) -> float:
    """`memory` in a process of its own."""
    command = [sys.executable, __file__, "--child", *map(str, values)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--where", action="store_true")
    parser.add_argument("--child", nargs=4)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.child:
        vocab, precision, trainer, batch = options.child
        print(json.dumps(memory(int(vocab), precision, trainer, int(batch))))
        return
    peaks = {"float32": peak(torch.float32), "bfloat16": peak(torch.bfloat16)}
    print(
        f"{options.threads} threads, torch {torch.__version__}; "
        f"{LAYERS} layers, width {WIDTH}, L = {LENGTH}, batch {BATCH}"
    )
    print("matrix-product peak: " + ", ".join(f"{name} {value / 1e9:.0f} GFLOP/s" for name, value in peaks.items()))
    kinds: list[tuple[str, Precision]] = [
        ("plain", "float32"), ("plain", "bfloat16"), ("ours", "float32"), ("ours", "bfloat16")
    ]  # fmt: skip
    for vocab in (4096, 50257):
        steps = {kind: stepper(vocab, kind[1], kind[0], BATCH) for kind in kinds}
        seconds: dict[tuple[str, Precision], list[float]] = {kind: [] for kind in kinds}
        for _ in range(options.rounds + 1):
            for kind, step in steps.items():
                start = time.perf_counter()
                step()
                seconds[kind].append(time.perf_counter() - start)
        fastest = {kind: min(times[1:]) for kind, times in seconds.items()}
        for kind, value in fastest.items():
            flops = needed(vocab, BATCH) / value
            print(
                f"V = {vocab}: {kind[0]} {kind[1]} {BATCH * LENGTH / value:.0f} tokens/s, "
                f"{fastest[kinds[0]] / value:.2f}x plain float32, needed {flops / 1e9:.0f} GFLOP/s, "
                f"{flops / peaks[kind[1]]:.0%} of peak",
                flush=True,
            )
        for precision in ("float32", "bfloat16") if options.where else ():
            where(vocab, precision)
    whole, mine, half = (
        child(50257, precision, trainer, 32)
        for trainer, precision in (("plain", "float32"), ("ours", "float32"), ("ours", "bfloat16"))
    )
    print(
        f"peak memory of a step at B L = 8192, V = 50257: plain float32 {whole / 2**30:.2f} GiB, "
        f"ours float32 {mine / 2**30:.2f} GiB ({mine / whole:.2f}x), bfloat16 {half / 2**30:.2f} GiB"
    )


if __name__ == "__main__":
    main()
