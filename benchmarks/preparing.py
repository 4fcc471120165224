"""Preparing text against the `tokenizers` library alone, a batch's taking against a tiny step, and memory.

    python benchmarks/preparing.py [--megabytes 64] [--repeat 3]
    python benchmarks/preparing.py --large 5000 --limit 3000

The baseline is `encode_batch_fast` on all cores over the same text, read into memory beforehand in pieces of 64 KB,
its tokens not even looked at. Repetitions are interleaved; the ratio is of the best times, of the clock
and, where other work disturbs it, of the processor. With --large, a file of so
many megabytes is made, prepared in a process whose address space is limited, and its peak memory is told.
"""

import argparse
import itertools
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import nn

from unmask.corruption import stratified
from unmask.data import Packed, Tokenizer, documents, load_manifest, load_split, prepare
from unmask.data.tokenizer import cut
from unmask.objectives import AnyOrder
from unmask.transformer import Transformer, TransformerConfig


def text_of(size: int) -> Iterator[str]:
    """About `size` characters: paragraphs of the built-in corpus in a random order, with numbers of their own."""
    paragraphs = [text for each in documents("builtin") for text in each.text.split("\n\n") if text.strip()]
    rng, done = random.Random(0), 0
    for number in itertools.count():
        text = f"{number}. {rng.choice(paragraphs)}\n\n"
        yield text
        done += len(text)
        if done >= size:
            return


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds of one call, and those of all cores together."""
    start, spent = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - start, time.process_time() - spent


def throughput(folder: Path, tokenizer: str, megabytes: int, repeat: int) -> None:
    """Print the ratio of `prepare` to the library alone."""
    source, numbers = folder / "text.txt", itertools.count()
    texts = list(text_of(megabytes * 10**6))
    source.write_text("".join(texts), encoding="utf-8")
    if tokenizer.startswith("bpe:"):
        prepare("builtin", folder / "learnt", tokenizer=tokenizer)
        tokenizer = str(folder / "learnt")
    loaded = Tokenizer.load(tokenizer)
    pieces = list(cut("".join(texts)))

    def alone() -> None:
        for i in range(0, len(pieces), 64):
            loaded.inner.encode_batch_fast(pieces[i : i + 64], add_special_tokens=False)

    def ours() -> None:
        prepare(str(source), folder / f"out{next(numbers)}", tokenizer=tokenizer)

    pairs = [(timed(alone), timed(ours)) for _ in range(repeat)]
    (base, least), (mine, most) = (map(min, zip(*column, strict=True)) for column in zip(*pairs, strict=True))
    size = source.stat().st_size / 1e6
    print(
        f"{tokenizer}: {size:.0f} MB, tokenizers alone {size / base:.1f} MB/s, prepare {size / mine:.1f} MB/s: "
        f"{mine / base:.2f}x (each pair: {', '.join(f'{b / a:.2f}' for (a, _), (b, _) in pairs)}); "
        f"processor time {most / least:.2f}x",
        flush=True,
    )


def taking(folder: Path) -> None:
    """Print the time that a batch takes to be taken, and that of a step of a tiny network on it."""
    blocks = Packed(load_split(prepare("builtin", folder / "builtin", tokenizer="bpe:512"), "train"), 64, 0)
    network = Transformer(TransformerConfig(vocab=512, layers=3, heads=4, width=128))
    optimiser, generator = torch.optim.AdamW(network.parameters(), fused=True), torch.Generator().manual_seed(0)

    def batch(step: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        indices = blocks.batch(64, seed=0, step=step)
        return *blocks.take(indices)[:2], blocks.segments(indices)

    def work(step: int) -> None:
        x_0, maskable, _ = batch(step)
        nats = AnyOrder()(network, x_0, maskable, stratified(64, torch.rand(())), generator)
        (nats.sum() / maskable.sum()).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()

    pairs = [(timed(lambda s=s: batch(s))[0], timed(lambda s=s: work(s))[0]) for s in range(12)][2:]
    take, step = (sorted(column)[len(pairs) // 2] for column in zip(*pairs, strict=True))
    print(f"a batch of 64 x 64: taken in {1e3 * take:.2f} ms, a tiny step {1e3 * step:.1f} ms: {take / step:.1%}")


def large(folder: Path, megabytes: int, limit: int, tokenizer: str) -> None:
    """Prepare a file of so many megabytes, within an address space of `limit` megabytes."""
    source = folder / "large.txt"
    part = "".join(text_of(min(megabytes, 50) * 10**6))
    with source.open("w", encoding="utf-8") as file:
        while file.tell() < megabytes * 10**6:
            file.write(part)
    print(f"{source.stat().st_size / 1e9:.2f} GB made", flush=True)
    command = [sys.executable, __file__, "--child", str(source), str(folder / "out"), "--tokenizer", tokenizer]
    seconds, _ = timed(lambda: subprocess.run([*command, "--limit", str(limit)], check=True))
    print(f"prepared in {seconds:.0f} s, {source.stat().st_size / 1e6 / seconds:.1f} MB/s", flush=True)


def child(source: str, out: str, tokenizer: str, limit: int) -> None:
    """Prepare under a limit, and tell the peak."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    resource.setrlimit(resource.RLIMIT_AS, (limit * 10**6, limit * 10**6))
    folder = prepare(source, out, tokenizer=tokenizer)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    tokens = sum(split["tokens"] for split in load_manifest(folder)["splits"].values())  # mapped, they would count
    print(
        f"{tokenizer}: {tokens:,} tokens; peak memory {after:.0f} MiB ({before:.0f} MiB before it began), "
        f"address space limited to {limit} MB",
        flush=True,
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=32)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--tokenizer", default="bpe:4096")
    parser.add_argument("--large", type=int)
    parser.add_argument("--limit", type=int, default=3000)
    parser.add_argument("--child", nargs=2)
    options = parser.parse_args()
    if options.child:
        source, out = options.child
        child(source, out, options.tokenizer, options.limit)
        return
    with tempfile.TemporaryDirectory() as folder:
        if options.large:
            large(Path(folder), options.large, options.limit, options.tokenizer)
            return
        print(f"{os.cpu_count()} cores")
        throughput(Path(folder), options.tokenizer, options.megabytes, options.repeat)
        taking(Path(folder))


if __name__ == "__main__":
    main()
