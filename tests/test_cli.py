"""The command line: what it says when it is asked something impossible, and what machines read."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from unmask.checkpoint import CONFIG, MODEL, describe
from unmask.checkpoint.tensors import write_published
from unmask.cli import COMMANDS, main, overview
from unmask.data import byte_tokenizer, prepare
from unmask.files import write_json
from unmask.report.console import harmless
from unmask.transformer import Transformer, TransformerConfig


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    source = tmp_path_factory.mktemp("text") / "text.txt"
    source.write_text("a line of text about nothing much.\n\n" * 60, encoding="utf-8")
    return prepare(str(source), tmp_path_factory.mktemp("data") / "d", tokenizer="bytes", validation=0.2)


def make_run(folder: Path, **changes) -> Path:
    config = TransformerConfig(**{"vocab": 258, "layers": 1, "heads": 2, "width": 32, **changes})
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / CONFIG, {"name": "random", "network": describe(config)})
    write_published(folder / MODEL, Transformer(config, seed=3).state_dict())
    byte_tokenizer().save(folder)
    return folder


def make_material(folder: Path) -> None:
    """What commands need: run and arm, text.txt and its tokens in data, prompts with answers in rows.jsonl."""
    make_run(folder / "run")
    make_run(folder / "arm", causal=True)
    (folder / "text.txt").write_text("a line of text about nothing much.\n\n" * 60, encoding="utf-8")
    rows = [{"prompt": f"{i}+1=", "response": str(i + 1)} for i in range(9)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    prepare(str(folder / "text.txt"), folder / "data", tokenizer="bytes", validation=0.2)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "random")


def fails(capsys, *words: object) -> str:
    """The one line of an error; asserts exit code 2, one line, no traceback, nothing on standard output."""
    with pytest.raises(SystemExit) as caught:
        main([str(word) for word in words])
    printed = capsys.readouterr()
    assert caught.value.code == 2
    assert printed.out == ""
    assert "Traceback" not in printed.err
    return " ".join(printed.err.split())


def test_sample_prints_text_and_law(capsys, checkpoint):
    main(["sample", "--checkpoint", str(checkpoint), "--prompt", "ab", "--length", "5", "--policy", "random-order"])
    out = capsys.readouterr().out
    assert out.startswith("ab")
    assert "NFE 5; law: the random-order law" in out


def test_a_models_text_cannot_steer_the_terminal(capsys, checkpoint, monkeypatch):
    """Its bytes are for files and pipes; people's text is left as it is."""
    words = ["sample", "--checkpoint", str(checkpoint), "--prompt", "a\x1b[2Jé\n", "--length", "1"]
    main(words)
    piped = capsys.readouterr().out
    assert piped.startswith("a\x1b[2Jé\n")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    main(words)
    assert capsys.readouterr().out == harmless(piped)
    assert harmless(piped).startswith("a\ufffd[2Jé\n")


def test_sample_json_is_one_record_a_line(capsys, checkpoint, tmp_path):
    out = tmp_path / "s.json"
    main(["sample", "--checkpoint", str(checkpoint), "--count", "3", "--length", "4", "--json", "--out", str(out)])
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [record["nfe"] for record in records] == [4, 4, 4]
    assert json.loads(out.read_text(encoding="utf-8"))["samples"] == records


def test_template_from_a_file(capsys, checkpoint, tmp_path):
    (tmp_path / "form.txt").write_text("name: {{3}}, age: {{1..2}}.\n", encoding="utf-8")
    main(["sample", "--checkpoint", str(checkpoint), "--template", f"@{tmp_path / 'form.txt'}", "--json"])
    record = json.loads(capsys.readouterr().out)
    assert record["text"].startswith("name: ")
    assert record["text"].endswith("."), "the end of the file's last line is no text"
    assert 4 <= record["nfe"] <= 5


