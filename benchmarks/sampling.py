"""Sampling: seconds a network row (one sequence, one evaluation), against a straightforward cached sampler in the
same run.

    python benchmarks/sampling.py [--threads 1]

The baseline reuses its last prediction while nothing changed in the batch, as RADD's released sampler does, and at
every step computes the output layer, the probabilities and Gumbel noise for every position of the canvas.
"""

import argparse
import time

import torch
import torch.nn.functional as F

import unmask.network
from unmask.draws import log_probabilities
from unmask.sampling import Confidence, Draw, Tweedie, expected_nfe, sample, stream
from unmask.transformer import Transformer, TransformerConfig
from unmask.world import Wide

LAYERS, WIDTH, HEADS, LENGTH, BATCH, STEPS = 6, 256, 8, 256, 4, 64


@torch.inference_mode()
def plain(network: Transformer, generator: torch.Generator) -> tuple[float, int]:
    """(seconds, rows run) of the cached sampler; tokens and the mask are drawn jointly over the whole canvas."""
    x = torch.full((BATCH, LENGTH), network.mask_id)
    rows, p, start = 0, None, time.perf_counter()
    for step in range(STEPS):
        if p is None:
            p = F.linear(network.hidden(x), *network.head()).softmax(-1)
            rows += BATCH
        move = 1 / (STEPS - step)
        joint = torch.cat([p * move, torch.full((BATCH, LENGTH, 1), 1 - move)], -1)
        noise = -torch.rand(joint.shape, generator=generator).clamp(min=1e-10).log()
        drawn = (joint / noise).argmax(-1)
        new = torch.where(x == network.mask_id, drawn, x)
        p = None if bool((new != x).any()) else p
        x = new
    return time.perf_counter() - start, rows


def ours(network: Transformer, seed: int) -> tuple[float, int]:
    """(seconds, rows run) of the plan runner."""
    canvas = torch.full((BATCH, LENGTH), network.mask_id)
    start = time.perf_counter()
    samples = sample(network, canvas, Tweedie(STEPS), seed=seed)
    return time.perf_counter() - start, int(samples.nfe.sum())


@torch.inference_mode()
def layers_alone(network: Transformer) -> float:
    """Seconds a row of the Transformer without its output layer."""
    x = torch.full((BATCH, LENGTH), network.mask_id)
    seconds = []
    for _ in range(8):
        start = time.perf_counter()
        network.hidden(x)
        seconds.append(time.perf_counter() - start)
    return sorted(seconds)[len(seconds) // 2] / BATCH


@torch.inference_mode()
def drawing(vocab: int, positions: int) -> float:
    """Seconds to draw tokens at so many positions and read their log-probabilities, logits given."""
    logits, u = torch.randn(positions, vocab), torch.rand(positions, dtype=torch.float64)
    seconds = []
    for _ in range(9):
        start = time.perf_counter()
        log_probabilities(logits).gather(-1, Draw()(logits, u)[:, None])
        seconds.append(time.perf_counter() - start)
    return sorted(seconds)[4]


def adaptive(network: Transformer) -> tuple[float, float]:
    """CPU seconds of a call of Confidence(4): with what is made of logits in parts that stay in the cache, and of all
    at once; the better of three turns.
    """
    canvas, parts, seconds = torch.full((BATCH, LENGTH), network.mask_id), unmask.network.CACHED, ([], [])
    for turn in range(6):
        unmask.network.CACHED = unmask.network.CHUNK if turn % 2 else parts
        steps = stream(network, canvas, Confidence(4))
        next(steps)
        start = time.process_time()
        next(steps)
        seconds[turn % 2].append(time.process_time() - start)
    unmask.network.CACHED = parts
    return min(seconds[0]), min(seconds[1])


def full_batches() -> str:
    """Calls for a batch of 16 at L = 1024 and T = 4096, where a sampler that waits for all rows needs about T."""
    samples = sample(Wide(8), torch.full((16, 1024), 8), Tweedie(4096), batch=16)
    nfe, closed = samples.nfe.double(), expected_nfe(4096, 1024)
    return (
        f"batch 16, L = 1024, T = 4096: {samples.calls} calls, largest row's NFE {int(nfe.max())}, "
        f"mean {float(nfe.mean()):.1f}, closed form {closed:.1f} ({float(nfe.mean()) / closed - 1:+.2%})"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    torch.set_num_threads(parser.parse_args().threads)
    print(
        f"{torch.get_num_threads()} thread(s), torch {torch.__version__}; {LAYERS} layers, width {WIDTH}, "
        f"L = {LENGTH}, batch {BATCH}, {STEPS} steps"
    )
    for vocab in (4096, 50257):
        config = TransformerConfig(vocab=vocab, layers=LAYERS, width=WIDTH, heads=HEADS)
        network = Transformer(config).eval()
        base_seconds, base_rows = plain(network, torch.Generator().manual_seed(0))
        base = base_seconds / base_rows
        print(f"V = {vocab}: plain float32 {base:.4f} s a row, {base_rows} rows")
        for dtype in (torch.float32, torch.bfloat16):
            network = Transformer(config).eval().to(dtype)
            ours(network, 0)
            seconds, rows = ours(network, 1)
            alone, row = layers_alone(network), seconds / rows
            draws = drawing(vocab, round(BATCH * LENGTH / (rows / BATCH))) / BATCH
            parts, whole = adaptive(network)
            print(
                f"V = {vocab}: Confidence(4) {str(dtype)[6:]} {parts:.3f} s of CPU a call; logits read at once "
                f"{whole:.3f} ({whole / parts:.2f}x)"
            )
            print(
                f"V = {vocab}: ours {str(dtype)[6:]} {row:.4f} s a row, {base / row:.1f}x plain; "
                f"layers alone {alone:.4f} s a row ({row / alone:.2f}x); drawing {draws / row:.1%}; "
                f"rows {rows}, closed form {BATCH * expected_nfe(STEPS, LENGTH):.0f}"
            )
    print(full_batches())


if __name__ == "__main__":
    main()
