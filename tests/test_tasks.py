"""lm-evaluation-harness on local files in every layout, against direct calls with the prompts spelled out here."""

import importlib
import json
import math
import os
import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hubs import as_cache, offline_hub

from unmask.checkpoint import CONFIG, MODEL, Model, convert, describe
from unmask.checkpoint.tensors import write_published
from unmask.cli import main
from unmask.data import Packed, byte_tokenizer, load_split, prepare
from unmask.evaluate.scoring import number_of
from unmask.evaluate.tasks import TASKS, local_rows, table
from unmask.files import write_json
from unmask.likelihood import log_likelihood, ordered_log_likelihood
from unmask.sampling import Confidence, Draw, LeftToRight, draw_plan, sample
from unmask.transformer import Transformer, TransformerConfig

pytest.importorskip("lm_eval", reason='needs lm-evaluation-harness: pip install "unmask[eval]"')
import datasets
import lm_eval.tasks
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model

from unmask.evaluate.harness import Harness, _rows, evaluate_tasks

BYTES = byte_tokenizer()
LENGTH = 96  # the long prompts below do not fit


def random_model(causal: bool) -> Model:
    config = TransformerConfig(vocab=BYTES.vocab, layers=1, heads=2, width=32, causal=causal)
    network = Transformer(config, seed=1).double().eval().requires_grad_(False)
    return Model(network, BYTES, {"name": "random", "requested": {"length": LENGTH}})


@pytest.fixture(scope="module")
def mdm() -> Model:
    return random_model(causal=False)


@pytest.fixture(scope="module")
def arm() -> Model:
    return random_model(causal=True)


def instruction(asked: str, options: list[str], answer: int) -> dict[str, str]:
    numbered = " ".join(f"Answer{i + 1}: {option}" for i, option in enumerate(options))
    text = f"Please choose the correct answer to the question: {asked}\n\n{numbered}\n\nAnswer format: answer1/…"
    return {
        "instruction": text,
        "input": "",
        "output": f"the correct answer is answer{answer}",
        "answer": f"answer{answer}",
    }


def jsonl(rows: list) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


FILES = {
    "multiple_choice/ARC-Easy.test.json": json.dumps(
        [
            instruction("What is wet?", ["water", "fire", "a dry stone", "sand"], 1),
            instruction("Which?", ["a", "b c d"], 2),
        ]
    ),
    "multiple_choice/social_i_qa.test.json": json.dumps(
        [instruction("Al fell. Why?", ["he ran", "he slept", "no one knows"], 3)]
    ),
    "boolq/validation.jsonl": jsonl(
        [
            {
                "prompt": "passage: It is blue.\nquestion: {}",
                "subject": "is it blue",
                "target_new": {"str": "True"},
            },
            {"prompt": f"passage: {'Long. ' * 40}\nquestion: {{}}", "subject": "is it", "target_new": {"str": "False"}},
        ]
    ),
    "hellaswag/hellaswag_val_full.txt": "Roofing: A man is on a roof. he\n3\nsleeps.\nfalls down.\nis ok.\nstarts.\n"
    "Cooking: She\n0\ncooks.\nruns far away.\nis.\nwas.\n",
    "openbookqa/test.tsv": "ID\tQuestion Stem\tChoices\tComplete Question\tAnswer Key\n"
    "8-1\tPredators eat\t(A) lions (B) humans (C) bunnies (D) grass (dry)\tall\tC\n",
    "piqa/valid.jsonl": jsonl(
        [{"goal": "Sew", "sol1": "with a needle", "sol2": "oven"}, {"goal": "Eat", "sol1": "x" * 130, "sol2": "spoon"}]
    ),
    "piqa/valid-labels.lst": "0\n1\n",
    "lambada/lambada_test.jsonl": jsonl([{"text": 'She said:\n\n"Hello there, Shane'}, {"text": "one two"}]),
    # the hub's own columns, in a file named after the task
    "race.jsonl": jsonl(
        [
            {
                "article": "Tom is tall.",
                "problems": str(
                    [
                        {"question": "How is Tom?", "answer": "B", "options": ["small", "tall", "old", "new"]},
                        {"question": "Tom is   _  .", "answer": "A", "options": ["tall", "wide", "far", "near"]},
                        {"question": "Who?", "answer": "D", "options": ["Al", "Ben", "Cy", "Tom"]},
                    ]
                ),
            }
        ]
    ),
}

