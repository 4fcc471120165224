"""Quality of generated texts: what a judge says, and never without how varied they are.

Generative perplexity alone rewards a model that repeats itself: "the the the" is probable to any judge. So a row
holds the unigram entropy beside it, and where reference texts are given the same measures of those, and says in
words when the samples are less varied than people's texts of the same length.
"""

import math
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from unmask.checkpoint import Model
from unmask.data import Tokenizer, batch_indices
from unmask.evaluate.heldout import texts_of
from unmask.evaluate.judge import Judge, judge_texts
from unmask.evaluate.protocols import spans
from unmask.evaluate.writing import write
from unmask.files import Row, read_json
from unmask.likelihood.estimate import ratio_variance
from unmask.sampling import Draw, Policy

CERTAIN = 3.0  # standard errors that a row must lie below its reference to be warned of


def generation(
    model: Model,
    *,
    name: str = "model",
    count: int,
    length: int,
    policy: Policy | None = None,
    draw: Draw | None = None,
    seed: int = 0,
    batch: int = 16,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[str], Row]:
    """`count` texts of `length` tokens written from nothing, and how: policy, law, NFE, seconds a text."""
    records = write(model, [f"{{{{{length}}}}}"] * count, policy, draw=draw, seed=seed, batch=batch, progress=progress)
    first = records[0]
    said = {
        "model": name,
        "policy": first["policy"],
        **({"draw": first["draw"]} if "draw" in first else {}),
        "law": first["exact_for"],
        "length": length,
        "seed": seed,
        "nfe": statistics.fmean(record["nfe"] for record in records),
        "seconds_per_text": first["seconds"] / count,
    }
    return [record["text"] for record in records], said


def read_texts(path: Path) -> tuple[list[str], Row]:
    """The texts of a file that `unmask sample --out` wrote, and how they were written.

    Raises ValueError where it holds none, texts written in several ways or of several lengths, or any that began with
    something given.
    """
    records = read_json(path).get("samples")
    if not (isinstance(records, list) and records and all(isinstance(r, dict) and "text" in r for r in records)):
        raise ValueError(f"{path}: has no list of 'samples' with a text each: write one with unmask sample --out")
    policies = {" with ".join(str(record[key]) for key in ("policy", "draw") if key in record) for record in records}
    if len(policies) > 1:
        raise ValueError(f"{path}: texts of several policies, {', '.join(sorted(policies))}: judge one at a time")
    given = [each for record in records if isinstance(each := record.get("given"), list)]
    lengths = sorted({each.count(False) for each in given}) or [None]
    if any(any(each[1:]) for each in given):
        raise ValueError(f"{path}: a text with a prompt, which the judge would score too: write them from nothing")
    if len(lengths) > 1:
        raise ValueError(f"{path}: texts of {', '.join(map(str, lengths))} tokens: judge those of one length")
    first = records[0]
    said = {"model": path.stem, "policy": first.get("policy"), "law": first.get("exact_for")}
    said |= {name: first[name] for name in ("draw", "guidance") if name in first}
    said |= {"length": lengths[0], "seed": first.get("seed")}
    told = [record.get(key) for record in records for key in ("nfe", "seconds")]
    if all(isinstance(value, float | int) and 0 <= value < 1e18 for value in told):
        said["nfe"] = statistics.fmean(record["nfe"] for record in records)
        said["seconds_per_text"] = first["seconds"] / len(records)
    return [str(record["text"]) for record in records], said


def quality(
    judge: Judge,
    texts: Sequence[str],
    said: Row,
    *,
    behind: Sequence[str] | None = None,
    batch: int = 4,
    progress: Callable[[int, int], None] | None = None,
) -> Row:
    """One row: generative perplexity and entropy with their errors over texts, and diversity; `said` is of the texts.

    `behind` are prompts that the texts answer, read by the judge and not scored. Perplexity is exp(total nats / total
    tokens) in the judge's tokens, bits per byte for judges of other tokenizers.
    Raises ValueError for fewer than two texts, which tell no error, or none with a token.
    """
    if len(texts) < 2:
        raise ValueError(f"{len(texts)} text tells no error: give at least 2")
    verdicts = judge_texts(judge, texts, behind=behind, batch=batch, progress=progress)
    nats, tokens = float(verdicts.nats.sum()), int(verdicts.tokens.sum())
    if not tokens:
        raise ValueError("all texts are empty: nothing to judge")
    rate, size = nats / tokens, sum(len(text.encode()) for text in texts)
    value = math.exp(min(700.0, rate))
    error = math.sqrt(ratio_variance(torch.from_numpy(verdicts.nats), torch.from_numpy(verdicts.tokens).double()))
    return {
        "experiment": "generation",
        "judge": judge.name,
        **said,
        "texts": len(texts),
        "generative_perplexity": value,
        "stderr": value * error / tokens,
        "entropy": float(verdicts.entropy.mean()),
        "entropy_stderr": float(verdicts.entropy.std(ddof=1)) / math.sqrt(len(texts)),
        "nats": nats,
        "tokens": tokens,
        "bits_per_byte": nats / math.log(2) / size,
        **diversity(texts),
        "values": {
            "nats": [round(x, 4) for x in verdicts.nats.tolist()],
            "tokens": verdicts.tokens.tolist(),
            "entropy": [round(x, 5) for x in verdicts.entropy.tolist()],
        },
    }