def test_likely_lengths_and_the_end_token(capsys, checkpoint):
    """Blanks settled by the end token hold none, unless that is asked for; what was chosen is said."""
    words = ["sample", "--checkpoint", str(checkpoint), "--template", "a{{2..4}}bbbbbbbb", "--json", "--likely-lengths"]
    for more, biased in ((["text"], False), (["end"], True), (["end", "--until-end"], False)):
        main([*words, *more])
        said = capsys.readouterr()
        record = json.loads(said.out)
        error = " ± " if more == ["text"] else ""
        law = "" if more == ["text"] else "the median; "
        told = rf"a{{{{[234]}}}}bbbbbbbb \({law}likeliest, in nats, of {{{{2..4}}}}: [234] \d+\.\d\d{error}"
        assert re.search(told, said.err), said.err
        assert ("with a bias on tokens" in record["exact_for"]) == biased
        assert record["nfe"] in (2, 3, 4)


def test_every_printed_sample_fits(capsys, checkpoint, tmp_path):
    """A regular expression, a JSON schema, choices; with a suffix nothing but the text may stand in the blank."""
    schema = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"enum": ["x", None]}}, "required": ["b"]}
    write_json(tmp_path / "schema.json", schema)
    common = ["sample", "--checkpoint", checkpoint, "--count", "3", "--json", "--length", "24"]

    def texts(*words: object) -> list[dict]:
        main([str(word) for word in (*common, *words)])
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    for record in texts("--regex", "[0-9]{4}-[0-9]{2}é*", "--policy", "tweedie", "--steps", "4"):
        assert re.fullmatch("[0-9]{4}-[0-9]{2}é*", record["text"])
        assert record["exact_for"].endswith("; at each reveal what still fits")
        assert record["log_weight"] < 0
    for record in texts("--schema", tmp_path / "schema.json", "--policy", "low-confidence", "--steps", "6"):
        assert "b" in json.loads(record["text"])
    for record in texts("--choices", "yes|no", "--prompt", "so: "):
        assert record["text"] in ("so: yes", "so: no")
    for record in texts("--regex", "(ab)+", "--prompt", "<", "--suffix", ">"):
        assert record["text"] == "<" + "ab" * 12 + ">"
    form = ("--template", "{{1}}{{3}} and {{4}}", "--length", 64)
    for record in texts(*form, "--regex", "[a-z]{4} and [0-9]+", "--seed", 5):
        assert re.fullmatch("[a-z]{4} and [0-9]{1,4}", record["text"])
    for record in texts("--length", "1", "--regex", "[^b-z]|\\W", "--matching"):
        assert record["exact_for"].endswith("; given that it fits")
        assert len(record["text"]) <= 1
    for record in texts("--length", "2", "--regex", "[^b-z]|\\W\\W", "--matching", "--until-end", "--prompt", "a"):
        assert record["text"].startswith("a")
        assert len(record["text"]) <= 3
    for record in texts("--length", "2", "--regex", "[a-m]+", "--matching", "--prompt", "a", "--guidance", "1"):
        assert re.fullmatch("a[a-m]+", record["text"])


def test_templates_that_no_one_constraint_serves_are_refused(capsys, checkpoint, tmp_path):
    rows = [{"prompt": "in", "suffix": "!", "length": 4}, {"prompt": "in", "length": 9}]
    for order in (rows, rows[::-1]):
        path = tmp_path / "forms.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in order), encoding="utf-8")
        words = ["sample", "--checkpoint", str(checkpoint), "--templates", str(path), "--regex", "[a-z]+"]
        assert "forms.jsonl: some texts begin or end with a blank and some do not" in fails(capsys, *words)


def test_perplexity_rows(capsys, checkpoint, data, tmp_path):
    out = tmp_path / "result.json"
    words = ["--checkpoint", str(checkpoint), "--data", str(data), "--length", "16", "--draws", "8", "--json"]
    main(["evaluate", "perplexity", *words, "--out", str(out)])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["model"] for row in rows[:-1]] == ["unigram", "bigram", "trigram", "random"]
    difference, best = rows[-1], min(rows[:3], key=lambda row: row["nats"])
    assert (difference["first"], difference["second"]) == ("random", best["model"])
    assert difference["difference"] == pytest.approx((rows[3]["nats"] - best["nats"]) / rows[3]["tokens"])
    written = json.loads(out.read_text(encoding="utf-8"))["rows"]
    assert [{key: value for key, value in row.items() if key != "values"} for row in written] == rows
    assert sum(written[2]["values"]["tokens"]) == rows[2]["tokens"]


