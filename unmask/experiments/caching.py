"""RADD: a time-free network is called only when something changed, and the number of calls is known beforehand."""

import itertools
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.figure import Figure

from unmask.checkpoint import Model, load
from unmask.corruption import Cosine
from unmask.data import Tokenizer
from unmask.evaluate import generation, load_judge, quality, reference_texts
from unmask.experiments.averages import said
from unmask.experiments.running import Cell, Finding, Scale, Table, above_zero
from unmask.experiments.setting import SETTINGS, Setting
from unmask.files import Row
from unmask.log import Report
from unmask.objectives import AnyOrder, NextToken
from unmask.report.drawing import COLOURS, MARKERS, log_axis
from unmask.sampling import Blocks, Confidence, Euler, Policy, RandomOrder, Tweedie, sample
from unmask.sampling.planned import expected_nfe
from unmask.units import count

JUDGE, HELD_OUT = "judge", "held-out text"


@dataclass(frozen=True)
class Caching:
    """Calls and seconds of samplers that never call the network twice on one text, and what these texts are worth."""

    factors: tuple[float, ...] = (0.25, 1.0, 4.0)
    """Steps of tau-leaping as multiples of the text's length, which is the model's or a quarter of it."""

    def __post_init__(self) -> None:
        above_zero(self, "factors")
        if not self.factors:
            raise ValueError("factors: give one at least")

    def corpus(self, scale: Scale, source: str, out: Path) -> tuple[str, str]:
        return source, SETTINGS[scale].tokenizer

    def plan(self, scale: Scale, data: str, rows: Sequence[Row]) -> list[Cell]:
        """The judge, an ARM of another seed; then the MDM that it judges. Raises ValueError where too little text is
        held out to compare samples with.
        """
        setting = SETTINGS[scale]
        if not rows:
            reference_texts(Path(data), Tokenizer.load(data), count=setting.texts, length=setting.length)
        judge = Cell(JUDGE, setting.config(data, NextToken(), seed=1))
        return [judge, Cell("mdm", setting.config(data, AnyOrder(0.5)), needs=JUDGE)]

    def run(self, scale: Scale, cell: Cell, folder: Path, source: str, told: Report) -> list[Row]:
        if cell.name == JUDGE:
            return [{"kind": "judge"}]
        model, setting = load(folder), SETTINGS[scale]
        return [
            *self._calls(model, setting),
            *self._quality(model, setting, folder.parent / JUDGE, cell.config.data, told),
        ]

    def _calls(self, model: Model, setting: Setting) -> list[Row]:
        """NFE against the closed form, and seconds against a sampler that calls the network at every step."""
        count, rows = setting.texts, []
        for length, factor in itertools.product((setting.length, setting.length // 4), self.factors):
            steps = max(2, round(factor * length))
            start = time.perf_counter()
            canvas = blank(model, count, length)
            nfe = sample(model, canvas, Tweedie(steps), seed=0, batch=count).nfe.double()
            seconds = time.perf_counter() - start
            start = time.perf_counter()
            plain(model, count, length, steps, torch.float32)
            every = (time.perf_counter() - start) / count
            rows.append({
                "kind": "calls",
                "length": length,
                "steps": steps,
                "nfe": float(nfe.mean()),
                "nfe_stderr": math.sqrt(occupied_variance(steps, length) / count),
                "closed_form": expected_nfe(steps, length),
                "seconds": seconds / count,
                "seconds_every_step": every,
            })  # fmt: skip
        return rows

    def _quality(self, model: Model, setting: Setting, judge: Path, data: str, told: Report) -> list[Row]:
        referee, length, count = load_judge(str(judge), device="cpu"), setting.length, setting.texts
        held_out = quality(
            referee, reference_texts(Path(data), referee, count=count, length=length), {"policy": "none"}
        )
        rows: list[Row] = [{"kind": "quality", "sampler": "held-out text", **kept(held_out)}]
        for name, policies in samplers(length).items():
            for policy in policies:
                texts, how = generation(model, count=count, length=length, policy=policy, progress=told)
                rows.append({"kind": "quality", "sampler": name, **kept(quality(referee, texts, how))})
        for dtype in (torch.float32, torch.float64):
            start = time.perf_counter()
            tokens = plain(model, count, length, length, dtype)
            how = {
                "nfe": float(length),
                "seconds_per_text": (time.perf_counter() - start) / count,
                "policy": "tau-leaping",
            }
            texts = [model.decode(row[1:]) for row in tokens]
            name = f"published sampler, {str(dtype).removeprefix('torch.')}"
            rows.append({"kind": "precision", "sampler": name, **kept(quality(referee, texts, how))})
        return rows

    def find(self, rows: Sequence[Row]) -> Finding:
        calls = [row for row in rows if row["kind"] == "calls"]
        off = max(abs(row["nfe"] - row["closed_form"]) / max(row["nfe_stderr"], 1e-9) for row in calls)
        worst = max(calls, key=lambda row: row["steps"])
        speed, saved = worst["seconds_every_step"] / worst["seconds"], worst["steps"] / worst["nfe"]
        cached = all(row["seconds_every_step"] / row["seconds"] > 0.8 * row["steps"] / row["nfe"] for row in calls)
        return Finding(
            "With T steps a text of L tokens costs T(1 − (1 − 1/T)^L) evaluations: 1.8 to 3.6 times less time.",
            f"Evaluations equal the closed form within {off:.1f} standard errors; at T = {worst['steps']}, "
            f"L = {worst['length']} a text takes {speed:.1f} times less time than by the published loop with its "
            f"call at every step: {saved:.1f} times from calls saved, {speed / saved:.1f} from what a call costs.",
            "yes" if off < 4 and cached else "no",
            (
                Table(
                    "Tau-leaping: evaluations a text, and seconds",
                    ("T", "L", "NFE", "closed form", "seconds", "seconds, a call at every step"),
                    tuple(
                        (
                            str(row["steps"]), str(row["length"]), said(row["nfe"], row["nfe_stderr"]),
                            f"{row['closed_form']:.1f}", f"{row['seconds']:.3f}", f"{row['seconds_every_step']:.3f}",
                        )
                        for row in calls
                    ),
                ),
                Table(
                    "Quality by an ARM of another seed as the judge",
                    ("sampler", "NFE", "generative perplexity", "entropy (nats)", "seconds a text"),
                    tuple(
                        (
                            row["sampler"], f"{row.get('nfe', 0):.1f}",
                            said(row["generative_perplexity"], row["stderr"]),
                            said(row["entropy"], row["entropy_stderr"]), f"{row.get('seconds_per_text', 0):.3f}",
                        )
                        for row in rows
                        if row["kind"] in ("quality", "precision")
                    ),
                ),
            ),
        )  # fmt: skip

    def figure(self, rows: Sequence[Row]) -> Figure:
        figure = Figure(figsize=(9, 3.8), layout="constrained")
        left, right = figure.subplots(1, 2)
        shown = [row for row in rows if row["kind"] == "quality" and row["sampler"] != HELD_OUT]
        for panel, key, error, label in (
            (left, "generative_perplexity", "stderr", "generative perplexity"),
            (right, "entropy", "entropy_stderr", "entropy of a text (nats)"),
        ):
            for i, name in enumerate(dict.fromkeys(row["sampler"] for row in shown)):
                points = sorted((row["nfe"], row[key], row[error]) for row in shown if row["sampler"] == name)
                x, y, e = zip(*points, strict=True)
                panel.errorbar(x, y, e, label=name, marker=MARKERS[i % 6], color=COLOURS[i % 6], markersize=4)
            panel.axhline(
                next(row[key] for row in rows if row.get("sampler") == "held-out text"), color="gray", ls="--"
            )
            panel.set(xlabel="network evaluations a text", ylabel=label)
            costs = [row["nfe"] for row in shown]
            log_axis(panel.xaxis, count, max(costs) / min(costs))
        values = [row["generative_perplexity"] for row in rows if row["kind"] == "quality"]
        log_axis(left.yaxis, count, max(values) / min(values))
        figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)
        return figure


def occupied_variance(steps: int, length: int) -> float:
    """Of the steps at which something is revealed, each token choosing one of T alike: T(T-1)(1-2/T)^L + T(1-1/T)^L -
    T²(1-1/T)^{2L}. A sample's own spread says nothing where every row used every step.
    """
    none, neither = (1 - 1 / steps) ** length, (1 - 2 / steps) ** length
    return max(0.0, steps * (steps - 1) * neither + steps * none - (steps * none) ** 2)


def samplers(length: int) -> dict[str, list[Policy]]:
    """Policies by name, each at rising budgets, no two of one law: under the log-linear schedule Euler's rate is
    tau-leaping's, and any order with one token a step is first hitting.
    """
    steps = sorted({max(2, length // 16), max(2, length // 4), length, 4 * length})
    few = sorted({max(1, length // 8), max(1, length // 32), 1}, reverse=True)
    return {
        "tau-leaping": [Tweedie(each) for each in steps],
        "Euler, cosine schedule": [Euler(each, Cosine()) for each in steps],
        "any order, k a step": [RandomOrder(k) for k in few if k > 1],
        "first hitting": [RandomOrder()],
        "blocks, any order within": [Blocks(max(2, length // 4), RandomOrder(k)) for k in few],
        "confidence, k a step": [Confidence(k) for k in few],
    }


def blank(model: Model, count: int, length: int) -> torch.Tensor:
    canvas = torch.full((count, 1 + length), model.mask_id)
    canvas[:, 0] = model.tokenizer.begin
    return canvas


@torch.inference_mode()
def plain(model: Model, count: int, length: int, steps: int, dtype: torch.dtype) -> torch.Tensor:
    """The published loop: a call at every step, and one Gumbel race between the mask and all tokens in `dtype`."""
    generator, tokens = torch.Generator().manual_seed(0), blank(model, count, length)
    everywhere = torch.arange(tokens.numel())
    for step in range(steps):
        logits = model(tokens, everywhere)
        assert isinstance(logits, torch.Tensor)
        p = logits.view(count, 1 + length, -1).to(dtype).softmax(-1)
        move = 1 / (steps - step)
        race = torch.cat([p * move, torch.full_like(p[..., :1], 1 - move)], -1)
        u = torch.rand(race.shape, dtype=dtype, generator=generator)
        drawn = (race / -(u + torch.finfo(dtype).tiny).log()).argmax(-1)
        open_ = (tokens == model.mask_id) & (drawn < model.vocab)
        tokens = torch.where(open_, drawn, tokens)
    return tokens


def kept(row: Row) -> Row:
    """What an experiment keeps of a row of quality."""
    drop = ("values", "experiment", "judge", "model", "law")
    return {name: value for name, value in row.items() if name not in drop}
