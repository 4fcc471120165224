"""Out and in again: every layout that a network can be written in gives the same network back."""

from pathlib import Path

import pytest
import torch
from huggingface_hub import errors
from safetensors import SafetensorError
from test_families import everywhere
from test_families_conditioned import lively

import unmask
from unmask.checkpoint import CONFIG, MODEL, convert, describe, push
from unmask.checkpoint.tensors import write_published
from unmask.cli import main
from unmask.conditioned import ConditionedConfig
from unmask.data import byte_tokenizer
from unmask.data.pairs import DEFAULT, named_template
from unmask.families import Config, network_of
from unmask.files import write_json
from unmask.transformer import TransformerConfig

LLAMA = TransformerConfig(vocab=258, layers=2, heads=4, width=32, mlp=40, kv_heads=2)
NETWORKS: dict[str, tuple[Config, tuple[str, ...]]] = {
    "mdm": (LLAMA, ("unmask", "smdm", "hf")),
    "arm": (TransformerConfig(**{**describe(LLAMA), "causal": True}), ("unmask", "smdm", "hf", "llama")),
    "tied arm": (
        TransformerConfig(
            258, 1, 2, 16, causal=True, tied=True, qkv_bias=True, rotary_base=1e5, rotary_scaling=(8.0, 1.0, 4.0, 64.0)
        ),
        ("unmask", "hf"),
    ),
    "dit": (TransformerConfig(258, 2, 2, 16, flavour="dit", dropout=0.1), ("unmask", "radd", "hf")),
    "llada": (TransformerConfig(258, 2, 2, 16, mask_id=200, rotary_base=5e5, norm_eps=1e-3), ("unmask", "llada")),
    "dream": (
        TransformerConfig(258, 2, 2, 16, kv_heads=1, mask_id=200, shifted=True, qkv_bias=True),
        ("unmask", "dream"),
    ),
    "sedd": (ConditionedConfig(258, 2, 2, 16, condition=8, reading="score"), ("unmask", "sedd")),
    "mdlm": (ConditionedConfig(258, 2, 2, 16, condition=8, sigma_max=20.0), ("unmask", "mdlm")),
}
PAIRS = [(name, to) for name, (_, layouts) in NETWORKS.items() for to in layouts]


def run_folder(folder: Path, config: Config) -> Path:
    """A run folder, none of whose weights is zero or one."""
    network = network_of(config, seed=3)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(4)))
    folder.mkdir()
    row = {
        "name": "some run",
        "network": describe(config),
        "training": {"objective": "AnyOrder", "steps": 40},
        "budget": {"tokens": 81920, "flops_6nd": 2.5e9, "flops_true": 3.1e9},
        "requested": {"length": 64, "corpus": {"source": "builtin"}},
    }
    write_json(folder / CONFIG, row)
    write_published(folder / MODEL, network.state_dict())
    byte_tokenizer().save(folder)
    return folder


def same(one: unmask.Model, other: unmask.Model) -> bool:
    tokens = torch.randint(258, (2, 20), generator=torch.Generator().manual_seed(5))
    level = torch.tensor([0.3, 0.8])
    at = torch.arange(40).view(2, 20)[:, 1:].flatten()
    with torch.no_grad():
        return torch.equal(one(tokens, at, level=level), other(tokens, at, level=level))


@pytest.mark.parametrize(("name", "to"), PAIRS)
def test_out_and_in_again(name: str, to: str, tmp_path: Path):
    """Bitwise the same predictions; tokenizer, length and configuration come back too."""
    source = run_folder(tmp_path / "run", NETWORKS[name][0])
    out = convert(source, tmp_path / "out", to)
    one, other = unmask.load(source), unmask.load(out)
    assert same(one, other)
    assert other.network.config.parameters() == one.network.config.parameters()
    assert other.tokenizer.inner.to_str() == one.tokenizer.inner.to_str()
    assert other.config["requested"]["length"] == 64
    back = unmask.load(convert(out, tmp_path / "back", "unmask"))
    assert same(one, back)


@pytest.mark.parametrize("to", ["unmask", "smdm"])
def test_out_in_half_the_bytes(to: str, tmp_path: Path):
    source = run_folder(tmp_path / "run", NETWORKS["mdm"][0])
    out = convert(source, tmp_path / "out", to, dtype=torch.bfloat16)
    assert (out / MODEL).stat().st_size < 0.6 * (source / MODEL).stat().st_size
    one, other = unmask.load(source, dtype=torch.bfloat16), unmask.load(out)
    assert {weight.dtype for weight in other.network.parameters()} == {torch.bfloat16}
    assert same(one, other)


