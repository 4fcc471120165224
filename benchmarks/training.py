"""Training steps: tokens per second, and needed FLOPs as a share of the machine's measured matrix-product peak.

    python benchmarks/training.py [--threads 2]

Needed FLOPs are those of the closed form (attention included, the output layer where it runs). Each line also
gives the ratio to a plain trainer measured in the same run: the same network, but logits of all positions in
float32, cross entropy on all of them and independent levels. Peak memory is that of a process of its own.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unmask.corruption import stratified
from unmask.objectives import AnyOrder
from unmask.train import Precision, autocast
from unmask.transformer import Transformer, TransformerConfig

LAYERS, WIDTH, HEADS, LENGTH, BATCH = 6, 256, 8, 256, 8
CPU = torch.device("cpu")


def peak(dtype: torch.dtype) -> float:
    """FLOP/s of the fastest of a few large matrix products."""
    a, b = torch.randn(2048, 1024, dtype=dtype), torch.randn(1024, 2048, dtype=dtype)
    return 2 * 2048 * 1024 * 2048 / best(lambda: a @ b, 10)


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


def plain(network: Transformer, x_0: Tensor, generator: torch.Generator) -> Tensor:
    """The published way: independent levels, the output layer on every position, half of it thrown away."""
    level = (1 - 1e-3) * torch.rand(len(x_0), 1, generator=generator) + 1e-3
    masked = torch.rand(x_0.shape, generator=generator) < level
    logits = F.linear(network.hidden(x_0.masked_fill(masked, network.mask_id)), *network.head())
    nats = F.cross_entropy(logits.flatten(0, 1), x_0.flatten(), reduction="none").view_as(x_0)
    return (nats * masked / level).sum() / x_0.numel()


def measure(vocab: int, precision: Precision, trainer: str, times: int, threads: int, batch: int) -> dict[str, float]:
    """Seconds of a step and peak memory, in this process."""
    torch.set_num_threads(threads)
    config = TransformerConfig(vocab=vocab, layers=LAYERS, width=WIDTH, heads=HEADS)
    network, generator = Transformer(config), torch.Generator().manual_seed(0)
    optimiser = torch.optim.AdamW(network.parameters(), fused=True)
    x_0 = torch.randint(vocab, (batch, LENGTH), generator=generator)
    loss = {"ours": ours, "plain": plain}[trainer]

    def step() -> None:
        with autocast(CPU, precision):
            value = loss(network, x_0, generator)
        value.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = best(step, times)
    memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    share = (LENGTH + 1) / (2 * LENGTH)
    flops = 3 * config.forward_flops(LENGTH, share * LENGTH) * batch
    return {"seconds": seconds, "memory": memory, "flops": flops / seconds}


def child(*values: object) -> dict[str, float]:
    """`measure` in a process of its own, so that peak memory is its own."""
    command = [sys.executable, __file__, "--child", *map(str, values)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--child", nargs=5)
    options = parser.parse_args()
    if options.child:
        vocab, precision, trainer, times, batch = options.child
        print(json.dumps(measure(int(vocab), precision, trainer, int(times), options.threads, int(batch))))
        return
    torch.set_num_threads(options.threads)
    peaks = {"float32": peak(torch.float32), "bfloat16": peak(torch.bfloat16)}
    print(
        f"{options.threads} threads, torch {torch.__version__}; "
        f"{LAYERS} layers, width {WIDTH}, L = {LENGTH}, batch {BATCH}"
    )
    print("matrix-product peak: " + ", ".join(f"{name} {value / 1e9:.0f} GFLOP/s" for name, value in peaks.items()))
    for vocab in (4096, 50257):
        base = child(vocab, "float32", "plain", 4, BATCH)
        print(f"V = {vocab}: plain float32 {BATCH * LENGTH / base['seconds']:.0f} tokens/s")
        for precision in ("float32", "bfloat16"):
            mine = child(vocab, precision, "ours", 6, BATCH)
            print(
                f"V = {vocab}: ours {precision} {BATCH * LENGTH / mine['seconds']:.0f} tokens/s, "
                f"{base['seconds'] / mine['seconds']:.2f}x plain, {mine['flops'] / peaks[precision]:.0%} of peak"
            )
    whole, mine = (child(50257, "float32", trainer, 1, 32) for trainer in ("plain", "ours"))
    print(
        f"peak memory of a step at B L = 8192, V = 50257, float32: ours {mine['memory'] / 2**30:.2f} GiB, "
        f"plain {whole['memory'] / 2**30:.2f} GiB, {mine['memory'] / whole['memory']:.2f}x"
    )


if __name__ == "__main__":
    main()
