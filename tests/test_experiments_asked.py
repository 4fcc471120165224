"""Experiments that ask questions: planted rows give the verdicts that they should, and both run."""

import dataclasses
import json
import re
from functools import partial
from pathlib import Path

import pytest
import torch
from test_ablation import BYTES, Echo

from unmask.checkpoint import Model
from unmask.data.pairs import Template, load_pairs
from unmask.evaluate.answers import Question, questions_of
from unmask.experiments import Finetuning, Guidance, Tradeoff, experiment, name_of
from unmask.experiments.asked import asked_of, learnt_questions, prepared, together
from unmask.experiments.finetuning import exchanged
from unmask.experiments.guidance import LIKELIHOOD, preferred
from unmask.experiments.page import published, results_page
from unmask.experiments.setting import SETTINGS
from unmask.experiments.tradeoff import exact_compared, exact_ways
from unmask.experiments.ways import UNKNOWN, together_held


def sums(path: Path, first: int, last: int) -> str:
    rows = [{"prompt": f"{i:02}+{i % 7}=", "response": f"{i + i % 7:03}", "match": "text"} for i in range(first, last)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


@pytest.mark.parametrize("which", [Guidance(), Tradeoff(together=(1, 3)), Finetuning()], ids=name_of)
def test_it_runs_at_its_tiny_scale(which, tmp_path: Path, measured: dict):
    """It ends with a result, a figure and a finding; run again, it trains nothing and says the same."""
    source, out = sums(tmp_path / "learnt.jsonl", 0, 60), tmp_path / "out"
    which = dataclasses.replace(which, questions=sums(tmp_path / "asked.jsonl", 60, 90))
    path = experiment(which, "tiny", out, source=source)
    assert path is not None
    assert measured
    assert all(told[-1][0] == told[-1][1] for told in measured.values())
    rows = json.loads(path.read_text())["rows"]
    assert (out / f"{name_of(which)}.svg").read_text().lstrip().startswith("<?xml")
    weights = {file: file.stat().st_mtime_ns for file in out.rglob("*.safetensors")}
    assert experiment(which, "tiny", out, source=source) == path
    assert json.loads(path.read_text())["rows"] == rows
    assert weights == {file: file.stat().st_mtime_ns for file in out.rglob("*.safetensors")}
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / f"{name_of(which)}.json").write_bytes(path.read_bytes())
    page, spent = results_page(published(tmp_path / "results")), json.loads(path.read_text())["trained"]
    assert which.find(rows).measured in page
    runs = [json.loads(file.read_text())["budget"] for file in out.glob("*/config.json")]
    assert spent == {"runs": len(runs), **{key: sum(budget[key] for budget in runs) for key in spent if key != "runs"}}
    assert f"{len(runs)} runs, " in page
    other = dataclasses.replace(which, questions=sums(tmp_path / "other.jsonl", 60, 90))
    with pytest.raises(ValueError, match=r"measured with '--questions \S*asked.jsonl .* name another folder by --out"):
        experiment(other, "tiny", out, source=source)
    sums(tmp_path / "asked.jsonl", 61, 90)  # a file of that name that asks other questions
    with pytest.raises(ValueError, match="another folder"):
        experiment(which, "tiny", out, source=source)


