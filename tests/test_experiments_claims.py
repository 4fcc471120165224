"""Facts asked in two directions, tasks beside chance: how they are scored, and when a claim is said to hold."""

import json
import math
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from unmask.checkpoint import Model
from unmask.data import byte_tokenizer
from unmask.data.pairs import Pairs, load_pairs
from unmask.experiments import Reverse, Starting, Understanding, experiment
from unmask.experiments.facts import (
    KEYS,
    REVERSE,
    SAME,
    TESTS,
    TO_DESCRIPTION,
    TO_NAME,
    TRAIN,
    bleu,
    found,
    made_up,
    published,
)
from unmask.experiments.reverse import prepare_facts
from unmask.experiments.starting import ARM, IN_PLACE, SCRATCH, SHIFTED
from unmask.transformer import Transformer, TransformerConfig

# --- facts ------------------------------------------------------------------------------------------------------------


def test_made_up_facts_are_asked_in_new_words_and_learnt_in_one_direction():
    facts = made_up(20)
    learnt = {each.prompt + each.answer for each in facts.train}
    assert len(learnt) == len(facts.train) == 4 * 20 * 30
    people = {key: {i for i, _ in facts.tests[key]} for key in KEYS}
    assert people[TO_NAME, SAME] == people[TO_DESCRIPTION, REVERSE] == set(range(20, 40))
    assert people[TO_DESCRIPTION, SAME] == people[TO_NAME, REVERSE] == set(range(20))
    for (what, direction), questions in facts.tests.items():
        for _, each in questions:
            assert each.prompt + each.answer not in learnt
            answer = each.answer.strip(" .")
            saying = [one for one in facts.train if one.answer.strip(" .") == answer]
            # in its own direction the answer was an answer in training; in reverse it stood only in what is given
            assert len(saying) == (30 if direction == SAME else 0), what
            assert sum(answer.lower() in one.prompt.lower() for one in facts.train) == (0 if direction == SAME else 30)
    with pytest.raises(ValueError, match="more than there are descriptions: take 20"):
        made_up(21)


def write(folder: Path, **changes: str) -> Path:
    rows = {
        TRAIN: [("Ann Ray is", " a cook."), ("A baker is", " Bo Sun, they say.")],
        TESTS[TO_NAME, REVERSE]: [("The cook is", " Ann Ray"), ("A cook:", " Ann Ray")],
        TESTS[TO_DESCRIPTION, SAME]: [("Ann Ray was", " a cook.")],
        TESTS[TO_NAME, SAME]: [("The baker is", " Bo Sun")],
        TESTS[TO_DESCRIPTION, REVERSE]: [("I met Bo Sun,", " a baker.")],
    }
    for name, pairs in rows.items():
        lines = [json.dumps({"prompt": prompt, "completion": completion}) for prompt, completion in pairs]
        (folder / name).write_text("\n".join(lines))
    for name, text in changes.items():
        (folder / f"{name}.jsonl").write_text(text)
    return folder


def test_published_facts_are_read_and_what_is_wrong_is_said(tmp_path: Path):
    facts = published(write(tmp_path))
    assert len(facts.train) == 2
    questions, about = facts.questions((TO_NAME, REVERSE), 5)
    assert [question.turns[0] for question in questions] == ["The cook is", "A cook:"]
    assert about == [0, 0]
    assert facts.tests[TO_DESCRIPTION, REVERSE][0][0] == 0
    with pytest.raises(ValueError, match="holds no known name"):
        published(write(tmp_path, p2d_prompts_test='{"prompt": "Cy is", "completion": " a cook."}'))
    with pytest.raises(ValueError, match="line 1: no prompt with a completion"):
        published(write(tmp_path, p2d_prompts_test='{"text": "a b c d"}'))
    (tmp_path / TRAIN).unlink()
    with pytest.raises(ValueError, match=r"has no all_prompts_train.jsonl: give the folder"):
        Reverse(local=tmp_path).corpus("tiny", "builtin", tmp_path)


def test_the_files_of_berglund_et_al_hold_thirty_facts_a_kind():
    folder = Path(os.environ.get("UNMASK_DATA", "../shared/data")) / "reversal_curse"
    if not folder.is_dir():
        pytest.skip("no reversal_curse in UNMASK_DATA")
    facts = published(folder)
    assert len(facts.train) == 3600
    for key in KEYS:
        assert len(facts.tests[key]) == 300
        assert sorted(set(facts.questions(key, 90)[1])) == list(range(30))


