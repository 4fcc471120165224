"""Guidance and the trade-off as experiments: planted rows give the verdicts that they should, and both run."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from test_ablation import BYTES, Echo

from unmask.checkpoint import Model
from unmask.evaluate.answers import Question
from unmask.experiments import Guidance, Tradeoff, experiment, name_of
from unmask.experiments.asked import together
from unmask.experiments.guidance import averaged, preferred
from unmask.experiments.page import results_page
from unmask.experiments.setting import SETTINGS
from unmask.experiments.tradeoff import compared, points_of


def sums(path: Path, first: int, last: int) -> str:
    rows = [{"prompt": f"{i:02}+{i % 7}=", "response": f"{i + i % 7:03}", "match": "text"} for i in range(first, last)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


@pytest.mark.parametrize("which", [Guidance(), Tradeoff(together=(1, 3))], ids=name_of)
def test_it_runs_at_its_tiny_scale(which, tmp_path: Path):
    """It ends with a result, a figure and a finding; run again, it trains nothing and says the same."""
    source, out = sums(tmp_path / "learnt.jsonl", 0, 60), tmp_path / "out"
    which = dataclasses.replace(which, questions=sums(tmp_path / "asked.jsonl", 60, 90))
    path = experiment(which, "tiny", out, source=source)
    assert path is not None
    rows = json.loads(path.read_text())["rows"]
    assert (out / f"{name_of(which)}.svg").read_text().lstrip().startswith("<?xml")
    weights = {file: file.stat().st_mtime_ns for file in out.rglob("*.safetensors")}
    assert experiment(which, "tiny", out, source=source) == path
    assert json.loads(path.read_text())["rows"] == rows
    assert weights == {file: file.stat().st_mtime_ns for file in out.rglob("*.safetensors")}
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / f"{name_of(which)}.json").write_bytes(path.read_bytes())
    finding = which.find(rows)
    assert finding.measured in results_page(tmp_path / "results")
    with pytest.raises(ValueError, match="which questions"):
        experiment(dataclasses.replace(which, questions=None), "tiny", out, source=source)


def test_questions_asked_at_once(tmp_path: Path):
    source = sums(tmp_path / "q.jsonl", 10, 15)
    first, second = together(source, 2)
    assert (first.turns, first.references) == (("10+3=11+4=",), ("013\n015",))
    assert second.turns == ("12+5=13+6=",)
    assert first.as_text
    with pytest.raises(ValueError, match="5 questions, fewer than 6"):
        together(source, 6)


class Weighted(Echo):
    def parameters(self):
        yield torch.zeros(1)


def test_guidance_of_likelihoods_finds_what_the_prompt_makes_likelier():
    """`Echo` holds 9 likelier than the digit asked, but only the digit depends on the question."""
    questions = [Question(i, (str(i),), False, (str(i),)) for i in range(10)]
    model, setting = Model(Weighted(), BYTES, {}), dataclasses.replace(SETTINGS["tiny"], length=4)
    without = preferred(model, questions, 0.0, setting)
    assert without[9]
    assert not all(without)
    assert all(preferred(model, questions, 1.0, setting))


def guided(kind: str, seed: int, part: str, weight: float, right: str) -> dict:
    return {
        "measure": "answers", "training": kind, "seed": seed, "part": part, "guidance": weight, "right": right
    }  # fmt: skip


def test_what_guidance_gains_is_paired_by_question():
    """Unsupervised rights a third of the questions in each seed, standard none; the weight is the test part's."""
    rows = []
    for seed in (0, 1):
        rows += [guided("unsupervised", seed, "test", 0.0, "010010" * 20)]
        rows += [guided("unsupervised", seed, "test", 1.0, "011011" * 20)]
        rows += [guided("standard", seed, "test", 0.0, "010010" * 20)]
    finding = Guidance().find(rows)
    assert finding.held == "yes"
    assert [row[1:3] for row in finding.tables[0].rows][:2] == [("none", "0"), ("unsupervised", "1, 1")]
    assert finding.tables[0].rows[1][4].startswith("0.33")
    rows = [{**row, "guidance": 0.0} for row in rows if row["guidance"] == 0]
    assert Guidance().find(rows).held == "not shown at this scale"


def test_the_error_is_the_larger_one():
    assert averaged(np.array([[0, 0], [1, 1]])) == (0.5, 0.5)
    assert averaged(np.array([[0, 1], [0, 1]])) == (0.5, 0.5)
    assert averaged(np.array([[0, 1]])) == (0.5, 0.5)


def answered(model: str, policy: str, seed: int, right: float, less: float, seconds: float) -> dict:
    return {
        "together": 1, "seed": seed, "model": model, "policy": policy, "exact_match": right, "stderr": 0.01,
        "difference": less, "difference_stderr": 0.01, "nfe": 4.0, "seconds_per_answer": seconds,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arm", "fast", "said", "held"),
    [
        ((0.9, 0.1), (0.9, 0.05), "is 2 ± 0 times as fast as the ARM", "yes"),
        ((0.9, 0.1), (0.9, 0.2), "slower than (0.5000 ± 0 times as fast as) the ARM", "no"),
        ((0.9, 0.1), (0.8, 0.05), "slower than (0.1", "no"),
        ((0.3, 0.1), (0.9, 0.05), "too few to compare", "not shown at this scale"),
    ],
)
def test_the_plain_statement(arm, fast, said, held):
    """The fastest policy among those of equal quality; a worse one counts for nothing, however fast."""
    rows = [{"together": 1, "seed": 0, "trained": True}]
    for seed in (0, 1):
        rows.append(answered("ARM", "LeftToRight(tokens=1)", seed, arm[0], 0.0, arm[1]))
        rows.append(answered("MDM", "Confidence(tokens=1)", seed, arm[0], 0.0, 1.0))
        rows.append(answered("MDM", "Confidence(tokens=4)", seed, fast[0], fast[0] - arm[0], fast[1]))
    sentence, verdict = compared(points_of(rows), 1)
    assert said in sentence
    assert verdict == held


def test_no_policy_may_be_as_good():
    rows = [answered("ARM", "a", 0, 0.9, 0.0, 1.0), answered("MDM", "b", 0, 0.6, -0.3, 0.1)]
    sentence, verdict = compared(points_of(rows), 1)
    assert "no policy is as often right as the ARM (90.0%); the best, b, is in 60.0%" in sentence
    assert verdict == "no"
