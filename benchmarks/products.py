"""What a CPU's matrix products take in float32: torch's own (MKL), oneDNN, and a row times a matrix laid by its inputs.

    python benchmarks/products.py [--threads 1]

One row times a matrix is bound by the memory it reads: GB/s, beside a sum of as much memory. Many rows are bound by
arithmetic: GFLOP/s.
"""

import argparse
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from unmask import cpu
from unmask.transformer import product

WIDTH, OUT, COPIES = 768, 6144, 8  # more copies than a cache holds


def seconds(each: Callable[[], object]) -> float:
    """Of the fastest of several calls."""
    times = []
    for _ in range(8):
        start = time.perf_counter()
        each()
        times.append(time.perf_counter() - start)
    return min(times[1:])


@torch.inference_mode()
def main() -> None:
    """Print a line a number of rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    torch.set_num_threads(parser.parse_args().threads)
    weights = [torch.randn(OUT, WIDTH) for _ in range(COPIES)]
    size = COPIES * OUT * WIDTH
    print(f"{torch.get_num_threads()} thread(s), torch {torch.__version__}, {WIDTH} x {OUT}, float32")
    print(f"a sum reads {4e-9 * size / seconds(lambda: [weight.sum() for weight in weights]):.0f} GB/s")
    for rows in (1, 8, 1024):
        x = torch.randn(rows, WIDTH)
        own = seconds(lambda x=x: [F.linear(x, weight) for weight in weights])
        ours = seconds(lambda x=x: [product(x, weight) for weight in weights])
        numbers = [f"{4e-9 * size / t:.0f} GB/s, {2e-9 * rows * size / t:.0f} GFLOP/s" for t in (own, ours)]
        print(f"{rows} rows: torch's {numbers[0]}; oneDNN {numbers[1]} ({own / ours:.1f}x)")
    layers = [torch.nn.Linear(WIDTH, OUT, bias=False).requires_grad_(False) for _ in range(COPIES)]
    for layer in layers:
        cpu.lay_by_inputs(layer)
    row = torch.randn(WIDTH)
    blas = seconds(lambda: [layer.weight.mv(row) for layer in layers])
    taken = seconds(lambda: [cpu.row_product(layer.weight)(row) for layer in layers])
    print(
        f"1 row of a matrix laid by its inputs: torch's {4e-9 * size / blas:.0f} GB/s, ours {4e-9 * size / taken:.0f}"
    )


if __name__ == "__main__":
    main()
