"""Attention in training steps on a CPU, the library's and torch's own: sequences of one text, and of four kept apart.

    python benchmarks/attention.py [--threads 1]

Forward and backward of small networks, the ways in turns; printed are milliseconds of the fastest of 8 turns, and the
times of the library's step on whole sequences that they are.
"""

import argparse
import time

import torch

import unmask
from unmask import cpu
from unmask.network import Network
from unmask.train import Precision, autocast
from unmask.wrappers import Apart

TURNS, TEXTS = 8, 4
SIZES = ((64, 4, 4, 64, 32), (128, 4, 3, 64, 64), (128, 4, 3, 256, 16), (256, 8, 3, 256, 8))
"""Width, heads, layers, length and sequences of a step."""
PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")


def step(network: Network, x_0: torch.Tensor, precision: Precision) -> float:
    """Seconds of the loss and its gradients."""
    u, maskable = torch.linspace(0.1, 0.9, len(x_0), dtype=torch.float64), torch.ones_like(x_0, dtype=torch.bool)
    start = time.perf_counter()
    with autocast(torch.device("cpu"), precision):
        loss = unmask.AnyOrder()(network, x_0, maskable, u, torch.Generator().manual_seed(0)).sum()
    loss.backward()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    torch.set_num_threads(parser.parse_args().threads)
    longest = cpu.LONGEST
    for width, heads, layers, length, batch in SIZES:
        network = unmask.Transformer(unmask.TransformerConfig(vocab=512, layers=layers, heads=heads, width=width))
        x_0 = torch.randint(512, (batch, length), generator=torch.Generator().manual_seed(0))
        apart = Apart(network, (torch.arange(length) * TEXTS // length).expand(batch, -1))
        ways = {
            "whole": (network, longest), "whole, torch's": (network, 0),
            "apart": (apart, longest), "apart, torch's": (apart, 0),
        }  # fmt: skip
        for precision in PRECISIONS:
            best = dict.fromkeys(ways, float("inf"))
            for _ in range(TURNS):
                for name, (way, cpu.LONGEST) in ways.items():
                    best[name] = min(best[name], step(way, x_0, precision))
            told = ", ".join(f"{name} {1e3 * took:.1f} ms ({took / best['whole']:.2f})" for name, took in best.items())
            print(f"{layers} x {width}, L = {length}, batch {batch}, {precision}: {told}")


if __name__ == "__main__":
    main()
