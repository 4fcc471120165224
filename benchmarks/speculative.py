"""Speculative decoding against one token at a time, in the same run: how many guesses stay, tokens a sequential call,
rows and seconds a token.

    python benchmarks/speculative.py [--checkpoint runs/tiny] [--threads 1] [--sequences 8]

Without a checkpoint a small network is trained first, on texts of a random Markov chain. Fewer calls cost more rows:
the last column is the ratio of seconds measured here, and `tokens a call` what it would be where a call takes the same
time whatever its rows.
"""

import argparse
import time
from pathlib import Path

import torch
from torch import Tensor

from unmask.checkpoint import load
from unmask.corruption import stratified
from unmask.network import Network
from unmask.objectives import AnyOrder
from unmask.sampling import LeftToRight, RandomOrder, Samples, Speculative, sample
from unmask.transformer import Transformer, TransformerConfig

DRAFTS = (1, 2, 4, 8)
VOCAB, FOLLOWERS, LENGTH, STEPS, BATCH = 64, 4, 64, 600, 32


def trained() -> Transformer:
    """A small network that knows a chain in which every token has FOLLOWERS likely successors."""
    generator = torch.Generator().manual_seed(0)
    successors = torch.randint(VOCAB, (VOCAB, FOLLOWERS), generator=generator)
    network = Transformer(TransformerConfig(vocab=VOCAB, layers=2, heads=4, width=64))
    optimiser, start = torch.optim.AdamW(network.parameters(), lr=3e-3), time.perf_counter()
    nats = []
    for _ in range(STEPS):
        x_0 = torch.randint(VOCAB, (BATCH, LENGTH), generator=generator)
        for i in range(1, LENGTH):
            which = torch.randint(FOLLOWERS, (BATCH,), generator=generator)
            x_0[:, i] = successors[x_0[:, i - 1], which]
        u = stratified(BATCH, torch.rand((), generator=generator))
        loss = AnyOrder()(network, x_0, torch.ones_like(x_0, dtype=torch.bool), u, generator).sum() / x_0.numel()
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        nats.append(loss.item())
    law = torch.tensor([FOLLOWERS]).log().item()
    print(
        f"trained {STEPS} steps in {time.perf_counter() - start:.0f} s: {sum(nats[-50:]) / 50:.2f} nats a token, "
        f"the chain's own {law:.2f}"
    )
    return network.eval().requires_grad_(False)


def places(samples: list[Samples], drafts: int) -> str:
    """The share of the guesses that stayed, of those judged, by their place among the guesses of a call."""
    judged, stayed = torch.zeros(2, drafts)
    for reveal, nfe in ((reveal, nfe) for each in samples for reveal, nfe in zip(each.reveal, each.nfe, strict=True)):
        new = torch.bincount(reveal[reveal >= 0])
        left = new.flip(0).cumsum(0).flip(0)
        guesses = (left - 1).clamp(max=drafts)
        guesses[0] = 0
        assert int((guesses + 1).sum()) == int(nfe), "rows run are those of the guesses"
        for place in range(drafts):
            judged[place] += ((guesses > place) & (new > place)).sum()
            stayed[place] += (new > place + 1).sum()
    return " ".join(f"{share:.2f}" for share in (stayed / judged.clamp(min=1)).tolist())


@torch.inference_mode()
def call_seconds(network: Network, canvas: Tensor, rows: int) -> float:
    """Seconds of a call of that many rows, one prediction each, the fastest of some."""
    tokens, seconds = canvas.expand(rows, -1), []
    for _ in range(8):
        start = time.perf_counter()
        network(tokens, torch.arange(rows) * len(canvas) + len(canvas) - 1)
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


def compare(network: Network, canvases: Tensor, inside: RandomOrder | LeftToRight, batch: int, repeats: int) -> None:
    """Print a row for one at a time and for each number of guesses; repeats take turns, and the fastest counts."""
    policies = {0: inside} | {drafts: Speculative(inside, drafts) for drafts in DRAFTS}
    seconds: dict[int, list[float]] = {drafts: [] for drafts in policies}
    samples: dict[int, list[Samples]] = {drafts: [] for drafts in policies}
    for seed in range(repeats):
        for drafts, policy in policies.items():
            start = time.perf_counter()
            samples[drafts].append(sample(network, canvases, policy, seed=seed, batch=batch))
            seconds[drafts].append(time.perf_counter() - start)
    tokens = int((canvases == network.mask_id).sum())
    for drafts, runs in samples.items():
        calls = sum(int(reveal.max()) + 1 for each in runs for reveal in each.reveal)
        rows = sum(int(each.nfe.sum()) for each in runs)
        best, ratio = min(seconds[drafts]) / tokens, min(seconds[0]) / min(seconds[drafts])
        print(
            f"{type(inside).__name__}, {batch}, {drafts} | {places(runs, drafts) if drafts else ''} | "
            f"{repeats * tokens / calls:.2f} | {rows / repeats / tokens:.2f} | {best:.5f} | {ratio:.2f}x",
            flush=True,
        )


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--sequences", type=int, default=8, help="of a run in batches of 8; a quarter of it alone")
    parser.add_argument("--repeats", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.checkpoint is None:
        network, begin, length = trained(), [], LENGTH
    else:
        network = load(options.checkpoint)
        begin, length = [network.tokenizer.begin], network.config["requested"]["length"]
    canvas = torch.tensor([*begin, *[network.mask_id] * length])
    print(f"{options.threads} thread(s), torch {torch.__version__}; L = {length}, V = {network.vocab}")
    one = call_seconds(network, canvas, 1)
    many = ", ".join(f"{rows} rows {call_seconds(network, canvas, rows) / one:.2f}x" for rows in (2, 3, 5, 9))
    print(f"a call of one row {one:.5f} s; {many}")
    print("order, batch, guesses | stay, by place | tokens a call | rows a token | seconds a token | speed")
    for inside in (RandomOrder(), LeftToRight()):
        for batch, count in ((1, max(1, options.sequences // 4)), (8, options.sequences)):
            compare(network, canvas.expand(count, -1), inside, batch, options.repeats)


if __name__ == "__main__":
    main()