def test_benchmarks_compared_and_reported(capsys, checkpoint, tmp_path):
    """Two models on local copies of two benchmarks, their difference, and a page of it all."""
    (tmp_path / "ptb.test.txt").write_text(" no it was n't \n a N \n" * 30, encoding="utf-8")
    (tmp_path / "lambada_test.jsonl").write_text('{"text": "he left"}\n' * 40, encoding="utf-8")
    twin = make_run(tmp_path / "causal", causal=True)
    common = ["--corpora", "ptb", "lambada", "--local", str(tmp_path), "--length", "32", "--draws", "4"]
    files = [str(tmp_path / f"{i}.json") for i in range(2)]
    for run, out in zip((checkpoint, twin), files, strict=True):
        main(["evaluate", "perplexity", "--checkpoint", str(run), *common, "--out", out, "--json"])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["corpus"] for row in rows] == ["ptb", "lambada"] * 2
    assert {row["split"] for row in rows} == {"test"}
    assert rows[0]["protocol"] == "radd: blocks of 32 tokens after a begin token"
    main(["compare", *files, "--json", "--out", str(tmp_path / "difference.json")])
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    for i, row in enumerate(found):
        difference = (rows[i]["nats"] - rows[i + 2]["nats"]) / rows[i]["tokens"]
        assert row["difference"] == pytest.approx(difference, abs=1e-5)
        assert row["paired"].endswith("windows")
        assert row["note"] == "random: upper bound; random: exact"
    main(["compare", *files])
    assert "nats per token" in capsys.readouterr().out
    main(["report", *files, str(tmp_path / "difference.json"), "--out", str(tmp_path / "page.html")])
    assert "blocks of 32 tokens" in (tmp_path / "page.html").read_text(encoding="utf-8")
    main(["evaluate", "perplexity", "--checkpoint", str(checkpoint), *common, "--stride", "8", "--out", files[0]])
    capsys.readouterr()
    assert "measure different things: protocol 'radd: windows of 32" in fails(capsys, "compare", *files)


def test_an_order_on_the_command_line(capsys, checkpoint, tmp_path):
    """Exact from left to right, in both spellings; any text file will do."""
    (tmp_path / "text.txt").write_text("some text", encoding="utf-8")
    words = ["--checkpoint", str(checkpoint), "--data", str(tmp_path / "text.txt"), "--length", "8", "--json"]
    for spelling in (["--order", "left-to-right"], ["--order=left-to-right"], ["left-to-right"]):
        main(["evaluate", "perplexity", *words, *spelling])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {(row["bound"], row["evaluations"], row["nats"]) for row in rows} == {("exact", 10, rows[0]["nats"])}
    for order in (["--order", "1", "2"], ["--order", "-1", "-2"], ["--order=-1", "-2"]):  # a fixed order's own
        main(["evaluate", "perplexity", *words, "--order", "fixed-order", *order])
        estimator = json.loads(capsys.readouterr().out)["estimator"]
        assert f"order=({order[-2].rpartition('=')[2]}, {order[-1]})" in estimator
    assert "--order needs a value" in fails(capsys, "evaluate", "perplexity", *words, "--order")
    assert "tweedie" in fails(capsys, "evaluate", "perplexity", *words, "--order", "tweedie")
    said = fails(capsys, "evaluate", "perplexity", *words, "--order", "blocks")
    assert "RandomOrder draws its plan" in said
    assert "take an order that is not random" in said
    with pytest.raises(SystemExit):
        main(["evaluate", "perplexity", "--help"])
    assert "tweedie" not in capsys.readouterr().out


