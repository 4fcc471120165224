"""What a CPU's matrix products take in float32: torch's own (MKL), oneDNN, and the ways of a row times a matrix.

    python benchmarks/products.py [--threads 1]

One row times a matrix is bound by the memory it reads: GB/s, beside a sum of as much memory. Many rows are bound by
arithmetic: GFLOP/s. THP_MEM_ALLOC_ENABLE=0 shows what the large pages bring that `import unmask` asks for.
"""

import argparse
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from unmask import cpu
from unmask.transformer import product

WIDTH, OUT, COPIES = 768, 6144, 8  # more copies than a cache holds
SHAPES = ((6144, 768), (2304, 768), (768, 768), (768, 3072), (32_000, 768))  # of a 113M network


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
    for outputs, inputs in SHAPES:
        print(f"1 row of {outputs} outputs, {inputs} inputs, GB/s: {a_row(outputs, inputs)}")


def a_row(outputs: int, inputs: int) -> str:
    """GB/s of each way, and of a sum."""
    size, row = outputs * inputs, torch.randn(inputs)
    count = max(1, (COPIES * OUT * WIDTH) // size)
    memory = torch.ones(count, size)
    times = {"a sum": seconds(lambda: [part.sum() for part in memory])}
    for kind, way in zip(("BLAS", "sums", "oneDNN"), cpu.WAYS, strict=True):
        shape = (inputs, outputs) if way.by_inputs else (outputs, inputs)
        products = [way.product(part.view(shape).t() if way.by_inputs else part.view(shape)) for part in memory]
        times[kind] = seconds(lambda products=products: [product(row) for product in products])
    return ", ".join(f"{kind} {4e-9 * count * size / t:.1f}" for kind, t in times.items())


if __name__ == "__main__":
    main()
