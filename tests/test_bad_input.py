"""Bad input, of every command: one line that says what, where and the remedy; exit code 2; nothing half-written."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from test_cli import fails, make_material, make_run

from unmask.cli import COMMANDS


@pytest.fixture(scope="module")
def there(tmp_path_factory) -> Path:
    """What a command needs beside the one thing that is bad."""
    folder = tmp_path_factory.mktemp("there")
    make_material(folder)
    return folder


@pytest.fixture
def here(there, tmp_path, monkeypatch) -> Path:
    """A folder of one's own to stand in, with a copy of all that."""
    shutil.copytree(there, tmp_path / "w", symlinks=True)
    monkeypatch.chdir(tmp_path / "w")
    return tmp_path / "w"


def foreign(path: Path) -> None:
    """A run folder whose weights are code."""
    make_run(path)
    (path / "model.safetensors").write_bytes(b"\x80\x04cposix\nsystem\n." * 9)


def truncated(path: Path) -> None:
    make_run(path)
    data = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(data[: len(data) // 2])


KINDS: dict[str, Callable[[Path], object]] = {
    "missing": lambda path: None,
    "empty": lambda path: path.write_bytes(b""),
    "encoding": lambda path: path.write_bytes("Zürich\nthé\n".encode("utf-16")),
    "binary": lambda path: path.write_bytes(bytes(range(256)) * 9),
    "folder": lambda path: path.mkdir(),
    "other json": lambda path: path.write_text('{"something": "else"}\n', encoding="utf-8"),
    "cut json": lambda path: path.write_text('{"rows": [{"exper', encoding="utf-8"),
}
WEIGHTS = {**KINDS, "foreign": foreign, "truncated": truncated}
TEXT = {name: KINDS[name] for name in ("missing", "empty", "encoding", "binary", "folder")}
FILE = {name: KINDS[name] for name in ("missing", "encoding", "binary", "folder")}
GONE = {name: KINDS[name] for name in ("missing", "folder")}
TEMPLATES = {
    **FILE,
    "empty": KINDS["empty"],
    "invalid": lambda path: path.write_text("{% for m in messages %}{{ m", encoding="utf-8"),
    "unknown": lambda path: path.write_text("{{ nothing.at.all }}", encoding="utf-8"),
    "raises": lambda path: path.write_text("{{ raise_exception('no system turns') }}", encoding="utf-8"),
    "unsafe": lambda path: path.write_text("{{ ''.__class__.__mro__[1].__subclasses__() }}", encoding="utf-8"),
}
ANSWERS = {name: KINDS[name] for name in ("encoding", "binary", "folder", "other json")}
TAKEN = {"folder": lambda path: (path.mkdir(), (path / "x").write_text("mine", encoding="utf-8"))}

# command line -> what BAD is
CASES = [
    ("prepare --source BAD --out new", TEXT),
    ("prepare --source text.txt --tokenizer BAD --out new", KINDS),
    ("prepare --source text.txt --out BAD", {**TAKEN, "file": KINDS["empty"]}),
    ("prepare --pairs --source BAD --out new", {**KINDS, "jsonl": KINDS["other json"]}),
    ("prepare --pairs --source rows.jsonl --out BAD --tokenizer bytes", {**TAKEN, "file": KINDS["empty"]}),
    ("prepare --pairs --source rows.jsonl --held-out BAD --out new --tokenizer bytes", KINDS),
    ("prepare --pairs --source rows.jsonl --template BAD --out new --tokenizer bytes", TEMPLATES),
    ("train tiny --data BAD --out new", KINDS),
    ("train tiny --data data --init BAD --out new", WEIGHTS),
    ("train tiny --data data --out BAD", {"file": KINDS["empty"]}),
    ("experiment caching --scale tiny --source BAD --out new", TEXT),
    ("experiment caching --scale tiny --out BAD", {"file": KINDS["empty"]}),
    ("demo --out BAD", {"file": KINDS["empty"]}),
    ("convert BAD --to hf --out new", WEIGHTS),
    ("convert run --to hf --out BAD", {**TAKEN, "file": KINDS["empty"]}),
    ("push BAD --repository you/model", KINDS),
    ("sample --checkpoint BAD", WEIGHTS),
    ("sample --checkpoint run --template @BAD", FILE),
    ("sample --checkpoint run --templates BAD", KINDS),
    ("sample --checkpoint run --schema BAD", {name: KINDS[name] for name in KINDS if name != "other json"}),
    ("sample --checkpoint run --length 2 --out BAD", TAKEN),
    ("watch BAD", KINDS),
    ("compare BAD run", KINDS),
    ("compare BAD BAD", KINDS),
    ("report BAD", KINDS),
    ("report run --out BAD", TAKEN),
    ("evaluate perplexity --checkpoint BAD --data data", WEIGHTS),
    ("evaluate perplexity --checkpoint run --data BAD", TEXT),
    ("evaluate perplexity --checkpoint run --corpora ptb --local BAD", TEXT),
    ("evaluate perplexity --checkpoint run --data data --draws 8 --length 9 --out BAD", TAKEN),
    ("evaluate generation --judge arm --samples BAD", KINDS),
    ("evaluate generation --checkpoint run --judge ./BAD", WEIGHTS),
    ("evaluate generation --checkpoint run --judge BAD.json", {"missing": KINDS["missing"]}),
    ("evaluate answers --checkpoint BAD --questions rows.jsonl --out new.jsonl", WEIGHTS),
    ("evaluate answers --checkpoint run --questions BAD --out new.jsonl", KINDS),
    ("evaluate answers --checkpoint run --questions rows.jsonl --template BAD --out new.jsonl", TEMPLATES),
    ("evaluate answers --checkpoint run --questions rows.jsonl --out BAD", ANSWERS),
    ("evaluate answers --checkpoint run --questions rows.jsonl --out new.jsonl --result BAD", TAKEN),
    ("evaluate tasks --length 64 --checkpoint BAD --tasks boolq --local tasks", WEIGHTS),
    ("evaluate tasks --length 64 --checkpoint run --tasks boolq --local BAD", {**GONE, "file": KINDS["empty"]}),
]
WORDS = [(words, name, make) for words, kinds in CASES for name, make in kinds.items()]


@pytest.mark.parametrize(("words", "kind", "make"), WORDS, ids=[f"{words} [{name}]" for words, name, _ in WORDS])
def test_bad_files(capsys, here, words, kind, make):
    make(here / "BAD")
    before = {path: path.read_bytes() if path.is_file() else b"" for path in here.rglob("*")}
    said = fails(capsys, *words.split())
    assert said.startswith("error: "), said
    assert ("BAD" in said) == ("BAD" in words), said
    assert len(said) < 600
    after = {path: path.read_bytes() if path.is_file() else b"" for path in here.rglob("*")}
    assert after == before


NUMBERS = [
    ("prepare --source text.txt --out new --validation 1.5", "validation"),
    ("prepare --source text.txt --out new --validation nan", "validation"),
    ("prepare --source text.txt --out new --tokenizer bpe:9", "bpe:9"),
    ("prepare --source text.txt --out new --tokenizer bpe:many", "bpe:many"),
    (f"prepare --source text.txt --out new --tokenizer bpe:1{'0' * 30}", "N must be a number from 258 to 10,000,000"),
    ("prepare --source text.txt --out new --weights 1 2", "weights"),
    ("prepare --source text.txt --out new --weights -1", "weights"),
    ("prepare --source text.txt --out new --tokenizer byts", "no tokenizer 'byts'"),
    ("prepare --pairs --source rows.jsonl --out new --malformed -1", "share of -1"),
    ("prepare --pairs --source rows.jsonl --out new --malformed 5", "share of 5"),
    ("prepare --pairs --source rows.jsonl --out new --passes 2", "--passes 2 does nothing for rows without a chain"),
    ("evaluate perplexity --checkpoint run --corpora ptb --field body", "--field does nothing without --data"),
    ("evaluate generation --checkpoint run --judge run --field body", "--field does nothing without --reference"),
    ("train tiny --data data --batch 0 --out new", "batch 0"),
    ("train tiny --data data --steps -3 --out new", "steps -3"),
    ("train tiny --data data --rate -1 --out new", "rate"),
    ("train tiny --data data --rate nan --out new", "rate"),
    ("train tiny --data data --seed -1 --out new", "seed -1"),
    ("train tiny --data data --betas 1.5 0.9 --out new", "betas (1.5, 0.9)"),
    ("train tiny --data data --rotary-base -1 --out new", "rotary_base -1.0"),
    ("train tiny --data data --kv-heads 0 --out new", "'kv_heads': 0"),
    ("train tiny --data data --tokens inf --out new", "budget"),
    ("train tiny --data data --length 0 --out new", "length 0"),
    ("train tiny --data data --length 99999 --out new", "tokens to train on, less than a sequence of 99,999"),
    ("train tiny --data data --length 99999 --dry-run", "tokens to train on, less than a sequence of 99,999"),
    ("train tiny --data data --drop-prompt 0.1 --out new", "--drop-prompt"),
    ("train tiny --data data --heads 3 --out new", "heads 3"),
    ("train tiny --data data --layers 0 --out new", "layers"),
    ("train tiny --data data --tokens 0 --out new", "budget"),
    ("train tiny --data data --flops nan --out new", "budget"),
    ("train tiny --data data --device gpu --out new", "device 'gpu'"),
    ("train tiny --data data --out data", "data exists and holds something else"),
    ("train tiny --data data --lora-on qkv --out new", "--lora-on: without --lora"),
    ("train tiny --data data --init run --lora 2 --lora-on qkv up --out new", "--lora-on up: this network has qkv"),
    ("sample --checkpoint data", "data: prepared data, and no checkpoint"),
    ("sample --checkpoint run --top-k 0", "top_k 0"),
    ("sample --checkpoint run --temperature nan", "temperature nan"),
    ("sample --checkpoint run --guidance nan", "guidance"),
    ("sample --checkpoint run --batch 0", "batch 0"),
    ("sample --checkpoint run --regex a --matching --attempts 0 --length 2", "attempts 0"),
    ("sample --checkpoint run --device nowhere", "device 'nowhere'"),
    ("sample --checkpoint hf://nobody", "an address on the hub is hf://owner/repository"),
    ("evaluate answers --checkpoint run --questions rows.jsonl --out new.jsonl --passes 3", "passes 3"),
    ("evaluate answers --checkpoint run --questions rows.jsonl --out new.jsonl --batch 0", "batch 0"),
    ("evaluate answers --checkpoint run --questions rows.jsonl --out new.jsonl --first 0", "first 0"),
    ("evaluate answers --checkpoint run --questions rows.jsonl --out new.jsonl --block 0", "block 0"),
    ("evaluate answers --checkpoint run --questions rows.jsonl --out new.jsonl --length 0", "length 0"),
    ("evaluate answers --checkpoint run --questions rows.jsonl --out new.jsonl --guidance nan", "guidance"),
    ("evaluate answers --checkpoint run --questions rows.jsonl --out new.jsonl --judge nowhere", "judge"),
    (
        "evaluate answers --checkpoint run --questions rows.jsonl --out new.jsonl --judge-model x",
        "--judge-model does nothing without --judge",
    ),
    (
        "evaluate answers --checkpoint run --questions rows.jsonl --out new.jsonl --final 3",
        "--final does nothing without --passes 2",
    ),
    (
        "evaluate answers --checkpoint run --questions rows.jsonl --out new.jsonl --result ./new.jsonl",
        "--result new.jsonl would replace the answers",
    ),
    (
        "evaluate answers --checkpoint run --questions rows.jsonl --out text.txt/new.jsonl",
        "cannot write text.txt/new.jsonl (Not a directory)",
    ),
    ("evaluate tasks --length 64 --checkpoint run --tasks bolq --local tasks", "boolq"),
    ("evaluate tasks --length 64 --checkpoint run --tasks boolq --local tasks --draws 0", "draws 0"),
    ("evaluate tasks --length 64 --checkpoint run --tasks boolq --local tasks --limit 0", "limit 0"),
    ("evaluate tasks --length 64 --checkpoint run --tasks boolq --local tasks --shots -1", "shots -1"),
    ("evaluate tasks --length 64 --checkpoint run --tasks boolq --local tasks --tokens 0", "tokens 0"),
    ("evaluate tasks --length 64 --checkpoint run --tasks boolq --local tasks --length 0", "length 0"),
    ("evaluate tasks --length 64 --checkpoint run --tasks boolq --local tasks --guidance nan", "guidance"),
    ("audit random-order --draws 10", "10 draws"),
    ("audit random-order --tokens 0", "tokens 0"),
    ("audit randon-order", "did you mean random-order?"),
    ("recipes --device nowhere", "device 'nowhere'"),
    ("completion fsh", "fish"),
    ("convert run --to hff --out new", "hff"),
    ("convert run --to radd --out new", "RADD"),
    ("push run --repository nobody", "run"),
    ("watch run --every nan", "every nan"),
    ("compare run", "unmask compare needs"),
    ("report", "no path"),
]


@pytest.mark.parametrize(("words", "part"), NUMBERS, ids=[words for words, _ in NUMBERS])
def test_impossible_values(capsys, here, words, part):
    before = sorted(here.rglob("*"))
    assert part in fails(capsys, *words.split())
    assert sorted(here.rglob("*")) == before


def test_every_command_is_here():
    said = {words.split()[0] for words, *_ in (*CASES, *NUMBERS)}
    assert said == set(COMMANDS)


def test_a_line_that_is_bad_is_named(capsys, here):
    (here / "BAD.jsonl").write_text(json.dumps({"text": "good"}) + "\n{bad\n", encoding="utf-8")
    assert "BAD.jsonl, line 2" in fails(capsys, "prepare", "--source", "BAD.jsonl", "--out", "new")


def test_nested_beyond_reading(capsys, here):
    (here / "BAD.json").write_text("[" * 100_000, encoding="utf-8")
    assert "BAD.json: not JSON" in fails(capsys, "prepare", "--pairs", "--source", "BAD.json", "--out", "new")


def test_a_manifest_without_its_sources(capsys, here):
    path = here / "data" / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    del manifest["splits"]["train"]["sources"]
    path.write_text(json.dumps(manifest), encoding="utf-8")
    assert "is no manifest of running text" in fails(capsys, "train", "tiny", "--data", "data", "--out", "new")
    assert not (here / "new").exists()


@pytest.mark.parametrize("name", ["vocab", "layers", "heads", "width"])
def test_a_size_that_is_not_told_is_not_made_up(capsys, here, name):
    """Planted fault: other heads than it was trained with fit the same weights."""
    path = here / "run" / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    del config["network"][name]
    path.write_text(json.dumps(config), encoding="utf-8")
    assert f'"network" does not say its {name}: restore it' in fails(capsys, "sample", "--checkpoint", "run")