# task -> (prompt, options, right one), spelled out by hand
QUESTIONS = {
    "arc_easy": [
        ("Question: What is wet?\nAnswer:", ["water", "fire", "a dry stone", "sand"], 0),
        ("Question: Which?\nAnswer:", ["a", "b c d"], 1),
    ],
    "boolq": [
        ("It is blue.\nQuestion: is it blue?\nAnswer:", ["no", "yes"], 1),
        (f"{'Long. ' * 40}\nQuestion: is it?\nAnswer:", ["no", "yes"], 0),
    ],
    "hellaswag": [
        ("Roofing: A man is on a roof. he", ["sleeps.", "falls down.", "is ok.", "starts."], 3),
        ("Cooking: She", ["cooks.", "runs far away.", "is.", "was."], 0),
    ],
    "openbookqa": [("Predators eat", ["lions", "humans", "bunnies", "grass (dry)"], 2)],
    "piqa": [
        ("Question: Sew\nAnswer:", ["with a needle", "oven"], 0),
        ("Question: Eat\nAnswer:", ["x" * 130, "spoon"], 1),
    ],
    "race": [
        (
            "Article: Tom is tall.\n\nQuestion: How is Tom?\nAnswer: tall\nTom is  tall\nWho?",
            ["Al", "Ben", "Cy", "Tom"],
            3,
        )
    ],
    "social_iqa": [("Q: Al fell. Why?\nA:", ["he ran", "he slept", "no one knows"], 2)],
    "lambada_openai": [('She said:\n\n"Hello there,', ["Shane"], 0), ("one", ["two"], 0)],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("local")
    for name, text in FILES.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    return root


def nats(model: Model, given: bytes, answer: bytes, number: int, estimator: str, draws: int) -> float:
    x_0 = torch.tensor([[BYTES.begin, *given, *answer]])
    maskable = torch.arange(x_0.shape[1])[None] > len(given)
    if estimator == "chain" or model.causal:
        return ordered_log_likelihood(model, x_0, draw_plan(LeftToRight(), maskable)).nats
    return log_likelihood(model, x_0, maskable, draws=draws, sequences=[number]).nats


def direct(model: Model, task: str, i: int, prompt: str, option: str, estimator: str, draws: int) -> float:
    """log p of one option by calls of our own; bytes are tokens, so cutting is slicing."""
    context, answer = prompt.encode(), f" {option}".encode()
    if len(answer) <= LENGTH:
        given = context[max(0, len(context) + len(answer) - LENGTH) :]
        return -nats(model, given, answer, number_of((task, i), 0), estimator, draws)
    whole, half, total = context + answer, LENGTH // 2, 0.0
    for j, at in enumerate(range(len(context), len(whole), half)):
        total -= nats(
            model, whole[max(0, at - half) : at], whole[at : at + half], number_of((task, i), j), estimator, draws
        )
    return total


def writes(model: Model, prompt: str, option: str) -> bool:
    """Whether the sampler, greedily, writes the option behind the prompt."""
    answer = f" {option}".encode()
    canvas = torch.tensor([BYTES.begin, *prompt.encode(), *[model.mask_id] * len(answer)])
    policy = LeftToRight() if model.causal else Confidence()
    return sample(model, [canvas], policy, draw=Draw(temperature=0)).tokens[0].tolist()[-len(answer) :] == list(answer)


def best(scores: list[float]) -> int:
    return max(range(len(scores)), key=scores.__getitem__)


@pytest.mark.parametrize(("kind", "estimator"), [("mdm", "bound"), ("mdm", "chain"), ("arm", "bound")])
def test_local_files_give_what_direct_calls_give(kind, estimator, folder, request):
    """Every task: accuracy, its length-normalised form, perplexity, greedy match; MDM by both estimators, and ARM."""
    model, draws = request.getfixturevalue(kind), 8
    rows = evaluate_tasks(Harness(model, estimator=estimator, draws=draws), local=folder)
    found = {(row["task"], row["metric"]): row for row in rows}
    assert {task for task, _ in found} == set(TASKS) == set(QUESTIONS)
    for task, questions in QUESTIONS.items():
        scores = [
            [direct(model, task, i, prompt, option, estimator, draws) for option in options]
            for i, (prompt, options, _) in enumerate(questions)
        ]
        right = [answer for _, _, answer in questions]
        if task == "lambada_openai":
            hits = [writes(model, prompt, option) for prompt, (option,), _ in questions]
            truth = {"acc": hits, "perplexity": [math.exp(-sum(s[0] for s in scores) / len(scores))]}
        else:
            plain = [best(some) == answer for some, answer in zip(scores, right, strict=True)]
            lengths = [[len(option) for option in options] for _, options, _ in questions]
            normed = [[s / n for s, n in zip(*pair, strict=True)] for pair in zip(scores, lengths, strict=True)]
            truth = {
                "acc": plain,
                "acc_norm": [best(some) == answer for some, answer in zip(normed, right, strict=True)],
            }
        metrics = {metric for other, metric in found if other == task}
        assert metrics == (truth.keys() if task in WITH_NORM else {"acc"})
        for metric in metrics:
            row = found[task, metric]
            assert row["value"] == pytest.approx(sum(truth[metric]) / len(truth[metric]), rel=1e-9)
            assert row["documents"] == len(questions)
            assert row["requests"] == sum(len(options) for _, options, _ in questions)
            assert (row["stderr_mc"] > 0) == (kind == "mdm" and estimator == "bound")
    assert found["boolq", "acc"]["cut"] == 2
    assert found["piqa", "acc"]["cut"] == 1
    assert found["hellaswag", "acc"]["cut"] == 0


WITH_NORM = ("arc_easy", "hellaswag", "openbookqa", "piqa", "lambada_openai")


def test_the_table_shows_what_was_published_only_where_it_is_known(folder, arm):
    text = table(evaluate_tasks(Harness(arm), local=folder))
    lines = {line.split()[0]: line for line in text.splitlines()}
    assert lines["openbookqa"].endswith("27.0    34.2")
    assert lines["lambada_openai"].endswith("36.0    41.0")
    assert lines["race"].endswith("0.00   0%")
    assert len(lines) == 9


def instance(kind: str, *args: object, number: int = 0) -> Instance:
    return Instance(kind, {}, args, 0, ("some task", number, 1))


@pytest.mark.parametrize("kind", ["mdm", "arm"])
def test_rolling_is_the_block_protocol_of_evaluate_perplexity(kind, request, tmp_path):
    """On a text of one document: the blocks that `Packed` cuts, scored by log_likelihood; its end token left out."""
    model = request.getfixturevalue(kind)
    text = "A text that is longer than one block of the model. " * 5
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    (tmp_path / "b.txt").write_text("other", encoding="utf-8")
    split = load_split(prepare(str(tmp_path), tmp_path / "d", tokenizer="bytes", validation=0.4), "train")
    if split.tokens[0] != ord("A"):
        split = load_split(tmp_path / "d", "validation")
    blocks = Packed(split, LENGTH, BYTES.begin)
    x_0, maskable, _ = blocks.take(range(len(blocks)))
    maskable &= x_0 != BYTES.end
    numbers = [number_of(("some task", 4), j) for j in range(len(blocks))]
    # the last block's filling is not part of the text: score it without
    last = int(maskable[-1].sum()) + 1
    truth = -log_likelihood(model, x_0[:-1], maskable[:-1], draws=8, sequences=numbers[:-1]).nats
    truth -= log_likelihood(model, x_0[-1:, :last], maskable[-1:, :last], draws=8, sequences=numbers[-1:]).nats
    harness = Harness(model, draws=8)
    requests = [instance("loglikelihood_rolling", text, number=4), instance("loglikelihood_rolling", "")]
    assert harness.loglikelihood_rolling(requests) == pytest.approx([truth, 0.0], abs=1e-9)
    note = harness.noted("loglikelihood_rolling", (text,))
    assert note is not None
    assert (note.stderr > 0) == (kind == "mdm")
    assert note.bound == ("upper bound" if kind == "mdm" else "exact")
    assert note.cut


def test_an_empty_context_is_the_begin_token(mdm):
    request = instance("loglikelihood", "", "abc")
    truth = -nats(mdm, b"", b"abc", number_of(("some task", 0), 0), "bound", 8)
    assert Harness(mdm, draws=8).loglikelihood([request])[0][0] == pytest.approx(truth, abs=1e-9)


@pytest.mark.parametrize("kind", ["mdm", "arm"])
def test_generate_until_stops_and_is_greedy(kind, request):
    model = request.getfixturevalue(kind)
    harness = Harness(model)
    settings = {"until": ["\n\n"], "max_gen_toks": 6, "do_sample": False}
    prompts = ["one", "a longer one", "x" * 200]
    texts = harness.generate_until([instance("generate_until", prompt, settings) for prompt in prompts])
    for prompt, text in zip(prompts, texts, strict=True):
        seen = list(prompt.encode())[-(LENGTH - 6) :]
        canvas = torch.tensor([BYTES.begin, *seen, *[model.mask_id] * 6])
        policy = LeftToRight() if model.causal else Confidence()
        tokens = sample(model, [canvas], policy, draw=Draw(temperature=0)).tokens[0].tolist()[1 + len(seen) :]
        tokens = tokens[: tokens.index(BYTES.end)] if BYTES.end in tokens else tokens
        assert text == BYTES.decode([*prompt.encode(), *tokens])[len(prompt) :].split("\n\n")[0]
    with pytest.raises(ValueError, match="num_beams"):
        harness.generate_until([instance("generate_until", "a", {**settings, "num_beams": 4})])


class Killed(Exception):
    """The run ends here."""


def test_a_killed_run_goes_on_from_its_cache(mdm, folder, tmp_path):
    whole = evaluate_tasks(Harness(mdm, draws=8), local=folder)
    answered = []

    def kill(done: int, total: int) -> None:
        answered.append((done, total))
        if done > total // 2:
            raise Killed

    with pytest.raises(Killed):
        evaluate_tasks(Harness(mdm, draws=8, tokens=100, progress=kill), local=folder, cache=tmp_path)
    left = []
    harness = Harness(mdm, draws=8, progress=lambda done, total: left.append(total))
    for row, truth in zip(evaluate_tasks(harness, local=folder, cache=tmp_path), whole, strict=True):
        numbers = {name: pytest.approx(truth[name], nan_ok=True) for name in ("value", "stderr", "stderr_mc")}
        assert row == {**truth, **numbers}
    assert left[0] <= answered[-1][1] - answered[-2][0]
    # another seed is another question: nothing of it is in the cache
    fresh = []
    harness = Harness(mdm, draws=8, seed=1, progress=lambda done, total: fresh.append(total))
    for cache in (None, tmp_path):
        evaluate_tasks(harness, ["piqa"], local=folder, cache=cache)
    assert len(set(fresh)) == 1


def test_limit_takes_the_first_questions(arm, folder):
    rows = evaluate_tasks(Harness(arm), ["piqa", "hellaswag"], local=folder, limit=1)
    assert {row["documents"] for row in rows} == {1}


def test_the_harness_knows_the_model_by_name(arm, monkeypatch):
    monkeypatch.setattr("unmask.evaluate.harness.load", lambda path, **_: arm)
    assert get_model("unmask") is Harness
    # as `lm-eval run --model unmask --model_args …` makes it
    made = Harness.create_from_arg_string("checkpoint=runs/tiny,draws=8,estimator=chain", {"batch_size": 4})
    assert (made.scorer.draws, made.scorer.estimator, made.length) == (8, "chain", LENGTH)
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    module, name = re.search(r'"lm_eval.models"\]\nunmask = "([\w.]+):(\w+)"', text).groups()
    assert getattr(importlib.import_module(module), name) is Harness


def test_what_cannot_be_run_is_refused_in_one_line(mdm, folder, tmp_path, monkeypatch):
    harness = Harness(mdm)
    # reading all of the harness's tasks takes seconds
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", partial(lm_eval.tasks.TaskManager, include_defaults=False))
    with pytest.raises(ValueError, match="no task 'nonsense'"):
        evaluate_tasks(harness, ["nonsense"], local=folder)
    with pytest.raises(ValueError, match=r"has no piqa\.jsonl"):
        evaluate_tasks(harness, ["piqa"], local=tmp_path)
    with pytest.raises(ValueError, match="no file of a known task"):
        evaluate_tasks(harness, local=tmp_path)
    with pytest.raises(ValueError, match="one split"):
        evaluate_tasks(harness, ["piqa"], local=folder, shots=2)
    with pytest.raises(ValueError, match="give the length"):
        Harness(Model(mdm.network, BYTES, {}))


@pytest.mark.parametrize(
    "row", ['{"foo": 1}', '{"goal": "g", "sol1": "a", "sol2": "b", "label": 5}', '{"goal": "g", "sol1": "a"}']
)
def test_a_row_that_is_no_question_is_named_before_any_is_asked(mdm, row, tmp_path):
    good = '{"goal": "g", "sol1": "a", "sol2": "b", "label": 1}'
    (tmp_path / "piqa.jsonl").write_text(f"{good}\n{row}\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"piqa\.jsonl, row 2: no question of piqa") as caught:
        evaluate_tasks(Harness(mdm), ["piqa"], local=tmp_path)
    assert "\n" not in str(caught.value)


def test_answers_are_kept_by_network_and_not_by_weights_alone(mdm):
    other = Transformer(replace(mdm.network.config, rotary_base=5e5)).eval()
    other.load_state_dict(mdm.network.state_dict())
    assert Harness(mdm).fingerprint() != Harness(replace(mdm, network=other)).fingerprint()
    assert Harness(mdm).fingerprint() == Harness(replace(mdm)).fingerprint()


def test_each_filter_keeps_its_own_answers(arm):
    """lm-eval logs a document once a filter."""
    samples = [
        {"doc_id": i, "filter": name, "exact_match": value, "arguments": []}
        for name, values in (("strict", (1, 1, 0)), ("loose", (0, 0, 1)))
        for i, value in enumerate(values)
    ]
    results = {
        "results": {"t": {"exact_match,strict": 2 / 3, "exact_match,loose": 1 / 3}},
        "samples": {"t": samples},
        "n-samples": {"t": {"effective": 3}},
        "versions": {"t": 1},
    }
    task = SimpleNamespace(OUTPUT_TYPE="generate_until", config=SimpleNamespace(dataset_path="hub/t"))
    rows = list(_rows(Harness(arm), "t", task, results, None, 0))
    assert [row["values"]["score"] for row in rows] == [[1, 1, 0], [0, 0, 1]]


@pytest.mark.parametrize(
    ("task", "path", "text"),
    [
        ("piqa", "piqa.jsonl", "[1, 2]\n"),
        ("piqa", "piqa.jsonl", ""),
        ("hellaswag", "hellaswag/hellaswag_val_full.txt", "context\n7\na\nb\nc\nd\n"),
        ("hellaswag", "hellaswag/hellaswag_val_full.txt", "context\n1\na\n"),
        ("piqa", "piqa.jsonl", '{"goal": '),
        ("openbookqa", "openbookqa/test.tsv", "ID\tno\n1\tcolumns\n"),
        ("boolq", "boolq/validation.jsonl", '{"passage": "p"}\n'),
        ("arc_easy", "multiple_choice/ARC-Easy.test.json", '[{"instruction": "no options"}]'),
    ],
)
def test_a_malformed_file_is_named(task, path, text, tmp_path):
    (tmp_path / path).parent.mkdir(exist_ok=True)
    (tmp_path / path).write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=re.escape(str(tmp_path / path))) as caught:
        local_rows(task, tmp_path)
    assert "\n" not in str(caught.value)


COUNTS = {"arc_easy": 2376, "boolq": 3270, "hellaswag": 10042, "openbookqa": 500, "piqa": 1838, "social_iqa": 1954}


@pytest.mark.parametrize("task", [*COUNTS, "lambada_openai"])
def test_the_published_files_are_read_whole(task):
    root = Path(os.environ.get("UNMASK_DATA", ""))
    local = TASKS[task].local
    if "UNMASK_DATA" not in os.environ or not (root / local.path).is_file():
        pytest.skip(f"UNMASK_DATA does not point at the data, in which {local.path} is")
    rows, _, _ = local_rows(task, root)
    assert len(rows) == COUNTS.get(task, 5153)
    for row in rows:
        if "choices" in row:
            texts = row["choices"] if task == "hellaswag" else row["choices"]["text"]
            assert all(texts)
            assert len(texts) == 4 or (task == "arc_easy" and len(texts) in (3, 5))
        if "answerKey" in row:
            assert row["answerKey"] in row["choices"]["label"]


def test_the_command_prints_the_table_and_writes_the_rows(folder, arm, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("unmask.checkpoint.loading.load", lambda path, **_: arm)
    out = tmp_path / "result.json"
    words = ["evaluate", "tasks", "--checkpoint", "anywhere", "--local", str(folder), "--out", str(out)]
    main([*words, "--tasks", "piqa", "race"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["task", "piqa", "race"]
    rows = json.loads(out.read_text(encoding="utf-8"))["rows"]
    assert {(row["task"], row["metric"]) for row in rows} == {("piqa", "acc"), ("piqa", "acc_norm"), ("race", "acc")}
    assert all(row["protocol"].startswith("lm-eval 0.4") and row["source"] for row in rows)
    main([*words, "--tasks", "race", "--json"])
    assert json.loads(capsys.readouterr().out)["task"] == "race"
    main(["report", str(out), "--out", str(tmp_path / "report.html")])
    with pytest.raises(SystemExit) as end:
        main([*words, "--tasks", "race", "--shots", "1"])
    assert end.value.code == 2


@pytest.mark.parametrize("causal", [False, True])
def test_a_published_model_is_asked_by_its_address(causal, folder, tmp_path, capsys, monkeypatch):
    """As the run folder that it was made of is, both without any run folder at hand."""
    model, hub = random_model(causal), offline_hub(tmp_path, monkeypatch)
    run = tmp_path / "run"
    run.mkdir()
    config = {"name": "random", "network": describe(model.network.config), "requested": {"length": LENGTH}}
    write_json(run / CONFIG, config)
    write_published(run / MODEL, {name: each.float() for name, each in model.network.state_dict().items()})
    BYTES.save(run)
    as_cache(hub, "someone/random", convert(run, tmp_path / "smdm", "smdm"))
    seen, words = [], ["--local", str(folder), "--tasks", "piqa", "--draws", "2", "--length", str(LENGTH), "--json"]
    for checkpoint in (str(run), "hf://someone/random"):
        main(["evaluate", "tasks", "--checkpoint", checkpoint, *words])
        rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        seen.append([(row["metric"], row["value"], row["cut"]) for row in rows])
    assert seen[0] == seen[1]
    assert [row["model"] for row in rows] == ["random"] * len(rows)


def test_the_hub_is_asked_where_no_folder_is_given(arm, monkeypatch):
    """Its splits and its examples: the few-shot prompt holds one of the train split."""
    rows = {
        "train": [{"goal": "Cut", "sol1": "knife", "sol2": "spoon", "label": 0}] * 2,
        "validation": [{"goal": "Sew", "sol1": "needle", "sol2": "oven", "label": 0}],
    }
    asked = []

    def load_dataset(path, name=None, **_):
        asked.append(path)
        return {split: datasets.Dataset.from_list(some) for split, some in rows.items()}

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    row = evaluate_tasks(Harness(arm), ["piqa"], shots=1)[0]
    assert asked == ["baber/piqa"] == [row["source"]]
    prompt = "Question: Cut\nAnswer: knife\n\nQuestion: Sew\nAnswer:"
    scores = [direct(arm, "piqa", 0, prompt, option, "chain", 0) for option in ("needle", "oven")]
    assert row["value"] == float(scores[0] > scores[1])
    assert "1 shots" in row["protocol"]
