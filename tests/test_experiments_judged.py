"""A judge's perplexity at matched entropy: bisection finds the temperature, prompts are read and not scored."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_ablation import ASKING, MODEL, questions
from test_generation import make_run

from unmask.evaluate import judge_texts, load_judge, quality
from unmask.evaluate.judge import entropy
from unmask.evaluate.matched import WITHIN, at_entropy, judged, varied
from unmask.experiments import Tradeoff, experiment
from unmask.experiments.judged import judged_compared, judged_points, judged_table
from unmask.sampling import Draw


@pytest.fixture(scope="module")
def judge(tmp_path_factory):
    return load_judge(str(make_run(tmp_path_factory.mktemp("runs") / "arm", causal=True, length=8)))


def direct(judge, text: str, given: int) -> float:
    """-log p of the bytes behind the first `given`."""
    ids = list(text.encode())
    tokens = torch.tensor([[judge.begin, *ids]])
    log_p = judge.network(tokens, torch.arange(1, len(ids) + 1)).detach().double().log_softmax(-1)
    return -float(log_p[torch.arange(len(ids)), torch.tensor(ids)][given:].sum())


def test_prompts_are_read_and_not_scored(judge):
    found = judge_texts(judge, ["cab", "", "x"], behind=["ab", "abc", ""])
    assert found.nats == pytest.approx([direct(judge, "abcab", 2), 0.0, direct(judge, "x", 0)], rel=1e-5)
    assert found.tokens.tolist() == [3, 0, 1]
    assert found.entropy.tolist() == pytest.approx([math.log(3), 0, 0])
    whole = judge_texts(judge, ["abcab"])
    assert float(whole.nats[0]) == pytest.approx(float(found.nats[0]) + direct(judge, "ab", 0), rel=1e-5)


def test_prompts_of_texts_longer_than_the_judge_reads(judge):
    """Eight bytes at a time, windows by half: abcdefgh and then ij behind cdefgh, of which ghij is the answer."""
    found = judge_texts(judge, ["ghij"], behind=["abcdef"])
    expected = direct(judge, "abcdefgh", 6) + direct(judge, "cdefghij", 6)
    assert float(found.nats[0]) == pytest.approx(expected, rel=1e-5)
    assert found.tokens.tolist() == [4]
    late = judge_texts(judge, ["z"], behind=["abcdefghijklmnop"])  # windows that end before the answer score nothing
    assert float(late.nats[0]) == pytest.approx(direct(judge, "jklmnopz", 7), rel=1e-5)


def test_a_quality_of_answers_is_that_of_what_they_add(judge):
    row = quality(judge, ["cab", "dab"], {}, behind=["ab", "ab"])
    nats = direct(judge, "abcab", 2) + direct(judge, "abdab", 2)
    assert row["generative_perplexity"] == pytest.approx(math.exp(nats / 6), rel=1e-5)
    assert row["entropy"] == pytest.approx(entropy([1, 2, 3]))


def test_the_temperature_of_an_entropy_is_found():
    asked = []

    def measure(temperature: float) -> dict:
        asked.append(temperature)
        return {"entropy": 3 * temperature**2}

    row, matched = at_entropy(measure, 1.5, within=0.02)
    assert matched
    assert row["temperature"] == pytest.approx(math.sqrt(0.5), abs=0.01)
    assert abs(row["entropy"] - 1.5) <= 0.02
    assert (asked[:3], len(asked) <= 8) == ([1.0, 0.5, 0.75], True)
    row, matched = at_entropy(lambda temperature: {"entropy": min(temperature, 1.0)}, 1.5)
    assert not matched
    assert row["entropy"] == 1.0
    row, matched = at_entropy(measure, 3.0)
    assert (row["temperature"], matched) == (1.0, True)


def test_answers_are_matched_with_the_references(judge):
    """`Echo` answers one digit: of no entropy, as its references are, and never of more."""
    asked = [replace(question, references=("5",)) for question in questions("0123")]
    target = varied(judge, asked)
    assert target == 0
    row = judged(MODEL, asked, replace(ASKING, draw=Draw(1.0)), judge, target, "echo")
    assert (row["matched"], row["entropy"], row["target"]) == (True, 0.0, 0.0)
    assert row["nfe"] > 0
    row = judged(MODEL, asked, ASKING, judge, 2.0, "echo")
    assert not row["matched"]
    with pytest.raises(ValueError, match="has no reference answer, whose entropy"):
        varied(judge, [replace(question, references=()) for question in asked])


def answered(model: str, policy: str, seed: int, nats: float, seconds: float, matched: bool = True) -> dict:
    return {
        "judged": True, "together": 1, "seed": seed, "model": model, "policy": policy, "judge": "arm", "target": 3.0,
        "entropy": 3.0, "matched": matched, "temperature": 0.9, "nats": 100 * nats, "tokens": 100, "nfe": 4.0,
        "generative_perplexity": math.exp(nats), "stderr": 0.01 * math.exp(nats), "seconds_per_answer": seconds,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("nats", "seconds", "matched", "said", "held"),
    [
        (
            2.02,
            0.05,
            True,
            "0.020 ± 0.014 nats a judge's token from the ARM the MDM (fast) is 2 ± 0",
            "yes",
        ),
        (2.02, 0.20, True, "is 0.5000 ± 0 times as fast", "no"),
        (2.30, 0.05, True, "as probable to the judge as the ARM; the best, fast, has 0.300 ± 0.014 nats", "no"),
        (2.02, 0.05, False, "no MDM's answers come to the references' entropy", "not shown at this scale"),
    ],
)
def test_the_plain_statement_of_a_judge(nats, seconds, matched, said, held):
    """The fastest of those that are as probable; one that is not as varied counts for nothing, however probable."""
    rows = []
    for seed in (0, 1):
        rows += [answered("ARM", "left", seed, 2.0, 0.1), answered("MDM", "fast", seed, nats, seconds, matched)]
        rows += [answered("MDM", "bare", seed, 0.1, 0.001, matched=seed == 0)]
    points = judged_points(rows)
    sentence, verdict = judged_compared(points, 1)
    assert said in sentence
    assert verdict == held
    assert "bare" not in {point.policy for point in points}
    assert f"within {WITHIN} nats" in judged_table(rows, points).title
    rows = [answered("ARM", "left", 0, 2.0, 0.1, matched=False), answered("MDM", "fast", 0, 2.0, 0.1)]
    assert "the ARM's answers do not come to the references' entropy" in judged_compared(judged_points(rows), 1)[0]


def test_a_judged_tradeoff_runs(tmp_path: Path):
    rows = [{"prompt": f"{i:02}+1=", "response": f"{i + 1:02} apples", "match": "text"} for i in range(40)]
    learnt, asked = tmp_path / "learnt.jsonl", tmp_path / "asked.jsonl"
    learnt.write_text("\n".join(map(json.dumps, rows[:32])))
    asked.write_text("\n".join(map(json.dumps, rows[32:])))
    referee = make_run(tmp_path / "judge", causal=True, length=32)
    which = Tradeoff(questions=str(asked), together=(1,), judge=str(referee))
    path = experiment(which, "tiny", tmp_path / "out", source=str(learnt))
    assert path is not None
    found = json.loads(path.read_text())["rows"]
    texts = [row for row in found if row.get("judged")]
    assert {row["model"] for row in texts} == {"ARM", "MDM"}
    finding = which.find(found)
    assert len(finding.tables) == 2
    assert "references' entropy" in finding.measured
