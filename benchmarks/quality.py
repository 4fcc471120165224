"""Quality of samples against network evaluations: generative perplexity by a judge, and entropy beside it.

    python benchmarks/quality.py --checkpoint RUN --judge ARM_RUN --reference PREPARED --out docs/figures/quality

writes OUT.json, a row a policy and budget, and OUT.svg. The judge is a causal model that shares nothing with the
sampler but its training text; the same measures of held-out passages are the line to reach, and a row whose entropy
lies below theirs is not good for being probable.
"""

import argparse
from pathlib import Path

import matplotlib
import torch

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from unmask import load
from unmask.evaluate.generation import generation, quality, reference_texts
from unmask.evaluate.judge import load_judge
from unmask.files import read_json, write_json
from unmask.sampling import Blocks, Confidence, Draw, EntropyBound, LeftToRight, RandomOrder, Remasking, Tweedie

LENGTH = 128


def sweeps() -> dict[str, list]:
    """Policies by name, each at rising budgets."""
    return {
        "tau-leaping (Tweedie)": [Tweedie(steps) for steps in (4, 16, 64, 256)],
        "random order, k a step": [RandomOrder(k) for k in (32, 8, 2, 1)],
        "left to right, k a step": [LeftToRight(k) for k in (8, 1)],
        "blocks of 32, random within": [Blocks(32, RandomOrder(k)) for k in (8, 1)],
        "confidence, k a step": [Confidence(k) for k in (32, 8, 2, 1)],
        "entropy bound": [EntropyBound(nats) for nats in (4.0, 0.1)],
        "remasking, cap 0.02": [Remasking(steps) for steps in (32, 256)],
    }


def measure(arguments: argparse.Namespace) -> dict:
    """Rows of all sweeps, and the reference's."""
    model, judge = load(arguments.checkpoint), load_judge(str(arguments.judge), device="cpu")
    held_out = reference_texts(arguments.reference, judge, count=arguments.texts, length=LENGTH)
    reference = quality(judge, held_out, {"model": "held-out text", "policy": "none"})
    rows = []
    for name, policies in sweeps().items():
        for policy in policies:
            texts, said = generation(model, count=arguments.texts, length=LENGTH, policy=policy, draw=Draw(), seed=0)
            row = quality(judge, texts, {"sweep": name, **said})
            del row["values"]
            rows.append(row)
            print(
                f"{name:28} NFE {row['nfe']:6.1f}  {row['generative_perplexity']:8.1f} ±{row['stderr']:.1f}  "
                f"entropy {row['entropy']:.3f} ±{row['entropy_stderr']:.3f}  {row['seconds_per_text']:.2f} s a text",
                flush=True,
            )
    del reference["values"]
    return {"rows": rows, "reference": reference, "texts": arguments.texts, "threads": torch.get_num_threads()}


def draw(found: dict, path: Path) -> None:
    """Two panels over NFE, one line a sweep."""
    figure, panels = plt.subplots(1, 2, figsize=(10, 4.8), layout="constrained")
    marks = "osD^vP*"
    for panel, key, error, label in (
        (panels[0], "generative_perplexity", "stderr", "generative perplexity by the judge"),
        (panels[1], "entropy", "entropy_stderr", "unigram entropy of a text (nats)"),
    ):
        for i, name in enumerate(dict.fromkeys(row["sweep"] for row in found["rows"])):
            rows = sorted((row for row in found["rows"] if row["sweep"] == name), key=lambda row: row["nfe"])
            x, y, bars = ([row[of] for row in rows] for of in ("nfe", key, error))
            panel.errorbar(x, y, bars, label=name, marker=marks[i], color=plt.cm.tab10(i), markersize=4, linewidth=1.2)
        reference = found["reference"]
        panel.axhline(reference[key], color="black", linestyle="--", linewidth=1, label="held-out text")
        panel.set(xscale="log", xlabel="network evaluations a text", ylabel=label)
        panel.grid(alpha=0.25)
    panels[0].set_yscale("log")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Measure, unless --redraw, and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("checkpoint", "judge", "reference"):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--texts", type=int, default=16)
    parser.add_argument("--redraw", action="store_true", help="draw OUT.svg from OUT.json again")
    arguments = parser.parse_args()
    path = arguments.out.with_suffix(".json")
    if not arguments.redraw:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, measure(arguments))
    draw(read_json(path), arguments.out.with_suffix(".svg"))


if __name__ == "__main__":
    main()