def test_generation_on_the_command_line(capsys, checkpoint, tmp_path):
    """A model's texts, the same texts from a file, and people's, judged by an ARM."""
    judge = make_run(tmp_path / "arm", causal=True)
    (tmp_path / "people.txt").write_text("what people wrote, at some length. " * 9, encoding="utf-8")
    common = ["--judge", str(judge), "--reference", str(tmp_path / "people.txt"), "--json"]
    out = tmp_path / "quality.json"
    model = ["--checkpoint", str(checkpoint), "--count", "4", "--length", "8", "--seed", "2"]
    main(["evaluate", "generation", *model, *common, "--out", str(out), "--policy", "tweedie", "--steps", "3"])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["model"] for row in rows] == ["random", "reference: people.txt"]
    assert rows[0]["nfe"] <= 3
    assert rows[0]["caution"]
    samples = tmp_path / "samples.json"
    words = ["sample", "--checkpoint", str(checkpoint), "--count", "4", "--length", "8", "--seed", "2"]
    main([*words, "--out", str(samples), "--policy", "tweedie", "--steps", "3"])
    capsys.readouterr()
    main(["evaluate", "generation", "--samples", str(samples), *common])
    again = json.loads(capsys.readouterr().out.splitlines()[0])
    for key in ("generative_perplexity", "entropy", "nfe", "law", "distinct_2"):
        assert again[key] == pytest.approx(rows[0][key])
    main(["compare", str(out), str(out)])
    table = capsys.readouterr().out
    assert "entropy" in table
    assert "reference: people" not in table, "people's texts are not what is compared"
    main(["evaluate", "generation", *model, "--judge", str(judge)])
    assert "[no reference texts: a low perplexity with a low entropy is no quality]" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["perplexity"], "say what to score: --data PATH or --corpora NAMES"),
        (["perplexity", "--corpora", "ptb", "--data", "x"], "one of them"),
        (["perplexity", "--data", "x", "--draws", "4", "--order", "left-to-right"], "--draws does nothing beside"),
        (["perplexity", "--data", "nowhere"], "no text at 'nowhere'"),
        (["perplexity", "--corpora", "ptb", "--local", "nowhere"], "no test split of ptb"),
        (["perplexity", "--corpora", "ag_news", "--local", "."], "protocol radd does not score ag_news"),
        (["perplexity", "--corpora", "ptb", "lambada", "--local", __file__], "is one file: give a folder"),
        (["generation", "--judge", "nowhere", "--samples", "nowhere"], "say whose texts"),
        (["generation", "--judge", "nowhere", "--mauve", "gpt2"], "give --reference PATH"),
        (["generation", "--judge", "./nowhere"], "judge ./nowhere"),
    ],
)
def test_impossible_evaluations(capsys, checkpoint, words, message):
    assert message in fails(capsys, "evaluate", *words, "--checkpoint", checkpoint)


@pytest.mark.parametrize("policy", ["random-order", "tweedie", "euler", "left-to-right", "fixed-order", "speculative"])
def test_every_policy_has_its_name(capsys, checkpoint, policy):
    """In the two spellings."""
    for words in (["--policy", policy], [policy]):
        main(["sample", "--checkpoint", str(checkpoint), "--length", "3", "--json", *words])
    first, second = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert first["policy"].lower().startswith(policy.replace("-", ""))
    assert first["text"] == second["text"]


def test_a_run_folder_is_all_that_is_needed(checkpoint, tmp_path):
    """Copied elsewhere, without its data or optimiser state, it samples the same text."""
    elsewhere = tmp_path / "copy"
    elsewhere.mkdir()
    for name in (CONFIG, MODEL, "tokenizer.json"):
        (elsewhere / name).write_bytes((checkpoint / name).read_bytes())
    texts = []
    for folder in (checkpoint, elsewhere):
        command = [sys.executable, "-m", "unmask", "sample", "--checkpoint", str(folder), "--seed", "5"]
        result = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert result.returncode == 0, result.stderr
        texts.append(result.stdout)
    assert texts[0] == texts[1]