def test_transformers_loads_what_is_written_for_it(tmp_path: Path):
    transformers = pytest.importorskip("transformers")
    for name in ("arm", "tied arm"):
        source = run_folder(tmp_path / name, NETWORKS[name][0])
        (source / "chat_template.jinja").write_text(DEFAULT)
        out = convert(source, tmp_path / f"{name} out", "hf")
        theirs = transformers.AutoModelForCausalLM.from_pretrained(out).eval()
        tokens = torch.randint(258, (2, 30), generator=torch.Generator().manual_seed(5))
        with torch.no_grad():
            torch.testing.assert_close(
                everywhere(unmask.load(source), tokens, 1), theirs(tokens).logits[:, :-1], atol=5e-5, rtol=0
            )
        tokenizer, ours = transformers.AutoTokenizer.from_pretrained(out), byte_tokenizer()
        assert tokenizer.encode("aé ,") == ours.encode("aé ,")
        assert tokenizer.decode(ours.encode("aé ,")) == "aé ,"
        assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (ours.begin, ours.end)
        chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        said = "".join(piece.text for piece in named_template(DEFAULT, ours)([("user", "a"), ("assistant", "b")]))
        assert tokenizer.apply_chat_template(chat, tokenize=False) == said


REFUSED = "mdm radd, mdm llada, mdm llama, dit smdm, dream llada, sedd mdlm"


@pytest.mark.parametrize(("name", "to"), [pair.split() for pair in REFUSED.split(", ")])
def test_a_layout_that_has_no_such_network_is_refused(name: str, to: str, tmp_path: Path):
    source = run_folder(tmp_path / "run", NETWORKS[name][0])
    with pytest.raises(ValueError, match=r"has no such network .*: it requires"):
        convert(source, tmp_path / "out", to)
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_converted(tmp_path: Path):
    source = run_folder(tmp_path / "run", LLAMA)
    with pytest.raises(ValueError, match="layout 'gguf' is unknown: unmask, hf, radd, mdlm, sedd, smdm, llada, llama"):
        convert(source, tmp_path / "out", "gguf")
    with pytest.raises(ValueError, match="holds something else"):
        convert(source, source, "unmask")


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(tensors: dict, path: Path, metadata: dict) -> None:
        path.write_bytes(b"half")
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    source = run_folder(tmp_path / "run", LLAMA)
    monkeypatch.setattr("unmask.checkpoint.tensors.save_file", full)
    with pytest.raises(ValueError, match=r"cannot write .*out \(.*No space left.*: make room there"):
        convert(source, tmp_path / "out", "unmask")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_files_that_are_no_results_are_passed_over(tmp_path: Path):
    source = run_folder(tmp_path / "run", LLAMA)
    for name, text in (("notes", "[1, 2]"), ("other", '{"rows": [{"perplexity": 3.0}]}'), ("empty", "")):
        (source / f"{name}.json").write_text(text)
    (source / "metrics.jsonl").write_text('{"kind": "validation", "step": 3}\n')
    convert(source, tmp_path / "out", "unmask")
    assert "None were measured" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


def test_what_fails_half_way_leaves_nothing_and_may_be_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source = run_folder(tmp_path / "run", LLAMA)
    (source / "metrics.jsonl").write_text("nonsense\n\n")
    with pytest.raises(ValueError, match=r"metrics.jsonl, line 1: no JSON object"):
        convert(source, tmp_path / "out", "unmask")
    (source / "metrics.jsonl").unlink()
    with monkeypatch.context() as patch:
        patch.setattr("unmask.checkpoint.publishing.model_card", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            convert(source, tmp_path / "out", "unmask")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]
    (tmp_path / ".out.part").mkdir()  # of one that was killed
    (tmp_path / "out").mkdir()
    assert same(unmask.load(convert(source, tmp_path / "out", "unmask")), unmask.load(source))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "run"]


