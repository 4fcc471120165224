"""What freed memory that is kept brings on a CPU: processor seconds of a training step, a likelihood and a sample.

    python benchmarks/memory.py [--rounds 3]

Each work runs in processes of its own, with the library's `cpu.keep_freed` and with it taken out, in turns; the median
of the rounds is shown, with the pages that the system had to give while the work was repeated, and the peak of memory.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from resource import RUSAGE_SELF, getrusage

import torch

from unmask import cpu
from unmask.corruption import stratified
from unmask.likelihood import log_likelihood
from unmask.objectives import AnyOrder
from unmask.sampling import Confidence, sample
from unmask.train import autocast
from unmask.transformer import Transformer, TransformerConfig

SIZES = {
    "3 x 128, L = 64": (TransformerConfig(vocab=512, layers=3, heads=4, width=128), 64),
    "4 x 256, L = 128": (TransformerConfig(vocab=1024, layers=4, heads=8, width=256), 128),
}
BATCH, REPEATS = 64, 4


def step(size: str) -> Callable[[], object]:
    """A training step in bfloat16."""
    config, length = SIZES[size]
    network = Transformer(config)
    optimiser = torch.optim.AdamW(network.parameters(), fused=True)
    generator = torch.Generator().manual_seed(0)
    x_0 = torch.randint(config.vocab, (BATCH, length), generator=generator)
    maskable, u = torch.ones_like(x_0, dtype=torch.bool), stratified(BATCH, torch.tensor(0.5, dtype=torch.float64))

    def run() -> None:
        with autocast(torch.device("cpu"), "bfloat16"):
            loss = AnyOrder()(network, x_0, maskable, u, generator).sum() / x_0.numel()
        loss.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    return run


def bound(size: str) -> Callable[[], object]:
    """The likelihood bound of a batch in 8 draws, float32."""
    config, length = SIZES[size]
    network = Transformer(config).requires_grad_(False)
    x_0 = torch.randint(config.vocab, (BATCH, length), generator=torch.Generator().manual_seed(0))
    return lambda: log_likelihood(network, x_0, draws=8)


def written(size: str) -> Callable[[], object]:
    """A batch of samples, one token a call, float32."""
    config, length = SIZES[size]
    network = Transformer(config).requires_grad_(False)
    canvas = torch.full((BATCH, length // 2), network.mask_id)
    return lambda: sample(network, canvas, Confidence(), batch=BATCH)


WORKS = {"training step": step, "likelihood": bound, "sample": written}


def child(work: str, size: str, kept: bool) -> None:
    """Print processor seconds and page faults of one repetition, and the peak in bytes."""
    torch.set_num_threads(1)
    if not kept:
        cpu.keep_freed = lambda: None  # pyrefly: ignore
    run = WORKS[work](size)
    run()
    before = getrusage(RUSAGE_SELF)
    for _ in range(REPEATS):
        run()
    after = getrusage(RUSAGE_SELF)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    faults = after.ru_minflt - before.ru_minflt
    print(json.dumps([seconds / REPEATS, faults / REPEATS, 1024 * after.ru_maxrss]))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", nargs=3)
    args = parser.parse_args()
    if args.child:
        return child(args.child[0], args.child[1], args.child[2] == "kept")
    for size in SIZES:
        for work in WORKS:
            found: dict[str, list[list[float]]] = {"given back": [], "kept": []}
            for _ in range(args.rounds):
                for how, rows in found.items():
                    command = [sys.executable, __file__, "--child", work, size, how]
                    rows.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
            (before, pages, peak), (after, few, lower) = (
                [sorted(column)[len(column) // 2] for column in zip(*rows, strict=True)] for rows in found.values()
            )
            print(
                f"{size}, {work}: {before:.3f} s with {pages:,.0f} pages and {peak / 1e6:.0f} MB at the peak; kept "
                f"{after:.3f} s, {few:,.0f} pages, {lower / 1e6:.0f} MB; {after / before:.2f}x",
                flush=True,
            )


if __name__ == "__main__":
    main()