def test_causal_models_write_left_to_right_only(capsys, tmp_path):
    folder = make_run(tmp_path / "causal", causal=True)
    words = ["sample", "--checkpoint", str(folder), "--prompt", "a"]
    assert "a causal model cannot read: leave it out" in fails(capsys, *words, "--guidance", "1")
    main(["sample", "--checkpoint", str(folder), "--length", "3", "--prompt", "x"])
    assert "left-to-right" in capsys.readouterr().out
    assert "LeftToRight()" in fails(capsys, "sample", "--checkpoint", folder, "--policy", "random-order")
    assert "without a suffix" in fails(capsys, "sample", "--checkpoint", folder, "--suffix", "end")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sample", "--checkpoint", "nowhere"], "nowhere: no run folder"),
        (["prepare", "--source", "nowhere", "--out", "d"], "nowhere"),
        (["train", "tiny", "--data", "nowhere"], "nowhere"),
        (["report", "nowhere"], "nowhere"),
    ],
)
def test_what_is_not_there(capsys, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    assert message in fails(capsys, *words)
    assert not list(tmp_path.iterdir()), "nothing may be left behind"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--temperature", "-1"], "temperature -1.0"),
        (["--regex", "a(", "--length", "3"], "regular expression 'a(': missing ), unterminated subpattern"),
        (["--regex", "a", "--choices", "b"], "--regex, --schema and --choices: give one of them"),
        (["--matching"], "--matching needs something to match"),
        (["--schema", "nowhere.json"], "nowhere.json: no such file"),
        (["--choices", "a|"], "none of them empty"),
        (["--regex", "aaaa", "--length", "3"], "no text of 3 tokens fits the constraint: it has place for 4"),
        (["--regex", "x{3}", "--matching", "--attempts", "3", "--length", "3"], "none of 3 attempts fits"),
        (["--top-p", "0"], "top_p 0.0"),
        (["--count", "0"], "count 0"),
        (["--template", "{{0}}"], "blank {{0}}"),
        (["--template", "{{5..2}}"], "blank {{5..2}}"),
        (["--template", "{{2}}", "--prompt", "a"], "leave out --prompt"),
        (["--template", "{{2}}", "--length", "9"], "--length does nothing beside --template"),
        (["--template", "@nowhere"], "nowhere: no such file"),
        (
            ["--template", "a{{2}}b{{1..2}}", "--likely-lengths", "text"],
            "--likely-lengths does nothing: no blank is like",
        ),
        (["--prompt", "{{5}}"], "prompt and suffix are plain text"),
        (["--policy", "tweedie", "--steps", "0"], "steps 0 must be at least 1"),
        (["--seed", "-1"], "must not be negative"),
    ],
)
def test_impossible_options(capsys, checkpoint, words, message):
    assert message in fails(capsys, "sample", "--checkpoint", checkpoint, *words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--held-out", "b.jsonl"], "--held-out does nothing without --pairs"),
        (["--passes", "2"], "--passes does nothing without --pairs"),
        (["--pairs", "--field", "body"], "--field does nothing with --pairs"),
        (["--pairs", "--held-out", "b.jsonl", "--validation", "0.1"], "--validation does nothing beside --held-out"),
    ],
)
def test_options_that_would_do_nothing(capsys, tmp_path, words, message):
    out = tmp_path / "out"
    assert message in fails(capsys, "prepare", "--source", "a.jsonl", "--out", str(out), *words)
    assert not out.exists()


@pytest.mark.parametrize(
    ("words", "option"),
    [
        ("sample --checkpoint nowhere", "--out"),
        ("evaluate perplexity --checkpoint nowhere --data nowhere", "--out"),
        ("evaluate generation --judge nowhere --samples nowhere", "--out"),
        ("evaluate tasks --checkpoint nowhere", "--out"),
        ("evaluate answers --checkpoint nowhere --questions nowhere", "--out"),
        ("evaluate answers --checkpoint nowhere --questions nowhere --out new", "--result"),
        ("compare nowhere nowhere", "--out"),
        ("report nowhere", "--out"),
    ],
)
def test_what_cannot_be_written_is_said_before_the_work(capsys, tmp_path, monkeypatch, words, option):
    monkeypatch.chdir(tmp_path)
    assert f"{tmp_path}: is a folder" in fails(capsys, *words.split(), option, tmp_path)
    assert not list(tmp_path.iterdir())


def test_every_template_is_looked_at(capsys, checkpoint, tmp_path):
    path = tmp_path / "forms.jsonl"
    path.write_text('{"template": "a{{2}}"}\n{"template": "{{2}}"}\n', encoding="utf-8")
    words = ["sample", "--checkpoint", checkpoint, "--templates", str(path)]
    assert "forms.jsonl, text 2: --guidance is by the text that is given" in fails(capsys, *words, "--guidance", "1")
    assert "--attempts does nothing without --matching" in fails(capsys, *words, "--attempts", "5")


def test_unknown_names_are_answered_by_what_there_is(capsys, checkpoint):
    assert "tweedie" in fails(capsys, "sample", "--checkpoint", checkpoint, "--policy", "twedie")


