"""Many answers of many lengths: padding, calls and seconds of equal lengths together, against padding to the longest
and one request at a time; and what maskings shared by the options of a question save.

    python benchmarks/harness.py [--threads 1]
    python benchmarks/harness.py --checkpoint runs/tiny --local data/tasks

The mix follows the lengths of the tasks' own texts in GPT-2's tokens (medians and spreads of the logarithms, of every
fifth question). Padding to the longest is timed only: without an attention mask its numbers would be wrong.
"""

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from unmask.checkpoint import load
from unmask.evaluate.scoring import Answer, Scorer, encode_pairs, windows
from unmask.evaluate.tasks import local_rows
from unmask.network import Network, Reading, Then, read_out
from unmask.objectives import AnyOrder, weighted
from unmask.transformer import Transformer, TransformerConfig

# task: questions, options, context (median, spread), answer (median, spread)
MIX = {
    "arc_easy": (2376, 4, (23, 0.46), (4, 0.78)),
    "boolq": (3270, 2, (131.5, 0.46), (1, 0.0)),
    "hellaswag": (10042, 4, (53, 0.43), (30, 0.60)),
    "openbookqa": (500, 4, (9, 0.57), (3, 0.71)),
    "piqa": (1838, 2, (13, 0.31), (16, 0.79)),
    "social_iqa": (1954, 3, (28, 0.16), (4, 0.65)),
    "lambada_openai": (5153, 1, (80, 0.15), (1, 0.35)),
}
VOCAB, TOKENS = 4096, 8192


def mix(share: float, vocab: int = VOCAB, seed: int = 0) -> list[Answer]:
    """Random tokens in the lengths of `share` of the questions, in the tasks' order."""
    generator = torch.Generator().manual_seed(seed)

    def length(median: float, spread: float) -> int:
        z = float(torch.randn((), generator=generator))
        return max(1, round(median * 2.718281828 ** (spread * z)))

    answers = []
    for questions, options, context, answer in MIX.values():
        for number in range(max(1, round(share * questions))):
            given = length(*context)
            for _ in range(options):
                scored = length(*answer)
                tokens = torch.randint(vocab, (1 + given + scored,), generator=generator).tolist()
                answers.append(Answer(tokens, scored, number))
    return answers


@dataclass
class Counter:
    """A network that knows nothing and counts its calls and positions."""

    causal: bool
    calls: int = 0
    positions: int = 0
    normalised = True
    vocab = 2
    mask_id = 2

    def __call__(
        self,
        tokens: Tensor,
        at: Tensor,
        *,
        then: Then | None = None,
        rows: Tensor | None = None,
        level: Tensor | None = None,
    ) -> Reading:
        self.calls += 1
        self.positions += tokens.numel()
        return read_out(lambda which: torch.zeros(len(at[which]), 2), len(at), 2, then)


def batches(answers: list[Answer], draws: int, *, by_length: bool) -> list[list[Answer]]:
    """Rows of one call, padded to the longest of them, TOKENS positions at most."""
    rows = [answer for answer in answers for _ in range(draws)]
    if by_length:
        rows.sort(key=lambda answer: -len(answer.tokens))
    calls, call, longest = [], [], 0
    for row in rows:
        longest = max(longest, len(row.tokens))
        if call and longest * (len(call) + 1) > TOKENS:
            calls.append(call)
            call, longest = [], len(row.tokens)
        call.append(row)
    return [*calls, call]


def padding(calls: list[list[Answer]]) -> tuple[float, int]:
    """(share of positions that are padding, calls)."""
    total = sum(max(len(row.tokens) for row in call) * len(call) for call in calls)
    return 1 - sum(len(row.tokens) for call in calls for row in call) / total, len(calls)


@torch.inference_mode()
def padded(network: Network, calls: list[list[Answer]]) -> float:
    """CPU seconds of the same work padded to the longest row of each call."""
    start, generator, estimator = time.process_time(), torch.Generator().manual_seed(0), AnyOrder(0.4)
    for call in calls:
        longest = max(len(row.tokens) for row in call)
        x_0 = torch.tensor([[*row.tokens, *[0] * (longest - len(row.tokens))] for row in call])
        ends = torch.tensor([len(row.tokens) for row in call])[:, None]
        scored, place = torch.tensor([row.scored for row in call])[:, None], torch.arange(longest)
        maskable = (place < ends) & (place >= ends - scored)
        if network.causal:
            network(x_0, maskable.flatten().nonzero().squeeze(-1), then=lambda logits, which: logits.amax(-1))
            continue
        u, noise = (torch.rand(shape, generator=generator, dtype=torch.float64) for shape in ((len(call),), x_0.shape))
        weighted(network, x_0, estimator.corrupt(maskable, u, noise))
    return time.process_time() - start