def caution(row: Row, reference: Row | None) -> str:
    """What a sceptic says of a row beside that of people's texts of the same length, "none" if nothing."""
    if reference is None:
        return "no reference texts: a low perplexity with a low entropy is no quality"
    gap, error = reference["entropy"] - row["entropy"], math.hypot(row["entropy_stderr"], reference["entropy_stderr"])
    if gap > CERTAIN * error:
        return (
            f"less varied than the reference (entropy {row['entropy']:.2f} against {reference['entropy']:.2f} nats): "
            "a low perplexity is no quality here"
        )
    gap, error = (
        reference["generative_perplexity"] - row["generative_perplexity"],
        math.hypot(row["stderr"], reference["stderr"]),
    )
    if gap > CERTAIN * error:
        return "more probable to the judge than the reference: read the samples before believing it"
    return "none"


def diversity(texts: Sequence[str]) -> Row:
    """n-grams of words between spaces: distinct ones among all (n = 1, 2, 3), and of four words how many return.

    `repetition_4`: mean share of a text's 4-grams that it has used before; `overlap_4`: mean share of its distinct
    4-grams that another text has as well. All depend on the number and length of texts: compare equal ones.
    """
    words = [text.split() for text in texts]
    row: Row = {}
    for n in (1, 2, 3):
        every = [gram for each in words for gram in _grams(each, n)]
        row[f"distinct_{n}"] = len(set(every)) / len(every) if every else math.nan
    fours = [grams for each in words if (grams := _grams(each, 4))]
    owners = Counter(gram for grams in fours for gram in set(grams))
    again = [1 - len(set(grams)) / len(grams) for grams in fours]
    shared = [sum(owners[gram] > 1 for gram in set(grams)) / len(set(grams)) for grams in fours]
    row["repetition_4"] = statistics.fmean(again) if again else math.nan
    row["overlap_4"] = statistics.fmean(shared) if shared else math.nan
    return row


def reference_texts(
    source: Path, judge: Judge | Tokenizer, *, count: int, length: int, seed: int = 0, field: str = "text"
) -> list[str]:
    """`count` passages of `length` tokens of the judge or its tokenizer, none across documents, drawn by the seed.

    From a prepared folder's validation split, a text file or a folder of them; `field` is the one of a row that holds
    text. Raises ValueError where there are fewer.
    """
    cuts = []
    for text in texts_of(source, field):
        ids = judge.encode(text)
        cuts += [ids[start : start + length] for start, _ in spans(0, len(ids), length, length, drop=True)]
    if len(cuts) < count:
        raise ValueError(f"{source}: {len(cuts)} passages of {length} tokens, fewer than the {count} texts to compare")
    return [judge.decode(cuts[i]) for i in batch_indices(len(cuts), count, seed=seed, step=0)]


def mauve(texts: Sequence[str], references: Sequence[str], featurizer: str) -> float:
    """MAUVE (Pillutla et al., NeurIPS 2021) between samples and reference texts, on a model's features.

    Raises ValueError where the package mauve-text or the model is not at hand.
    """
    try:
        from mauve import compute_mauve
    except ImportError:
        raise ValueError("--mauve needs the package mauve-text: pip install 'unmask[mauve]'") from None
    try:
        found = compute_mauve(
            p_text=list(references), q_text=list(texts), featurize_model_name=featurizer, verbose=False, seed=0
        )
    except Exception as error:  # no such model, no network, too few texts: each has its own exception
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ValueError(f"MAUVE with {featurizer}: {reason}: give a GPT-2-like model's name or folder") from None
    return float(found.mauve)


def _grams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return list(zip(*(words[i:] for i in range(n)), strict=False))