@pytest.mark.parametrize("damage", ["truncated", "foreign", "shape", "config", "network", "tokenizer"])
def test_damaged_run_folders(capsys, tmp_path, damage):
    folder = make_run(tmp_path / "run")
    if damage == "truncated":
        (folder / MODEL).write_bytes((folder / MODEL).read_bytes()[:-100])
    elif damage == "foreign":
        (folder / MODEL).write_bytes(b"\x80\x04cposix\nsystem\n." * 9)
    elif damage == "shape":
        tensors = Transformer(TransformerConfig(vocab=258, layers=1, heads=2, width=64)).state_dict()
        write_published(folder / MODEL, tensors)
    elif damage == "config":
        (folder / CONFIG).write_text("{ not json", encoding="utf-8")
    elif damage == "network":
        write_json(folder / CONFIG, {"network": {"vocab": 258, "colour": "blue"}})
    else:
        byte_tokenizer().inner.save(str(folder / "tokenizer.json"))
        config = TransformerConfig(vocab=99, layers=1, heads=2, width=32)
        write_json(folder / CONFIG, {"network": describe(config)})
        write_published(
            folder / MODEL, Transformer(TransformerConfig(vocab=99, layers=1, heads=2, width=32)).state_dict()
        )
    message = fails(capsys, "sample", "--checkpoint", folder)
    assert str(folder.name) in message


def test_half_precision_weights_keep_exact_output(checkpoint):
    """A bfloat16 model's logits are float32, from a float32 product."""
    from unmask.checkpoint import load

    model = load(checkpoint, dtype=torch.bfloat16)
    assert model.network.output.weight.dtype == torch.bfloat16
    logits = model(torch.full((1, 4), model.mask_id), torch.arange(4))
    assert isinstance(logits, torch.Tensor)
    assert logits.dtype == torch.float32


def test_sample_with_guidance_bans_and_an_end(capsys, checkpoint):
    words = ["sample", "--checkpoint", str(checkpoint), "--template", "a{{3}}b", "--json"]
    main([*words, "--guidance", "1.5", "--count", "2"])
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [record["nfe"] for record in records] == [6, 6]
    assert "guided with weight 1.5" in records[0]["exact_for"]
    main([*words, "--ban", *"abcdefghijklmnopqrstuvwxyz", "--count", "5"])
    for line in capsys.readouterr().out.splitlines():
        middle = json.loads(line)["pieces"][2:-1]
        assert not any(piece in "abcdefghijklmnopqrstuvwxyz" for piece in middle if piece)
    main([*words, "--until-end", "--count", "3", "left-to-right"])
    assert len(capsys.readouterr().out.splitlines()) == 3
    main([*words, "remasking", "--steps", "4", "--cap", "0.5"])
    assert "erased" in json.loads(capsys.readouterr().out)["exact_for"]
    assert "only a single token can be banned, not 'a' 'b'" in fails(capsys, *words, "--ban", "ab")
    assert "leave out --until-end" in fails(capsys, *words, "--until-end", "remasking")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("trian tiny", "unmask has no command 'trian'; did you mean train?"),
        ("nothing", "unmask has no command 'nothing'; there is demo, prepare, train"),
        ("train tyny", "unmask train does not know 'tyny'; did you mean tiny?"),
        ("train tiny any-oder", "unmask train tiny does not know 'any-oder'; did you mean any-order?"),
        ("train tiny --bacth 3", "unmask train tiny has no option --bacth; did you mean --batch?"),
        ("train tiny --batch", "--batch needs a value (see unmask train tiny --help)"),
        ("train tiny --betas 1", "--betas needs 2 values (see unmask train tiny --help)"),
        ("train tiny --batch many", "--batch 'many': not a whole number"),
        ("train tiny --rate fast", "--rate 'fast': not a number"),
        ("train tiny --flavour lama", "--flavour 'lama': choose one of 'llama', 'dit'"),
        ("train", "say which: tiny"),
        ("convert runs/tiny", "unmask convert needs"),
        ("sample --policy --length 4", "--policy needs a value"),
        ("sample --template nothing", "nothing to write: a blank is {{8}}"),
        ("sample --guidance 1.5", "--guidance is by the text that is given"),
        ("sample --ban sixteen", "only a single token can be banned"),
        ("sample --chekpoint x", "unmask sample has no option --chekpoint; did you mean --checkpoint?"),
        ("sample --checkpoint x --policy twedie", "unmask sample does not know 'twedie'; did you mean tweedie?"),
        ("sample --checkpoint x random-order --steps 4", "no option --steps: it belongs to tweedie, euler"),
        ("sample --checkpoint x blocks confidense", "unmask sample blocks does not know 'confidense'; did you mean"),
        ("evaluate preplexity", "unmask evaluate does not know 'preplexity'; did you mean perplexity?"),
        ("compare a", "unmask compare needs"),
    ],
)
def test_words_that_say_nothing(capsys, words, message):
    """One line, with the nearest name there is."""
    assert message in fails(capsys, *words.split())