def seconds(network: Network, answers: list[Answer], draws: int, *, alone: bool) -> float:
    """CPU seconds of our scores, all together or one request at a time."""
    scorer, start = Scorer(network, draws=draws, tokens=TOKENS), time.process_time()
    for some in [[answer] for answer in answers] if alone else [answers]:
        for _ in scorer(some):
            pass
    return time.process_time() - start


def counted(draws: int) -> None:
    """Padding and calls of the whole mix, no network needed."""
    for causal, name, share in ((False, f"MDM, {draws} maskings", 0.02), (True, "ARM", 1.0)):
        answers = mix(share, vocab=2)
        for way, by_length in (("as they come", False), ("sorted", True)):
            waste, calls = padding(batches(answers, 1 if causal else draws, by_length=by_length))
            print(f"{name}: {way}, padded to the longest: padding {waste:.1%}, {calls} calls")
        counter = Counter(causal)
        for _ in Scorer(counter, draws=draws, tokens=TOKENS)(answers):
            pass
        full = counter.positions / counter.calls / TOKENS
        print(f"{name}: equal lengths: padding 0.0%, {counter.calls} calls, {full:.0%} full ({len(answers)} requests)")


def timed(draws: int) -> None:
    """CPU seconds of a part of the mix on a Transformer: on one thread, what else runs does not count."""
    for causal, share in ((False, 0.001), (True, 0.01)):
        answers, some = mix(share), 1 if causal else draws
        config = TransformerConfig(vocab=VOCAB, layers=4, heads=4, width=256, causal=causal)
        network = Transformer(config).eval()
        seconds(network, answers[:4], draws, alone=False)
        ours = seconds(network, answers, draws, alone=False)
        alone = seconds(network, answers, draws, alone=True)
        longest = padded(network, batches(answers, some, by_length=True))
        name = "ARM" if causal else f"MDM, {draws} maskings"
        print(
            f"{name}, {len(answers)} requests: equal lengths {ours:.1f} s; one request at a time {alone:.1f} s "
            f"({alone / ours:.2f}x); sorted and padded {longest:.1f} s ({longest / ours:.2f}x), no greedy flags"
        )


def coupled(checkpoint: Path, local: Path, questions: int, seeds: int) -> None:
    """Maskings shared by the options of a question, or of each its own: noise of a difference, and answers changed."""
    model = load(checkpoint)
    length = model.config["requested"]["length"]
    for task, name in (("openbookqa", "question_stem"), ("hellaswag", "query")):
        rows = local_rows(task, local)[0][:questions]
        options = [row["choices"] if task == "hellaswag" else row["choices"]["text"] for row in rows]
        pairs = [(row[name], f" {text}") for row, texts in zip(rows, options, strict=True) for text in texts]
        answers = []
        for i, pair in enumerate(encode_pairs(model.tokenizer, pairs)):
            given, scored = windows(*pair, length)[0]
            answers.append(Answer([model.tokenizer.begin, *given, *scored], len(scored), i // 4))
        for draws in (8, 32):
            for way in ("shared", "own"):
                mine = answers if way == "shared" else [Answer(a.tokens, a.scored, i) for i, a in enumerate(answers)]
                runs = torch.tensor([_scores(Scorer(model, draws=draws, seed=seed), mine) for seed in range(seeds)])
                runs = runs.view(seeds, -1, 4)
                spread = (runs[..., 1:] - runs[..., :1]).var(0).mean().sqrt()
                pick = runs.argmax(-1)
                flips = [(pick[i] != pick[j]).double().mean() for i in range(seeds) for j in range(i)]
                print(
                    f"{task}, {draws} maskings, {way}: noise of a difference {spread:.2f} nats, "
                    f"answers that another seed changes {float(torch.stack(flips).mean()):.1%}",
                    flush=True,
                )


def _scores(scorer: Scorer, answers: list[Answer]) -> list[float]:
    found = {i: score.log_p for part, scores in scorer(answers) for i, score in zip(part, scores, strict=True)}
    return [found[i] for i in range(len(answers))]


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--local", type=Path)
    parser.add_argument("--questions", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=6)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.checkpoint is not None:
        coupled(arguments.checkpoint, arguments.local, arguments.questions, arguments.seeds)
        return
    print(f"{torch.get_num_threads()} thread(s), torch {torch.__version__}; calls of at most {TOKENS} positions")
    counted(128)
    timed(16)


if __name__ == "__main__":
    main()