@pytest.mark.parametrize("which", [Guidance(), Tradeoff(together=(1,)), Finetuning()], ids=name_of)
def test_what_cannot_be_told_is_refused_before_training(which, tmp_path: Path):
    source, asked = sums(tmp_path / "learnt.jsonl", 0, 60), tmp_path / "asked.jsonl"
    for rows, message in (
        (
            [{"question_id": i, "category": "sums", "turns": [f"{i}+1="]} for i in range(9)],
            "a question without an answer",
        ),
        ([{"prompt": f"{i}+1=", "response": "1"} for i in range(3)], "3 to ask, of which two halves tell no error"),
    ):
        asked.write_text("\n".join(map(json.dumps, rows)))
        it = dataclasses.replace(which, questions=str(asked))
        with pytest.raises(ValueError, match=message):
            it.corpus("tiny", source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_is_asked_of_a_source_alone_is_what_is_held_out_of_it(tmp_path: Path):
    """As `prepare_pairs` holds it out: nothing that is asked is learnt, one at a time or several at once."""
    source = sums(tmp_path / "all.jsonl", 0, 99)
    with (tmp_path / "all.jsonl").open("a") as file:
        file.write("\n")
    asked, learnt = asked_of(source, None), learnt_questions(source, None)
    assert len(asked) >= 4
    assert {each.turns for each in asked}.isdisjoint(each.turns for each in learnt)
    assert len(asked) + len(learnt) == 99
    pairs = prepared(source, "tiny", tmp_path / "pairs", None)
    for side, questions in (("train", learnt), ("validation", asked)):
        assert len(load_pairs(pairs, side).lengths) == len(questions)
    few = sums(tmp_path / "few.jsonl", 0, 9)
    with pytest.raises(ValueError, match=r"few.jsonl: \d to ask, of which two halves tell no error"):
        asked_of(few, None)


def test_an_answer_behind_anothers_question():
    """Rows of begin 9, a question of 1s, an answer of 2s, 3s or 4s, and filling 0: the next row's question comes first,
    as much of its end as there is room for.
    """
    x_0 = torch.tensor([[9, 1, 2, 2, 0, 0], [9, 11, 12, 13, 3, 0], [9, 14, 4, 4, 4, 0]])
    maskable = (x_0 != 9) & (x_0 != 1) & (x_0 < 10)
    behind, scored = exchanged(x_0, maskable, torch.tensor([5, 6, 6]))
    assert behind.tolist() == [[9, 12, 13, 2, 2, 0], [9, 14, 3, 0, 0, 0], [9, 1, 4, 4, 4, 0]]
    assert scored.tolist() == [[i >= first for i in range(6)] for first in (3, 2, 2)]


def planted(mdm: float, right: str, arm_right: str) -> list[dict]:
    """Three seeds of each kind: the MDM's tokens cost `mdm` nats more, and its question tells half as much."""
    rows = []
    for seed in range(3):
        for kind, more, tells, hits in (("MDM", mdm, 1.0, right), ("ARM", 0.0, 2.0, arm_right)):
            tokens = [2 + i % 3 for i in range(len(hits))]
            nats = [n * (1.0 + more) + 0.01 * (i + seed) for i, n in enumerate(tokens)]
            rows.append(
                {"model": kind, "seed": seed, "tokens": tokens, "nats": nats, "bleu": [0.5] * len(hits), "nfe": 3.0}
                | {"other": [a + n * tells for a, n in zip(nats, tokens, strict=True)], "right": hits}
                | {"bound": "exact", "examples": len(hits), "length": 9, "left_out": 0}
            )
    return rows


def test_finetuning_says_what_was_planted():
    finding = Finetuning().find(planted(0.5, "11110" * 40, "11110" * 40))
    assert finding.held == "yes"
    assert re.search(r"by its bound, 0\.50* ± .+ nats more than the ARM", finding.measured)
    assert re.search(r"is worth 1(\.0+)? ± .+ nats a token less to the MDM", finding.measured)
    assert Finetuning().find(planted(0.5, "11000" * 40, "11110" * 40)).held == "no"
    assert Finetuning().find(planted(0.5, "11011" * 8, "11110" * 8)).held == "not shown at this scale"
    none = Finetuning().find(planted(0.5, "0" * 40, "0" * 40))
    assert none.held == "not shown at this scale"
    assert "too few to compare" in none.measured


def test_questions_asked_at_once(tmp_path: Path):
    source = sums(tmp_path / "q.jsonl", 10, 15)
    every = questions_of(source)
    first, second = together(every, 2, source)
    assert (first.turns, first.references) == (("10+3=11+4=",), ("013\n015",))
    assert second.turns == ("12+5=13+6=",)
    assert first.as_text
    often = together(every, 2, source, passes=40)
    assert [question.turns for question in often[:2]] == [first.turns, second.turns]
    assert len(often) == 80
    assert len({question.turns for question in often}) == 20  # each with each other
    with pytest.raises(ValueError, match="5 questions, fewer than 6"):
        together(every, 6, source)


class Weighted(Echo):
    def parameters(self):
        yield torch.zeros(1)


def silent(done: int, total: int, note: str = "") -> None:
    """Nobody is told."""


def test_guidance_of_likelihoods_finds_what_the_prompt_makes_likelier():
    """`Echo` holds 9 likelier than the digit asked, but only the digit depends on the question."""
    questions = [Question(i, (str(i),), False, (str(i),)) for i in range(10)]
    model, setting = Model(Weighted(), BYTES, {}), dataclasses.replace(SETTINGS["tiny"], length=4)
    without = preferred(model, questions, 0.0, setting, Template(), silent)
    assert without[9]
    assert not all(without)
    assert all(preferred(model, questions, 1.0, setting, Template(), silent))


def guided(kind: str, seed: int, weight: float, right: str, measure: str = "1 a step, temperature 0") -> dict:
    return {
        "measure": measure, "training": kind, "seed": seed, "part": "test", "guidance": weight, "right": right,
        "chance": 0.25,
    }  # fmt: skip


def two_seeds(without: str, unsupervised: str, standard: str, measure: str = "1 a step, temperature 0") -> list[dict]:
    rows = []
    for seed in (0, 1):
        for kind, found in (("unsupervised", unsupervised), ("standard", standard)):
            rows += [guided(kind, seed, 0.0, without * 20, measure), guided(kind, seed, 1.0, found * 20, measure)]
    return rows


def test_what_guidance_gains_is_paired_by_question():
    """The weight is the test part's, 0 where no guided row is there."""
    rows = two_seeds("010011", "011011", "010011")
    finding = Guidance().find(rows)
    assert finding.held == "yes"
    assert [row[1:3] for row in finding.tables[0].rows][:2] == [("none", "0"), ("unsupervised", "1, 1")]
    assert finding.tables[0].rows[1][5].startswith("0.167")
    assert Guidance().find([row for row in rows if row["guidance"] == 0]).held == "not shown at this scale"


def test_what_guidance_loses_is_said_and_what_sharper_draws_gain_is_no_gain():
    assert Guidance().find(two_seeds("011011", "010011", "011111")).held == "no"
    sharper = two_seeds("010011", "011011", "010011", "1 a step, temperature 1")
    assert Guidance().find([*sharper, *two_seeds("010011", "010011", "010011")]).held == "not shown at this scale"
    assert Guidance().find([*sharper, *two_seeds("011011", "010011", "011011")]).held == "no"
    sharper = two_seeds("010011", "011011", "010011", "1 a step, temperature 0.9")
    assert Guidance().find([*sharper, *two_seeds("010011", "010011", "010011")]).held == "not shown at this scale"


def test_standard_guidance_is_compared_with_its_own_training():
    """Dropped prompts cost a third of the answers; guidance changes nothing."""
    rows = two_seeds("010011", "010011", "010011")
    rows = [{**row, "right": "010001" * 20} if row["training"] == "standard" else row for row in rows]
    finding = Guidance().find(rows)
    assert finding.held == "not shown at this scale"
    assert "Standard guidance adds 0 ± 0 " in finding.measured


def test_a_model_that_has_not_learnt_shows_nothing():
    """What it answers by chance, and what it chooses by chance, each for itself."""
    answers, choices = two_seeds("000001", "000011", "000001"), partial(two_seeds, measure=LIKELIHOOD)
    finding = Guidance().find([*answers, *choices("000100", "001100", "000100")])
    assert finding.held == "not shown at this scale"
    assert "has not learnt to answer: right in 16.7%" in finding.measured
    assert (
        "has not learnt to choose: it chooses the true answer in 16.7%, where a guess does in 25.0%" in finding.measured
    )
    finding = Guidance().find([*answers, *choices("010011", "011111", "010011")])
    assert finding.held == "yes"
    assert "1 had room" in finding.measured
    assert "to choose" not in finding.measured


def answered(model: str, policy: str, seed: int, turn: int, right: float, seconds: float) -> dict:
    """The same questions are right first, in either half."""
    half = "1" * round(200 * right) + "0" * round(200 * (1 - right))
    return {
        "together": 1, "seed": seed, "model": model, "policy": policy, "turn": turn, "right": 2 * half, "nfe": 4.0,
        "seconds": [seconds, seconds],
    }  # fmt: skip


def both(seed: int, turn: int, arm: tuple[float, float], policy: str, mdm: tuple[float, float]) -> list[dict]:
    right, seconds = mdm  # no two seeds take the same time
    return [
        answered("ARM", "left", seed, turn, *arm),
        answered("MDM", policy, seed, turn, right, seconds * (1 + 0.002 * seed)),
    ]


@pytest.mark.parametrize(
    ("arm", "fast", "said", "held"),
    [
        (
            (0.9, 0.1),
            (0.9, 0.05),
            "is faster than the ARM with its cache, 1.9980 ± 0.0020 times as fast, at equal",
            "yes",
        ),
        (
            (0.9, 0.1),
            (0.9, 0.2),
            "is slower than the ARM with its cache, 0.49950 ± 0.00050 times as fast, at equal",
            "no",
        ),
        ((0.9, 0.1), (0.8, 0.05), "is slower than the ARM with its cache, 0.09", "no"),
        ((0.3, 0.1), (0.9, 0.05), "an ARM has not learnt to answer (right in 30.0%)", None),
    ],
)
def test_the_plain_statement(arm, fast, said, held):
    """The fastest policy among those of equal quality; a worse one counts for nothing, however fast."""
    rows = [{"together": 1, "seed": 0, "trained": True}]
    for seed in (0, 1):
        rows += both(seed, 0, arm, "Confidence(tokens=1)", (0.9, 1.0))
        rows += both(seed, 1, arm, "Confidence(tokens=4)", fast)
    sentence, verdict = exact_compared(exact_ways(rows), 1, 1)
    assert said in sentence
    assert verdict == held


def test_times_are_compared_within_a_turn():
    """The machine is ten times slower in the second turn, for both: what is faster there is the fastest."""
    rows = both(0, 0, (0.9, 0.1), "a", (0.9, 0.2)) + both(0, 1, (0.9, 1.0), "b", (0.9, 0.5))
    assert [way.faster.value for way in exact_ways(rows) if way.model == "MDM"] == [0.5, 2.0]
    assert "MDM (b, the fastest" in exact_compared(exact_ways(rows), 1, 1)[0]


def test_the_fastest_is_chosen_and_timed_on_different_questions():
    rows = [*both(0, 0, (0.9, 0.1), "a", (0.9, 0.05)), *both(0, 1, (0.9, 0.1), "b", (0.9, 0.05))]
    rows[1]["seconds"], rows[3]["seconds"] = [0.05, 0.02], [0.02, 0.05]
    told, _ = exact_compared(exact_ways(rows), 1, 1)
    assert "MDM (b, the fastest of those surely as often right as the ARM (to 2 points) on the first half" in told
    assert "2.000 times as fast" in told


def test_a_policy_chosen_by_luck_is_measured_on_other_questions():
    """Right by chance in the first half, where it was chosen, it is not of equal quality in the second."""
    rows = both(0, 0, (0.9, 0.1), "lucky", (0.9, 0.01)) + both(1, 0, (0.9, 0.1), "lucky", (0.9, 0.01))
    for row in rows:
        if row["model"] == "MDM":
            row["right"] = row["right"][:200] + "1" * 160 + "0" * 40
    sentence, verdict = exact_compared(exact_ways(rows), 1, 1)
    assert "not surely equal: it is right in 80.0% of the second (−10.0" in sentence
    assert verdict == "not shown at this scale"


def test_a_seed_that_has_not_learnt_is_no_evidence():
    rows = both(0, 0, (0.9, 0.1), "a", (0.9, 0.2)) + both(1, 0, (0.9, 0.1), "a", (0.2, 0.2))
    sentence, verdict = exact_compared(exact_ways(rows), 1, 1)
    assert "an MDM has not learnt to answer (right in 20.0%)" in sentence
    assert verdict is None


def test_several_measures_and_lengths():
    """A measure that has nothing to say does not count, one that does not know does; one length is enough for a yes."""
    held = [("yes", "no"), (UNKNOWN, "no"), (UNKNOWN, "yes"), (None, "yes"), (None, None), ("yes", "yes")]
    assert [together_held([each]) for each in held] == ["no", "no", UNKNOWN, "yes", UNKNOWN, "yes"]
    assert [together_held([("no",), each]) for each in held] == ["no", "no", UNKNOWN, "yes", "no", "yes"]


def test_no_policy_may_be_as_good():
    """Which says nothing of one that is trained longer."""
    rows = both(0, 0, (0.9, 1.0), "b", (0.6, 0.1))
    sentence, verdict = exact_compared(exact_ways(rows), 1, 1)
    assert "no policy is surely as often right" in sentence
    assert "the best, b, is right in 60.0% of the second (−30.0" in sentence
    assert verdict == UNKNOWN


def test_as_good_by_chance_is_not_chosen():
    """Right as often where it was to be chosen, but in eight answers."""
    rows = [row | {"right": "1" * 16} for row in both(0, 0, (1.0, 0.1), "b", (1.0, 0.05))]
    assert "no policy is surely as often right" in exact_compared(exact_ways(rows), 1, 1)[0]


def test_what_is_timed_again_is_timed_there():
    """The fastest is the one of the turn in which all were asked, how fast it is that of those after it."""
    rows = both(0, 0, (0.9, 0.1), "a", (0.9, 0.01)) + both(0, 1, (0.9, 0.1), "b", (0.9, 0.05))
    for turn, seconds in ((2, 0.06), (3, 0.05), (4, 0.04)):
        rows += [
            {name: row[name] for name in row if name != "right"} for row in both(0, turn, (1, 0.1), "a", (1, seconds))
        ]
    sentence, _ = exact_compared(exact_ways(rows), 1, 1)
    assert "MDM (a, the fastest" in sentence
    assert ", 2.000 times as fast" in sentence


def test_a_few_answers_of_which_none_is_worse_are_not_surely_as_good():
    rows = [row | {"right": "1" * 8} for seed in (0, 1) for row in both(seed, 0, (0.9, 0.1), "a", (0.9, 0.05))]
    assert exact_compared(exact_ways(rows), 1, 1)[1] == UNKNOWN
    rows = [row | {"right": "1" * 400} for row in rows]
    assert exact_compared(exact_ways(rows), 1, 1)[1] == "yes"
    sentence, verdict = exact_compared(exact_ways(rows[:2]), 1, 1)  # one seed's time is no evidence
    assert "is not surely faster or slower than the ARM" in sentence
    assert verdict == UNKNOWN