def test_help_comes_without_torch():
    """The overview, and whatever imports the package alone, do not load what takes a second."""
    code = "import sys; from unmask.cli import main; main(['--help']); assert 'torch' not in sys.modules"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    for name in COMMANDS:
        assert f"  {name} " in result.stdout


def test_a_text_is_written_without_what_takes_another_second(checkpoint: Path):
    """torch's compiler, figures, distributions and graphs are not loaded to sample (old scipys load graphs)."""
    unused = ["torch._dynamo", "matplotlib", "scipy.stats", "scipy.sparse"]
    command = ["sample", "--checkpoint", str(checkpoint), "--length", "4"]
    code = f"""
import sys, scipy.special
before = set(sys.modules)
from unmask.cli import main
main({command})
print([name for name in {unused} if name in sys.modules.keys() - before])
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "[]"


def test_summaries_begin_the_help():
    """The overview says what each command's own help says first."""
    for entry in COMMANDS.values():
        assert (entry.load([]).__doc__ or "").startswith(entry.summary.rstrip("."))


def test_public_names_are_found_where_they_are():
    import unmask

    for name in unmask.__all__:
        assert getattr(unmask, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        unmask.nothing  # noqa: B018


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_knows_commands_and_options(capsys, shell):
    with pytest.raises(SystemExit) as caught:
        main(["completion", shell])
    assert not caught.value.code
    script = capsys.readouterr().out
    for word in ("watch", "tweedie", "until-end"):
        assert word in script


def test_completion_of_another_shell_is_refused(capsys):
    """tyro writes tcsh's by a library that is not installed with it."""
    assert "zsh" in fails(capsys, "completion", "tcsh")


def test_every_environment_variable_is_documented():
    """The overview and the page name the same ones, in one order."""
    page = (Path(__file__).parent.parent / "docs/cli.md").read_text(encoding="utf-8")
    table = page.partition("## Environment")[2].partition("\n## ")[0]
    told = re.findall(r"[A-Z_]{5,}", " ".join(re.findall(r"^  ([A-Z_, ]+?)  ", overview(), flags=re.M)))
    assert told == re.findall(r"`([A-Z_]+)`", table)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--length", "99999999999"], "more than 1,048,576 tokens"),
        (["--template", "{{1..99999999999}}"], "more than 1,048,576 tokens"),
        (["--count", "1000000000"], "count 1000000000 must be 1 to 1,000,000"),
    ],
)
def test_wishes_beyond_memory(capsys, checkpoint, words, message):
    assert message in fails(capsys, "sample", "--checkpoint", checkpoint, *words)


@pytest.mark.parametrize(("key", "value"), [("layers", 10**12), ("width", 2 * 10**9), ("vocab", 10**12)])
def test_a_config_that_claims_the_earth(capsys, tmp_path, key, value):
    """Sizes are compared with what the weights hold before anything is made."""
    folder = make_run(tmp_path / "run")
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    config["network"][key] = value
    write_json(folder / CONFIG, config)
    assert "run" in fails(capsys, "sample", "--checkpoint", folder)


def test_deeply_nested_json(capsys, tmp_path):
    folder = make_run(tmp_path / "run")
    (folder / CONFIG).write_text("[" * 200_000, encoding="utf-8")
    assert "not JSON" in fails(capsys, "sample", "--checkpoint", folder)