def test_the_packages_of_the_package_are_there_unasked(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delattr(unmask, "checkpoint")
    assert unmask.checkpoint.convert is convert


def test_the_model_card(tmp_path: Path):
    """Configuration, data and budget, metrics with their errors, how to use."""
    source = run_folder(tmp_path / "run", LLAMA)
    (source / "metrics.jsonl").write_text(
        '{"kind": "validation", "step": 20, "nats_per_token": 9, "stderr": 1, "bound": "exact"}\n'
        '{"kind": "validation", "step": 40, "nats_per_token": 3.25, "stderr": 0.0125, "bound": "upper bound"}\n'
    )
    row = {"perplexity": 25.0, "tokens": 1000, "stderr_mc": 4.0, "stderr_data": 10.0, "bound": "upper bound"}
    told = {"corpus": "wikitext2", "split": "test", "protocol": "radd"}
    write_json(source / "result.json", {"rows": [{**row, **told}, {**row, **told, "yardstick": True}]})
    card = (convert(source, tmp_path / "out", "smdm") / "README.md").read_text()
    for line in (
        "# some run",
        "| kv_heads | 2 |",
        "| corpus | builtin |",
        "| tokens | 81,920 |",
        "| FLOPs, true count | 3.1e+09 |",
        "| perplexity, wikitext2 test, protocol radd | 25.00 ± 0.10 (maskings) ± 0.25 (texts) | upper bound |",
        "| validation nats/token after 40 steps | 3.2500 ± 0.0125 (maskings) | upper bound |",
        "[SMDM](https://github.com/ML-GSAI/SMDM)",
        f'model = unmask.load("{tmp_path / "out"}")',
        "{{32}}",
    ):
        assert line in card
    assert card.count("wikitext2") == 1
    assert card.startswith("---\nlibrary_name: unmask\n")


def test_without_a_tokenizer(tmp_path: Path):
    """A published file of another vocabulary than its family's: the weights are written, the card says what lacks."""
    from safetensors.torch import save_file

    from unmask.families import SMDM, to_published

    save_file(to_published(SMDM, network_of(LLAMA, seed=0).state_dict(), LLAMA), tmp_path / "a.safetensors")
    out = convert(tmp_path / "a.safetensors", tmp_path / "out", "smdm", config={"n_head": 4, "n_query_groups": 2})
    assert not (out / "tokenizer.json").exists()
    assert "with a tokenizer of your own" in (out / "README.md").read_text()
    assert unmask.load(out).network.config.rotary_dtype == "bfloat16"


def test_score_networks_are_loaded_as_such(tmp_path: Path):
    config = NETWORKS["sedd"][0]
    folder = run_folder(tmp_path / "run", config)
    write_published(folder / MODEL, {name: each.float() for name, each in lively(config).state_dict().items()})
    model = unmask.load(convert(folder, tmp_path / "out", "sedd"))
    assert not model.normalised
    samples = unmask.sample(model, [model.canvas("ab{{4}}")], unmask.Tweedie(4))
    assert bool((samples.tokens[0] < 258).all())


class Hub:
    """The hub, as far as an upload sees it."""

    calls: list[tuple[str, dict[str, object]]]
    error: Exception | None = None

    def __init__(self) -> None:
        pass

    def create_repo(self, repository: str, **options: object) -> None:
        Hub.calls.append(("create", {"repository": repository, **options}))

    def upload_folder(self, **options: object) -> None:
        if Hub.error is not None:
            raise Hub.error
        Hub.calls.append(("upload", options))


def test_push(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    Hub.calls = []
    source = run_folder(tmp_path / "run", LLAMA)
    main(["convert", str(source), "--to", "unmask", "--out", str(tmp_path / "out")])
    main(["push", str(tmp_path / "out"), "--repository", "me/small", "--private"])
    assert "hf://me/small" in capsys.readouterr().out
    (create, created), (upload, uploaded) = Hub.calls
    assert (create, upload) == ("create", "upload")
    assert created == {"repository": "me/small", "private": True, "exist_ok": True}
    assert (uploaded["repo_id"], uploaded["folder_path"]) == ("me/small", tmp_path / "out")
    with pytest.raises(ValueError, match=r"no README.md in it: write it with `unmask convert`"):
        push(source, "me/small")
    text = "[Errno -2] Name or service not known\nand more"
    for error in (OSError(text), errors.HTTPError(text)):  # the second is what no network comes to, and no OSError
        monkeypatch.setattr(Hub, "error", error)
        with pytest.raises(ValueError, match=r"not uploaded .*Name or service not known") as caught:
            push(tmp_path / "out", "me/small")
        assert "\n" not in str(caught.value)


def test_the_command_line_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture):
    (tmp_path / "config.json").write_text("{")
    for words in (
        ["convert", "hf://one", "--to", "hf", "--out", "x"],
        ["convert", str(tmp_path), "--to", "hf", "--out", "x"],
        ["convert", str(tmp_path / "nowhere"), "--to", "hf", "--out", "x"],
        ["push", str(tmp_path), "--repository", "me/small"],
    ):
        with pytest.raises(SystemExit) as caught:
            main(words)
        assert caught.value.code == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert printed.err.startswith("error: ")
        assert printed.err.count("\n") == 1
