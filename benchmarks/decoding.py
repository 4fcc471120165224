"""ARM decoding with the cache: seconds a call, against the machine's memory bandwidth and against reading the whole
prefix again, in the same run.

    python benchmarks/decoding.py [--threads 2] [--rounds 5] [--dtype float32] [--batches 1 8]

A call must read the weights once (the embedding's rows apart) and what is remembered of each row once: those bytes,
over the bandwidth, bound its time from below. The bandwidth is that of the memory in which the weights lie (a machine
may have faster and slower memory): a copy's of them all (bytes read and written), and their sums' (bytes read). Memory
changes its pace with what else the machine does, so that each round times the calls, the copies and the sums behind one
another, the median of as many of each; ratios are of one round, and the middle round is shown.
"""

import argparse
import itertools
import time
from collections import defaultdict
from collections.abc import Callable, Sequence

import torch

from unmask.sampling import LeftToRight, Step, sample
from unmask.transformer import Transformer, TransformerConfig

CONFIG = TransformerConfig(vocab=32_000, layers=12, heads=12, width=768, causal=True)  # SMDM's 113M
LENGTHS, TOKENS = (64, 128, 256, 512, 1024), 16


def seconds(run: Callable[[], object]) -> float:
    """Of one run."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def median(values: Sequence[float]) -> float:
    """The middle one."""
    return sorted(values)[len(values) // 2]


@torch.inference_mode()
def bandwidths(network: Transformer, others: list[torch.Tensor]) -> tuple[float, float]:
    """Bytes a second of the network's weights: copied, and summed."""
    weights = list(network.parameters())
    size = sum(weight.nbytes for weight in weights)

    def copied() -> None:
        for other, weight in zip(others, weights, strict=True):
            other.copy_(weight)

    def summed() -> None:
        for weight in weights:
            weight.sum()

    copy, total = zip(*((seconds(copied), seconds(summed)) for _ in range(TOKENS)), strict=True)
    return 2 * size / median(copy), size / median(total)


def read_bytes(network: Transformer, batch: int, length: int) -> int:
    """Of one call that writes position length - 1: all weights but the embedding, and length - 1 keys and values a
    row and layer.
    """
    config, size = network.config, network.embedding.weight.element_size()
    weights = config.parameters()["total"] - config.embedding_rows * config.width
    return size * (weights + batch * config.layers * 2 * config.groups * config.head_width * (length - 1))


def sampled(network: Transformer, batch: int, length: int) -> float:
    """Seconds a call while the last TOKENS of `length` tokens are written by `sample`, drawing included."""
    canvas = torch.randint(CONFIG.vocab, (batch, length), generator=torch.Generator().manual_seed(length))
    canvas[:, -TOKENS - 1 :] = network.mask_id
    stamps: list[float] = []

    def stamp(_: Step) -> None:
        stamps.append(time.perf_counter())

    sample(network, canvas, LeftToRight(), batch=batch, on_step=stamp)
    return median([after - before for before, after in itertools.pairwise(stamps)])


@torch.inference_mode()
def drawing_alone(batch: int) -> float:
    """Seconds a call to draw its tokens: `sample` with a network that has the logits at hand."""
    logits = torch.randn(batch, CONFIG.vocab)

    class Ready:
        vocab, mask_id, causal, normalised = CONFIG.vocab, CONFIG.mask, True, True

        def __call__(self, tokens, at, *, then=None, rows=None, level=None):
            assert then is not None
            return then(logits, slice(0, batch))

    canvas = torch.full((batch, 1024), CONFIG.mask)
    canvas[:, : 1024 - 4 * TOKENS] = 0
    return seconds(lambda: sample(Ready(), canvas, LeftToRight(), batch=batch)) / (4 * TOKENS)


@torch.inference_mode()
def recomputed(network: Transformer, batch: int, length: int) -> float:
    """Seconds a call without the cache: the whole prefix read again, logits of its last position alone."""
    tokens = torch.zeros((batch, length), dtype=torch.long)
    return seconds(lambda: network(tokens, torch.arange(1, batch + 1) * length - 1))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    network = Transformer(CONFIG).requires_grad_(False).eval().to(getattr(torch, args.dtype))
    sampled(network, 1, LENGTHS[0])  # lays the weights out for one row, which is where they then lie
    others = [torch.empty_like(weight) for weight in network.parameters()]
    rounds: dict[tuple[int, int], list[list[float]]] = defaultdict(list)
    drawing: dict[int, list[float]] = defaultdict(list)
    for _, batch in itertools.product(range(args.rounds), args.batches):
        drawing[batch].append(drawing_alone(batch))
        for length in LENGTHS:
            ours, again = sampled(network, batch, length), recomputed(network, batch, length)
            bound = read_bytes(network, batch, length)
            copied, summed = bandwidths(network, others)
            rounds[batch, length].append([ours, ours * copied / bound, ours * summed / bound, again / ours, copied])
    print(
        f"{args.threads} thread(s), torch {torch.__version__}, {args.dtype}, middle of {args.rounds} rounds; "
        f"{CONFIG.parameters()['non_embedding'] / 1e6:.0f}M and an output layer of {CONFIG.vocab} x {CONFIG.width}"
    )
    for batch in args.batches:
        print(f"batch {batch}: drawing {1e3 * median(drawing[batch]):.2f} ms a call")
        shortest = median([each[0] for each in rounds[batch, LENGTHS[0]]])
        for length in LENGTHS:
            ours, of_copy, of_sum, gain, copied = (median(each) for each in zip(*rounds[batch, length], strict=True))
            size = read_bytes(network, batch, length)
            print(
                f"batch {batch}, length {length:4}: {1e3 * ours:6.1f} ms a call ({ours / shortest:.2f}x that at "
                f"{LENGTHS[0]}), {size / 1e6:.0f} MB read ({size / read_bytes(network, batch, LENGTHS[0]):.2f}x); "
                f"{of_copy:.2f}x the time at a copy's bandwidth ({copied / 1e9:.1f} GB/s), {of_sum:.2f}x at a sum's; "
                f"{gain:.1f}x faster than the whole prefix again"
            )


if __name__ == "__main__":
    main()
