"""A judge's perplexity at matched entropy: bisection finds the temperature, prompts are read and not scored."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_ablation import ASKING, MODEL, questions
from test_generation import make_run

from unmask.evaluate import judge_texts, load_judge, quality
from unmask.evaluate.judge import entropy
from unmask.evaluate.matched import APART, around_entropy, between, judged, varied
from unmask.experiments import Tradeoff, experiment
from unmask.experiments import judged as judged_module
from unmask.experiments.judged import judged_compared, judged_rows, judged_table, judged_ways
from unmask.experiments.ways import UNKNOWN
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


def test_the_temperatures_around_an_entropy_are_found():
    asked = []

    def measure(temperature: float) -> dict:
        asked.append(temperature)
        return {"entropy": 3 * temperature**2}

    low, high = around_entropy(measure, 1.5)
    assert low["temperature"] < math.sqrt(0.5) < high["temperature"]
    assert low["entropy"] < 1.5 < high["entropy"] <= low["entropy"] + 0.1
    assert (asked[:3], len(asked) <= 8) == ([1.0, 0.5, 0.75], True)
    low, high = around_entropy(lambda temperature: {"entropy": min(temperature, 1.0)}, 1.5)
    assert low["entropy"] == high["entropy"] == 1.0
    low, high = around_entropy(measure, 3.0)
    assert low["temperature"] == high["temperature"] == 1.0


def test_what_is_read_between_two_temperatures_depends_on_neither():
    """Two ways whose nats follow one line in the entropy differ by nothing, wherever their temperatures fell."""
    rng, found = np.random.default_rng(0), []
    for offsets in ((-0.02, 0.07), (-0.06, 0.01)):
        rows = []
        for offset in offsets:
            entropy = 2.0 + offset + 0.1 * rng.standard_normal(40)
            entropy += 2.0 + offset - entropy.mean()
            values = {"nats": 10 * (3 + 5 * (entropy - 2.0)), "tokens": np.full(40, 10.0), "entropy": entropy}
            rows.append({
                "experiment": "generation", "judge": "j", "texts": 40, "temperature": 1.0, "nfe": 2.0,
                "entropy": float(entropy.mean()), "values": {name: value.tolist() for name, value in values.items()},
            })  # fmt: skip
        found.append(between(*rows, 2.0))
    assert [row["entropy"] for row in found] == pytest.approx([2.0, 2.0])
    for row in found:
        assert row["values"]["nats"] == pytest.approx([30.0] * 40)
        assert row["generative_perplexity"] == pytest.approx(math.exp(3))


def test_answers_are_matched_with_the_references(judge, monkeypatch):
    """`Echo` answers one digit: of no entropy, as its references are, and never of more."""
    asked = [replace(question, references=("5",)) for question in questions("0123")]
    target = varied(judge, asked)
    assert target == 0
    row = judged(MODEL, asked, replace(ASKING, draw=Draw(1.0)), judge, target, "echo")
    assert (row["matched"], row["entropy"], row["target"]) == (True, 0.0, 0.0)
    assert row["nfe"] > 0
    row = judged(MODEL, asked, ASKING, judge, 2.0, "echo")
    assert not row["matched"]
    monkeypatch.setattr("unmask.evaluate.matched.answered", lambda *_: [{"choices": [{"turns": [""]}]}] * 4)
    row = judged(MODEL, asked, ASKING, judge, target, "mute")
    assert (row["matched"], row["entropy"]) == (False, 0.0), "silence has the entropy of one digit, and no perplexity"
    assert row["judge"] == judge.name
    with pytest.raises(ValueError, match="has no reference for its last answer"):
        varied(judge, [replace(question, references=()) for question in asked])


def answered(model: str, policy: str, seed: int, turn: int, nats: float, seconds: float, matched: bool = True) -> dict:
    """Eight answers of ten tokens; those in either half scatter by as much for all."""
    values = {"nats": [10 * (nats + 0.1 * (-1) ** i) for i in range(8)], "tokens": [10] * 8}
    return {
        "judged": True, "together": 1, "seed": seed, "turn": turn, "model": model, "policy": policy, "judge": "arm",
        "target": 3.0, "entropy": 3.0, "matched": matched, "temperature": 0.9, "nfe": 4.0,
        **({**values, "seconds": [seconds, seconds]} if matched else {}),
    }  # fmt: skip


def both(seed: int, turn: int, arm: tuple[float, float], policy: str, mdm: tuple) -> list[dict]:
    nats, seconds, *matched = mdm  # no two seeds take the same time
    return [
        answered("ARM", "left", seed, turn, *arm),
        answered("MDM", policy, seed, turn, nats, seconds * (1 + 0.002 * seed), *matched),
    ]


@pytest.mark.parametrize(
    ("nats", "seconds", "matched", "told", "held"),
    [
        (
            2.02,
            0.05,
            True,
            "faster than the ARM with its cache, 1.9980 ± 0.0020 times as fast, at equal quality: it has 0.0",
            "yes",
        ),
        (2.02, 0.20, True, "is slower than the ARM with its cache, 0.49950 ± 0.00050 times as fast, at equal", "no"),
        (2.30, 0.05, True, "of the ARM on the first half of the questions; the best, fast, has 0.30", UNKNOWN),
        (2.02, 0.05, False, "no MDM's answers come to the references' entropy", UNKNOWN),
    ],
)
def test_the_plain_statement_of_a_judge(nats, seconds, matched, told, held):
    """The fastest of those that are as probable; one that is not as varied counts for nothing, however probable."""
    rows = []
    for seed in (0, 1):
        rows += both(seed, 0, (2.0, 0.1), "fast", (nats, seconds, matched))
        rows += both(seed, 1, (2.0, 0.1), "bare", (0.1, 0.001, seed == 0))
    ways = judged_ways(rows)
    sentence, verdict = judged_compared(ways, 1, 1)
    assert told in sentence
    assert verdict == held
    assert "bare" not in {way.policy for way in ways}
    table = judged_table(rows, ways)
    assert f"at most {APART} nats apart" in table.title
    assert f"{3 - len(ways)} of 3 ways" in table.title
    rows = [answered("ARM", "left", 0, 0, 2.0, 0.1, matched=False), answered("MDM", "fast", 0, 0, 2.0, 0.1)]
    assert "1 of 2 ways came to no such entropy" in judged_table(rows, judged_ways(rows)).title
    assert "the ARM's answers do not come to the references' entropy" in judged_compared(judged_ways(rows), 1, 1)[0]


def test_the_perplexity_of_a_way_is_the_judges():
    """exp(nats / tokens) of the second half alone, however long its answers are, and the difference by question."""
    rows = both(0, 0, (2.0, 0.1), "fast", (2.25, 0.1))
    for row in rows:
        row["nats"][:4], row["tokens"][:4] = [0.0] * 4, [1] * 4
    arm, mdm = judged_ways(rows)
    assert (arm.quality.value, mdm.quality.value) == (-2.0, -2.25)
    assert (mdm.close.value, mdm.gained.value, mdm.gained.error) == (0.0, -0.25, 0.0)


def test_an_arm_whose_answers_are_empty_is_no_accident(monkeypatch):
    """It comes to no entropy, has no values and is not timed again."""
    bare = {"matched": False, "policy": "p", "temperature": 2.0, "entropy": 0.0}
    for name, value in (("load_judge", None), ("varied", 3.0)):
        monkeypatch.setattr(f"unmask.experiments.judged.{name}", lambda *_, value=value: value)
    monkeypatch.setattr("unmask.experiments.judged.judged", lambda *given: {**bare, "model": given[5]})
    rows = [
        {**row, "together": 1}
        for row in judged_rows(
            {"ARM": MODEL, "MDM": MODEL}, questions("01"), ASKING, [ASKING] * 2, "j", print, lambda _, each: each()
        )
    ]
    assert [(row["model"], row["turn"]) for row in rows] == [("ARM", 0), ("MDM", 0), ("ARM", 1), ("MDM", 1)]
    assert "the ARM's answers do not come" in judged_compared(judged_ways(rows), 1, 1)[0]


def a_judged_tradeoff(folder: Path) -> tuple[Tradeoff, str]:
    rows = [{"prompt": f"{i:02}+1=", "response": f"{i + 1:02} apples", "match": "text"} for i in range(40)]
    learnt, asked = folder / "learnt.jsonl", folder / "asked.jsonl"
    learnt.write_text("\n".join(map(json.dumps, rows[:32])))
    asked.write_text("\n".join(map(json.dumps, rows[32:])))
    referee = make_run(folder / "judge", causal=True, length=32)
    return Tradeoff(questions=str(asked), together=(1,), judge=str(referee)), str(learnt)


def test_a_judged_tradeoff_runs(tmp_path: Path):
    which, source = a_judged_tradeoff(tmp_path)
    path = experiment(which, "tiny", tmp_path / "out", source=source)
    assert path is not None
    found = json.loads(path.read_text())["rows"]
    texts = [row for row in found if row.get("judged")]
    assert {row["model"] for row in texts} == {"ARM", "MDM"}
    finding = which.find(found)
    assert len(finding.tables) == 2
    assert "references' entropy" in finding.measured


def test_a_measurement_goes_on_where_it_was_cut_off(tmp_path: Path, monkeypatch):
    """What was measured, times and all, is in the result; only the way that was cut off is measured anew."""
    which, source = a_judged_tradeoff(tmp_path)
    out, ways, real = tmp_path / "out", [], judged_module.judged

    def judged(*given):
        ways.append(given[5] + repr(given[2].policy))
        if len(ways) == 3:
            raise KeyboardInterrupt
        return real(*given)

    monkeypatch.setattr(judged_module, "judged", judged)
    with pytest.raises(KeyboardInterrupt):
        experiment(which, "tiny", out, source=source)
    (parts,) = out.glob("mdm-*/parts/*")
    kept = {path.stem: json.loads(path.read_text())["rows"] for path in parts.glob("*.json")}
    turns = [name for name in kept if name.startswith("turn-")]
    assert set(kept) == {"judged-arm", "judged-0", *turns}
    monkeypatch.setattr("unmask.experiments.tradeoff.tradeoff_rows", lambda *_: pytest.fail("measured twice"))
    path = experiment(which, "tiny", out, source=source)
    assert path is not None
    assert ways[2] == ways[3]
    assert len(set(ways)) == len(ways) - 1
    found = json.loads(path.read_text())["rows"]
    for row in kept["judged-0"]:
        assert any(row.items() <= each.items() for each in found if each.get("turn") == 0 and each.get("judged"))
    for turn in turns:
        for row in kept[turn]:
            number = int(turn.removeprefix("turn-"))
            same = [each for each in found if (each.get("turn"), each["model"]) == (number, row["model"])]
            assert any(each.get("nfe") == row["nfe"] for each in same if not each.get("judged"))
    assert not parts.exists()
