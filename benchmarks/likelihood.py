"""Conditional likelihood of an answer after a prompt of 128 tokens: seconds, against the published way in the same run.

    python benchmarks/likelihood.py [--checkpoint runs/mdm --data data/corpus] [--threads 1]

The baseline scores one request at a time as published code does: independent levels clipped at 1e-3, each token of the
answer masked with that probability, torch's own matrix products, the output layer on every position, cross entropy over
the whole canvas. Seconds
an evaluation (one masking of one request) need no trained weights; variances do. With `--checkpoint`, both estimators
score answers of its validation text, and the time to equal standard error is seconds x variance an evaluation.
"""

import argparse
import time
from pathlib import Path

import torch
import torch.nn.functional as F

import unmask
from unmask import cpu
from unmask.data import Packed, batch_indices, load_split
from unmask.likelihood import log_likelihood
from unmask.transformer import Transformer, TransformerConfig

LAYERS, WIDTH, HEADS, VOCAB, PROMPT, DRAWS, CLIP = 6, 256, 8, 32_000, 128, 128, 1e-3
ANSWERS = (128, 24)
ONEDNN = cpu.ONEDNN
REQUESTS = 4


@torch.inference_mode()
def published(
    network: Transformer, x_0: torch.Tensor, answer: int, draws: int, batch: int, generator: torch.Generator
) -> torch.Tensor:
    """The estimates that `draws` maskings of one request make, in nats."""
    values, cpu.ONEDNN = [], False
    for start in range(0, draws, batch):
        rows = x_0.expand(min(batch, draws - start), -1)
        level = (1 - CLIP) * torch.rand(len(rows), 1, generator=generator) + CLIP
        masked = torch.rand(rows.shape, generator=generator) < level
        masked[:, :-answer] = False
        logits = F.linear(network.hidden(rows.masked_fill(masked, network.mask_id)), *network.head())
        nats = F.cross_entropy(logits.flatten(0, 1), rows.flatten(), reduction="none").view_as(masked)
        values.append((nats * masked / level).sum(-1))
    cpu.ONEDNN = ONEDNN
    return torch.cat(values)


def answered(x_0: torch.Tensor, answer: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(x_0, maskable): a begin token, the prompt and the first `answer` tokens behind it."""
    x_0 = x_0[:, : 1 + PROMPT + answer]
    return x_0, (torch.arange(x_0.shape[1]) > PROMPT).expand(x_0.shape)


def speed(answer: int, batch: int) -> tuple[float, float]:
    """Seconds an evaluation of (the baseline, ours); random weights."""
    network = Transformer(TransformerConfig(vocab=VOCAB, layers=LAYERS, width=WIDTH, heads=HEADS)).eval()
    tokens = torch.randint(VOCAB, (REQUESTS, 1 + PROMPT + answer), generator=torch.Generator().manual_seed(0))
    x_0, maskable = answered(tokens, answer)
    generator, seconds = torch.Generator().manual_seed(1), []
    for which in range(2):
        start = time.perf_counter()
        published(network, x_0[which : which + 1], answer, DRAWS, batch, generator)
        seconds.append((time.perf_counter() - start) / DRAWS)
    log_likelihood(network, x_0[:1], maskable[:1], draws=8, batch=batch)
    start = time.perf_counter()
    estimate = log_likelihood(network, x_0, maskable, draws=DRAWS, batch=batch)
    return min(seconds), (time.perf_counter() - start) / estimate.evaluations


def variances(model: unmask.Model, data: Path, answer: int, texts: int, seeds: int) -> tuple[float, float, float]:
    """Variance x evaluations of an answer's nats: (the baseline, ours, standard error of ours in parts of it).

    The baseline's draws are independent; ours are whole designs of DRAWS, two replicates each.
    """
    blocks = Packed(load_split(data, "validation"), PROMPT + answer, model.tokenizer.begin)
    x_0, maskable = answered(blocks.take(batch_indices(len(blocks) - 1, texts, seed=0, step=0))[0], answer)
    generator = torch.Generator().manual_seed(2)
    assert isinstance(model.network, Transformer), "the baseline is a Transformer's"
    plain = [published(model.network, row[None], answer, 4 * DRAWS, 32, generator).var() for row in x_0]
    runs = [log_likelihood(model, x_0, maskable, draws=DRAWS, seed=seed, batch=32) for seed in range(seeds)]
    ours = torch.stack([run.replicates.var(-1) / 2 * DRAWS for run in runs])
    return float(torch.stack(plain).mean()), float(ours.mean()), (2 / ours.numel()) ** 0.5


def main() -> None:
    """Print seconds an evaluation, and to equal standard error where there is a checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--texts", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=6)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(
        f"{torch.get_num_threads()} thread(s), torch {torch.__version__}, float32; {LAYERS} layers, width {WIDTH}, "
        f"V = {VOCAB}, prompt {PROMPT}, {DRAWS} draws, batch {options.batch}"
    )
    for answer in ANSWERS:
        base, ours = speed(answer, options.batch)
        print(
            f"answer of {answer}: published {base:.4f} s an evaluation ({base * DRAWS:.1f} s a request), "
            f"ours {ours:.4f} s ({ours * DRAWS:.1f} s): {base / ours:.1f}x"
        )
        if options.checkpoint is None or options.data is None:
            continue
        model = unmask.load(options.checkpoint)
        plain, best, error = variances(model, options.data, answer, options.texts, options.seeds)
        print(
            f"  on {options.checkpoint.name}: variance x draws {plain:.0f} and {best:.1f} (+-{error:.0%}) nats^2, "
            f"{plain / best:.0f}x fewer evaluations, {base * plain / ours / best:.0f}x less time to equal error"
        )


if __name__ == "__main__":
    main()