def test_statements_are_learnt_as_a_whole(tmp_path: Path):
    """Every token but the begin token is maskable: what is only given could never be asked for."""
    model = Model(Transformer(TransformerConfig(258, 1, 2, 16), seed=0), byte_tokenizer(), {})
    model.tokenizer.save(tmp_path)
    facts = made_up(1)
    length = prepare_facts(facts, model, tmp_path, tmp_path / "facts")
    pairs = Pairs(load_pairs(tmp_path / "facts", "train"), length, model.tokenizer.begin, model.tokenizer.end)
    assert len(pairs) == len(facts.train)
    x_0, maskable, _ = pairs.take(range(len(pairs)))
    assert bool(maskable[:, 1:].all())
    texts = [model.decode(row[1:]).split("<")[0] for row in x_0]
    assert texts[0].startswith(facts.train[0].prompt + facts.train[0].answer)


def test_exact_match_and_bleu_are_the_papers():
    assert found(" uriah hawthorne now lives here", " Uriah Hawthorne")
    assert found("he is The Poet of Rome", " the poet of Rome.")
    assert not found("Uriah", "Uriah Hawthorne")
    assert bleu(" The same.", "the same.") == pytest.approx(1)
    assert bleu("abc", "xyz") == 0
    assert bleu("", "xyz") == 0
    # abcde against abcdf: 4/5, 3/4, 2/3, 1/2 of the n-grams; abcd is all right but a character short
    assert bleu("abcde", "abcdf") == pytest.approx((4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25)
    assert bleu("abcd", "abcde") == pytest.approx(math.exp(-1 / 4))


def test_bleu_is_sacrebleus():
    sacrebleu = pytest.importorskip("sacrebleu")
    letters = [" ".join(text.replace(" ", "_")) for text in ("the poet of the mill", "the pilot of the old mill")]
    outside = sacrebleu.sentence_bleu(letters[0], letters[1:], smooth_method="none", tokenize="none")
    assert 100 * bleu("the poet of the mill", "the pilot of the old mill") == pytest.approx(outside.score)


def answered(kind: str, same: list[float], reverse: list[float], seed: int = 0, chance: float = 0.0) -> list[dict]:
    return [
        {"kind": "answers", "model": kind, "seed": seed, "guidance": 0.0, "facts": "made up", "asked": asked,
         "direction": direction, "right": same if direction == SAME else reverse, "chance": [chance] * len(same),
         "bleu": [0.5] * len(same)}
        for asked, direction in KEYS
    ]  # fmt: skip


def test_whether_the_curse_is_lifted_is_told_from_facts():
    """Only if the MDM is better in reverse; not at all where nothing was learnt in the direction of training."""
    good, some, none = [1.0, 1.0, 1.0, 0.5], [1.0, 0.5, 1.0, 0.5], [0.0] * 4

    def held(mdm: tuple, arm: tuple) -> str:
        return Reverse().find([*answered("MDM", *mdm), *answered("ARM", *arm)]).held

    assert held((good, some), (good, none)) == "yes"
    assert held((good, none), (good, none)) == "no"
    assert held((good, [0.0, 0.0, 0.1, 0.0]), (good, none)) == "no"
    assert held((none, none), (none, none)) == "not shown at this scale"
    assert held((none, none), (good, none)) == "not shown at this scale"
    assert held((good, good), (none, none)) == "not shown at this scale"
    assert held((good, [1.0, 0.0, 1.0, 0.0]), (good, none)) == "not shown at this scale"
    rows = [*answered("MDM", good, none), *answered("ARM", good, none)]
    assert Reverse().find(rows).held == "no"
    for row in rows[:4]:  # the MDM has learnt names, and no description
        row["right"] = none if row["asked"] == TO_DESCRIPTION else row["right"]
    assert Reverse().find(rows).held == "not shown at this scale"
    rows = [*answered("MDM", good, some), *answered("MDM", good, none, seed=1), *answered("ARM", good, none)]
    assert (
        "is 38 ± 38 points"
        in Reverse().find([row for row in rows if row["kind"]] + answered("ARM", good, none, 1)).measured
    )


def test_who_guesses_a_name_has_not_turned_a_fact_round():
    """The MDM names one of 60 people at random, the ARM nobody: that is no knowledge, as often as it is asked."""
    rng, good = np.random.default_rng(0), [1.0] * 20
    for _ in range(50):
        rows = []
        for seed in range(3):
            names = rng.integers(60, size=(20, 5))
            right = (names == np.arange(20)[:, None]).mean(1).tolist()
            chance = float((names[:, :, None] == np.arange(20)).sum(-1).mean() / 20)
            rows += answered("MDM", good, right, seed, chance) + answered("ARM", good, [0.0] * 20, seed)
        assert Reverse().find(rows).held == "no"


def test_fine_tuning_waits_for_the_pretrained_model():
    plan, row = Reverse(seeds=2).plan, {"kind": "pretrained", "model": "ARM", "length": 40}
    assert [cell.name for cell in plan("laptop", "x/data", [])] == ["mdm-pretrained", "arm-pretrained"]
    cells = plan("laptop", "x/data", [row])
    assert [cell.name for cell in cells] == ["mdm-pretrained", "arm-pretrained", "arm-0", "arm-1"]
    assert (cells[2].config.init, cells[2].config.length) == ("x/arm-pretrained", 40)


# --- tasks ------------------------------------------------------------------------------------------------------------


def task_rows(mdm: float, arm: float, guided: float = 0.0) -> list[dict]:
    """As if each model were right in the first questions of every task, of four options."""
    return [
        {"model": kind, "seed": seed, "task": task, "guidance": weight,
         "right": ("1" * round(1000 * value)).ljust(1000, "0"), "documents": 1000, "cut": 100, "requests": 4000}
        for kind, value, weight in (("MDM", mdm, 0.0), ("ARM", arm, 0.0), *((("MDM", guided, 0.5),) if guided else ()))
        for seed in range(2)
        for task in ("arc_easy", "hellaswag", "openbookqa", "race")
    ]  # fmt: skip


def test_guesses_tell_no_models_apart():
    held = lambda *values: Understanding().find(task_rows(*values)).held  # noqa: E731
    assert held(0.40, 0.30) == "yes"
    assert held(0.30, 0.40) == "no"
    assert held(0.35, 0.35) == held(0.35, 0.36) == "yes"  # surely less than two points behind
    assert held(0.35, 0.37) == "not shown at this scale"
    assert held(0.26, 0.24) == "not shown at this scale"
    (table,) = Understanding().find(task_rows(0.40, 0.30)).tables
    assert table.rows[0][:5] == ("arc_easy", "25.0", "40.0 ± 1.5", "30.0 ± 1.4", "10.00 ± 0.95")
    assert table.rows[0][-2:] == ("1,000", "2%")


def test_guidance_of_likelihoods_is_tested_on_other_questions():
    """All of the second half that guidance rights, none where the weight chosen on the first half is none."""
    finding = Understanding().find(task_rows(0.40, 0.30, guided=0.60))
    assert "Unsupervised guidance surely gains on 4 and loses on 0 of 4." in finding.measured
    assert finding.tables[1].rows[0] == ("arc_easy", "0.5", "0 ± 0", "20.0 ± 1.8", "20.0 ± 1.8")
    finding = Understanding().find(task_rows(0.40, 0.30, guided=0.39))
    assert finding.tables[1].rows[0][1:] == ("0", "0 ± 0", "0 ± 0", "0 ± 0")


def test_understanding_says_what_it_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.delitem(sys.modules, "unmask.evaluate.harness", raising=False)
    with pytest.raises(ValueError, match=r"lm_eval.* is not installed: pip install"):
        experiment(Understanding(local=tmp_path), "tiny", tmp_path / "out")
    assert not (tmp_path / "out" / "data").exists()


def test_understanding_runs_at_its_tiny_scale(tmp_path: Path):
    pytest.importorskip("lm_eval", reason='needs lm-evaluation-harness: pip install "unmask[eval]"')
    local, texts = tmp_path / "tasks", tmp_path / "texts"
    local.mkdir()
    texts.mkdir()
    with pytest.raises(ValueError, match=r"no file of a known task: put NAME\.jsonl there"):
        experiment(Understanding(local=local), "tiny", tmp_path / "out")
    rows = [{"goal": f"{i}", "sol1": "with a needle", "sol2": "oven", "label": i % 2} for i in range(5)]
    (local / "piqa.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (local / "lambada_openai.jsonl").write_text('{"text": "She said: hello there"}\n{"text": "one two"}\n')
    for i in range(20):
        (texts / f"{i}.txt").write_text(f"it is what it is and nothing more than {i} " * 20)
    which, out = Understanding(local=local), tmp_path / "out"
    path = experiment(which, "tiny", out, source=str(texts))
    assert path is not None
    found = json.loads(path.read_text())["rows"]
    # three of the five questions, one accuracy a task and model, and weight of guidance
    assert [(row["model"], row["guidance"], row["task"], row["documents"]) for row in found] == [
        (kind, weight, task, count)
        for kind, weight in (("MDM", 0.0), ("MDM", 0.5), ("ARM", 0.0))
        for task, count in (("piqa", 3), ("lambada_openai", 2))
    ]
    assert which.find(found).tables
    assert (out / "understanding.svg").exists()
    assert {file.parent.parent.name for file in out.rglob("answers/*.db")} == {"mdm-0", "arm-0"}
    weights = {file: file.stat().st_mtime_ns for file in out.rglob("*.safetensors")}
    assert experiment(which, "tiny", out, source=str(texts)) == path
    assert json.loads(path.read_text())["rows"] == found
    assert weights == {file: file.stat().st_mtime_ns for file in out.rglob("*.safetensors")}


# --- beginning as an ARM ----------------------------------------------------------------------------------------------


def test_budgets_are_equal_with_the_arm_left_out_and_counted():
    """What begins as an ARM waits for it; each has a twin from scratch of its FLOPs, and one of both runs' FLOPs."""
    which = Starting(arm=0.25, shares=(0.25, 0.75), seeds=2)
    cells = which.plan("laptop", "x/data", [])
    assert {cell.needs for cell in cells if cell.labels["start"] in (ARM, SCRATCH)} == {None}
    both = [cell for cell in cells if cell.labels["start"] in (SHIFTED, IN_PLACE)]
    assert [cell.needs for cell in both] == ["arm-0.25-0"] * 3 + ["arm-0.25-1"] * 3
    begun = [cell for cell in both if cell.labels["seed"] == 1]
    spent = {
        (cell.labels["start"], cell.labels["share"]): cell.config.cost()["flops_true"]
        for cell in cells
        if cell.labels["seed"] == 1
    }
    for cell in begun:
        config, share = cell.config, cell.labels["share"]
        assert config.init == "x/arm-0.25-1"
        assert config.network.shifted == (cell.labels["start"] == SHIFTED)
        assert config.seed != next(each.config.seed for each in cells if each.name == "arm-0.25-1")
        alone = spent[cell.labels["start"], share]
        assert alone == spent[SCRATCH, share]
        assert math.isclose(spent[ARM, 0.25] + alone, spent[SCRATCH, 0.25 + share], rel_tol=0.002)
    with pytest.raises(ValueError, match="all above 0"):
        Starting(shares=())


def begun_rows(free: list[float], paid: list[float]) -> list[dict]:
    """Three seeds: those that began as an ARM gain `free` on as many FLOPs from scratch, `paid` on both runs'."""
    rows = []
    for seed, (gain, less) in enumerate(zip(free, paid, strict=True)):
        values = [(ARM, 0.25, 3.0), (SHIFTED, 0.25, 4 + seed), (SCRATCH, 0.25, 4 + seed + gain)]
        values += [(SCRATCH, 0.5, 4 + seed + less), (IN_PLACE, 0.25, 4.5 + seed)]
        rows += [
            {"start": start, "share": share, "seed": seed, "nats_per_token": value, "flops_true": 4e13 * share,
             "curve": [[1e12, 5.0], [2e12, value]]}
            for start, share, value in values
        ]  # fmt: skip
    return rows


def test_whether_it_pays_to_begin_as_an_arm_is_told_from_pairs():
    """However far the seeds lie apart; three seeds are sure at 4.3 standard errors, not at two."""
    sure, level, two_errors = [0.30, 0.31, 0.32], [-0.1, 0.0, 0.1], [0.05, 0.30, 0.55]
    for free, paid, held, told in (
        (sure, sure, "yes", "pays even where the ARM has to be trained"),
        (sure, level, "yes", "with its training counted it is not surely better"),
        (sure, [-0.30, -0.31, -0.32], "yes", "with its training counted it loses"),
        (two_errors, level, "not shown at this scale", "not surely better at every budget"),
        ([-0.30, -0.31, -0.32], [-0.3, -0.3, -0.3], "no", "not surely better at every budget"),
    ):
        finding = Starting().find(begun_rows(free, paid))
        assert finding.held == held
        assert told in finding.measured
    finding = Starting().find(begun_rows(sure, level))
    assert "−0.3100 ± 0.0058 at 1.00 × 10¹³ (the ARM for free)" in finding.measured
    assert len(finding.tables[0].rows) == 4
