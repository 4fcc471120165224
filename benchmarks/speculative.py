"""Speculative decoding against one token at a time, in the same run: how many guesses stay, tokens a sequential call,
rows and seconds a token.

    python benchmarks/speculative.py [--checkpoint runs/tiny] [--threads 1] [--sequences 8]

Without a checkpoint a small network is trained first, on texts of a random Markov chain. What a sequential call
gains, a row costs: the last column is the ratio of seconds measured here, `tokens a call` what it would be where a
call takes the same time whatever its rows.
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


def rounds(samples: Samples, drafts: int) -> tuple[Tensor, Tensor]:
    """(guesses judged, guesses that stayed) by their place among the guesses of a call."""
    judged, stayed = torch.zeros(2, drafts, dtype=torch.long)
    for reveal, nfe in zip(samples.reveal, samples.nfe.tolist(), strict=True):
        new = torch.bincount(reveal[reveal >= 0])
        left = new.flip(0).cumsum(0).flip(0)  # before each call
        guesses = (left - 1).clamp(max=drafts)
        guesses[0] = 0
        assert int((guesses + 1).sum()) == nfe, "rows run are those of the guesses"
        for place in range(drafts):
            judged[place] += ((guesses > place) & (new > place)).sum()
            stayed[place] += (new > place + 1).sum()
    return judged, stayed


def seconds_of(network: Network, canvases: Tensor, policy, batch: int) -> tuple[float, Samples]:
    """(seconds a token, samples)."""
    start = time.perf_counter()
    samples = sample(network, canvases, policy, batch=batch)
    return (time.perf_counter() - start) / int((canvases == network.mask_id).sum()), samples


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--sequences", type=int, default=8)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.checkpoint is None:
        network, begin, length = trained(), [], LENGTH
    else:
        network = load(options.checkpoint)
        begin, length = [network.tokenizer.begin], network.config["requested"]["length"]
    canvas = torch.tensor(begin + [network.mask_id] * length)
    print(f"{options.threads} thread(s), torch {torch.__version__}; L = {length}, V = {network.vocab}")
    print("order, batch, guesses | kept by place | tokens a call | rows a token | seconds a token | against one a call")
    for inside in (RandomOrder(), LeftToRight()):
        for batch, count in ((1, max(1, options.sequences // 4)), (8, options.sequences)):
            canvases = canvas.expand(count, -1)
            base, _ = seconds_of(network, canvases, inside, batch)
            name = f"{type(inside).__name__}, {batch}"
            print(f"{name}, 0 | | 1.00 | 1.00 | {base:.5f} | 1.00x", flush=True)
            for drafts in DRAFTS:
                seconds, samples = seconds_of(network, canvases, Speculative(inside, drafts), batch)
                judged, stayed = rounds(samples, drafts)
                places = " ".join(f"{share:.2f}" for share in (stayed / judged.clamp(min=1)).tolist())
                calls = sum(int(reveal.max()) + 1 for reveal in samples.reveal)
                tokens = count * length
                print(
                    f"{name}, {drafts} | {places} | {tokens / calls:.2f} | {int(samples.nfe.sum()) / tokens:.2f} | "
                    f"{seconds:.5f} | {base / seconds:.2f}x",
                    flush=True,
                )


if __name__ == "__main__":
    main()
