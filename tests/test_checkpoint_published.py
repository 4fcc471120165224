"""Published layouts through `load`: the numbers of their own code, wherever the files come from.

transformers is the published code of the Llama-like layouts; LLaDA's and Dream's networks are its Llama and Qwen 2
with every position visible to every other, their tensors renamed.
"""

import json
import os
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hubs import as_cache, offline_hub
from safetensors.torch import load_file, save_file
from test_families import close, everywhere, fixtures
from torch import Tensor

import unmask
from unmask.cli import main
from unmask.data import load_manifest, prepare, prepare_pairs, train_bpe
from unmask.data.tokenizer import byte_letters
from unmask.families import DREAM, LLADA, RADD, SMDM, config_of, published_config, to_published
from unmask.transformer import Transformer, TransformerConfig

transformers = pytest.importorskip("transformers")

SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 24,
}
CAUSAL = {
    "llama": ("Llama", {}),
    "tied": ("Llama", {"tie_word_embeddings": True, "rms_norm_eps": 1e-3}),
    "llama 3": ("Llama", {"rope_parameters": LLAMA3}),
    "linear": ("Llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}),
    "mistral": ("Mistral", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
    "qwen 2": ("Qwen2", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
}


def theirs(kind: str, **settings: object):
    """transformers' network of that kind, none of whose parameters is zero or one."""
    config = getattr(transformers, f"{kind}Config")(**SIZES, **settings)
    torch.manual_seed(0)
    network = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return network


def tokens_of(vocab: int, rows: int = 2, length: int = 40) -> Tensor:
    return torch.randint(vocab, (rows, length), generator=torch.Generator().manual_seed(3))


def visible(rows: int, length: int) -> Tensor:
    return torch.zeros(rows, 1, length, length)


@pytest.mark.parametrize("name", CAUSAL)
def test_causal_models_of_the_hub(name: str, tmp_path: Path):
    """Largest error seen in logits (up to 9): 4e-6."""
    kind, settings = CAUSAL[name]
    network = theirs(kind, **settings)
    network.save_pretrained(tmp_path)
    model, tokens = unmask.load(tmp_path), tokens_of(61)
    assert model.causal
    assert model.config["requested"] == {"length": 128}
    with torch.no_grad():
        close(everywhere(model, tokens, 1), network(tokens).logits[:, :-1], atol=5e-5)
    if name != "tied":
        assert (tmp_path / "model.safetensors").is_file()
        return
    assert model.network.output is None
    tensors = load_file(tmp_path / "model.safetensors")  # written twice, as some exports do
    save_file(
        {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, tmp_path / "model.safetensors"
    )
    close(everywhere(unmask.load(tmp_path), tokens, 1), everywhere(model, tokens, 1))


def test_the_older_spelling_of_rotary_settings(tmp_path: Path):
    network = theirs("Llama", rope_parameters=LLAMA3)
    network.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    rope = config.pop("rope_parameters")
    older = {**config, "rope_theta": rope.pop("rope_theta"), "rope_scaling": rope}
    (tmp_path / "config.json").write_text(json.dumps(older))
    tokens = tokens_of(61)
    with torch.no_grad():
        close(everywhere(unmask.load(tmp_path), tokens, 1), network(tokens).logits[:, :-1], atol=5e-5)


LLADA_NAMES = {
    "model.embed_tokens": "model.transformer.wte",
    "model.norm": "model.transformer.ln_f",
    "lm_head": "model.transformer.ff_out",
    "self_attn.o_proj": "attn_out",
    "self_attn.": "",
    "mlp.gate_proj": "ff_proj",
    "mlp.up_proj": "up_proj",
    "mlp.down_proj": "ff_out",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ff_norm",
    "model.layers": "model.transformer.blocks",
}
LLADA_CONFIG = {
    "model_type": "llada",
    "d_model": 32,
    "n_layers": 2,
    "n_heads": 4,
    "n_kv_heads": 2,
    "mlp_hidden_size": 48,
    "vocab_size": 60,
    "embedding_size": 61,
    "mask_token_id": 58,
    "rope_theta": 500000.0,
    "rms_norm_eps": 1e-5,
    "weight_tying": False,
    "max_sequence_length": 4096,
    "block_type": "llama",
    "include_qkv_bias": False,
}


def llada_of(network) -> dict[str, Tensor]:
    tensors = {}
    for name, tensor in network.state_dict().items():
        for old, new in LLADA_NAMES.items():
            name = name.replace(old, new)
        tensors[name] = tensor.contiguous()
    return tensors


@pytest.fixture(scope="module")
def llada(tmp_path_factory) -> tuple[Path, object]:
    """A folder of LLaDA's layout in two shards, and the network that it is."""
    folder = tmp_path_factory.mktemp("llada")
    network = theirs("Llama", rms_norm_eps=1e-5, rope_parameters={"rope_type": "default", "rope_theta": 5e5})
    tensors = sorted(llada_of(network).items())
    halves = {
        "model-00001-of-00002.safetensors": dict(tensors[:9]),
        "model-00002-of-00002.safetensors": dict(tensors[9:]),
    }
    for name, half in halves.items():
        save_file(half, folder / name)
    index = {name: file for file, half in halves.items() for name in half}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    (folder / "config.json").write_text(json.dumps(LLADA_CONFIG))
    return folder, network


def test_llada(llada):
    """Sharded; every column is theirs but the mask's, which is never predicted."""
    folder, network = llada
    model, tokens = unmask.load(folder), tokens_of(61)
    assert (model.mask_id, model.vocab, model.causal) == (58, 61, False)
    with torch.no_grad():
        logits = network(tokens, attention_mask=visible(*tokens.shape)).logits
        ours = everywhere(model, tokens)
    real = torch.arange(61) != 58
    close(ours[..., real], logits[..., real], atol=5e-5)
    assert bool((ours[..., 58] == -torch.inf).all())


def test_dream(tmp_path: Path):
    """Qwen 2 seen whole; the prediction of a position stands one to its left, and the first two share theirs."""
    network = theirs("Qwen2", rope_parameters={"rope_type": "default", "rope_theta": 1e6})
    network.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "Dream", "mask_token_id": 57}))
    model, tokens = unmask.load(tmp_path), tokens_of(61)
    assert (model.mask_id, model.causal) == (57, False)
    with torch.no_grad():
        logits = network(tokens, attention_mask=visible(*tokens.shape)).logits
        ours = everywhere(model, tokens)
    logits, real = torch.cat([logits[:, :1], logits[:, :-1]], 1), torch.arange(61) != 57
    close(ours[..., real], logits[..., real], atol=5e-5)


def test_radd_and_smdm_fixtures_by_one_call():
    radd = unmask.load(fixtures("radd"))
    forward = load_file(fixtures("radd") / "forward.safetensors")
    close(everywhere(radd, forward["x"]), forward["logits"][..., :-1], atol=5e-5)
    forward = load_file(fixtures("smdm") / "forward.safetensors")
    told = {"n_head": 4, "n_query_groups": 4}
    mdm = unmask.load(fixtures("smdm") / "mdm.safetensors", config=told)
    close(everywhere(mdm, forward["x_masked"]), forward["mdm.logits"], atol=5e-5)
    exact = unmask.load(fixtures("smdm") / "mdm.safetensors", config={**told, "rotary_dtype": "float32"})
    close(everywhere(exact, forward["x_masked"]), forward["mdm.logits_fp32_rope"], atol=5e-5)
    arm = unmask.load(fixtures("smdm") / "arm.safetensors", config=told)
    close(everywhere(arm, forward["x"], 1), forward["arm.logits"][:, :-1], atol=5e-5)
    with pytest.raises(ValueError, match="shapes do not tell the heads of 2 layers of width 64"):
        unmask.load(fixtures("smdm") / "mdm.safetensors")


def test_mdlm_fixture_by_one_call():
    forward = load_file(fixtures("mdlm") / "forward.safetensors")
    model = unmask.load(fixtures("mdlm") / "model.safetensors", config={"n_heads": 2})
    close(everywhere(model, forward["x"]), forward["backbone_at_0"][..., :-1], atol=5e-5)
    note = json.loads((fixtures("mdlm") / "note.json").read_text())["config"]
    timed = unmask.load(fixtures("mdlm") / "model.safetensors", config={**note, "time_conditioning": True})
    at, level = torch.arange(forward["x"].numel()), -torch.expm1(-forward["sigma"].double())
    with torch.no_grad():
        ours = timed(forward["x"], at, level=level).view(3, 32, 50)
    close(ours, forward["backbone_at_sigma"][..., :-1], atol=5e-5)
    sedd = unmask.load(fixtures("mdlm") / "model.safetensors", config={**note, "parameterization": "sedd"})
    assert not sedd.normalised
    d3pm = unmask.load(fixtures("mdlm") / "model.safetensors", config={**note, "parameterization": "d3pm"})
    theirs = forward["d3pm_log_probs"][..., :-1].log_softmax(-1)
    close(everywhere(d3pm, forward["x"]).log_softmax(-1), theirs, atol=5e-5)
    with pytest.raises(ValueError, match="MDLM with parameterization 'ar': only subs, sedd and d3pm are read"):
        unmask.load(fixtures("mdlm") / "model.safetensors", config={**note, "parameterization": "ar"})


RADD_CONFIG = TransformerConfig(vocab=11, layers=2, heads=2, width=16, flavour="dit", mlp=64)


def radd_tensors(seed: int) -> dict[str, Tensor]:
    return to_published(RADD, Transformer(RADD_CONFIG, seed=seed).state_dict(), RADD_CONFIG)


@pytest.fixture
def radd_run(tmp_path: Path) -> tuple[Path, dict[str, Tensor]]:
    """A run folder as RADD's training leaves it, and the average of its weights."""
    weights, average = radd_tensors(1), radd_tensors(2)
    shadow = [tensor for name, tensor in average.items() if name not in RADD.buffers]
    order = ["rotary_emb.inv_freq", *(name for name in weights if name not in RADD.buffers)]
    stored = {
        "optimizer": {"state": {}, "param_groups": [{"lr": 3e-4}]},
        "model": {f"module.{name}": weights[name] for name in order},
        "ema": {"decay": 0.9999, "num_updates": 7, "shadow_params": shadow},
        "step": 7,
    }
    folder = tmp_path / "run"
    (folder / "checkpoints-meta").mkdir(parents=True)
    torch.save(stored, folder / "checkpoints-meta" / "checkpoint.pth")
    (folder / ".hydra").mkdir()
    (folder / ".hydra" / "config.yaml").write_text(
        "ngpus: 8\ntokens: 11\nmodel:\n  name: tiny\n  type: ddit_wot\n  hidden_size: 16\n  length: 1024\n"
        "  n_blocks: 2\n  n_heads: 2\n  dropout: 0.02\nnoise:\n  type: loglinear\n  sigma_min: 1e-4\n"
    )
    return folder, average


@pytest.mark.parametrize("given", ["folder", "file"])
def test_a_radd_run_folder_gives_its_average(radd_run, given: str):
    folder, average = radd_run
    model = unmask.load(folder if given == "folder" else folder / "checkpoints-meta" / "checkpoint.pth")
    assert model.network.config.dropout == 0.02
    assert model.config["requested"] == {"length": 1024}
    back = to_published(RADD, model.network.state_dict(), model.network.config)
    assert all(torch.equal(back[name], tensor) for name, tensor in average.items())


def test_an_average_that_does_not_fit_is_refused(radd_run):
    folder, _ = radd_run
    path = folder / "checkpoints-meta" / "checkpoint.pth"
    stored = torch.load(path, weights_only=True)
    stored["ema"]["shadow_params"].pop()
    torch.save(stored, path)
    with pytest.raises(ValueError, match="its average has 24 tensors that do not fit its 25 parameters"):
        unmask.load(folder)


SMDM_170 = TransformerConfig(vocab=32, layers=18, heads=12, width=768, mlp=8)


def test_the_heads_of_a_published_size_follow_from_its_table(tmp_path: Path):
    """SMDM's 170 M: 18 layers of width 768 have 12 heads, whatever the file is called."""
    file = tmp_path / "mdm-170M-100e18.safetensors"
    save_file(to_published(SMDM, Transformer(SMDM_170, seed=0).state_dict(), SMDM_170), file)
    model = unmask.load(file)
    assert model.network.config.heads == 12
    assert not model.causal
    assert (model.config["family"], model.config["name"]) == ("SMDM", "mdm-170M-100e18")


# ---- dtype, memory, the hub


def test_a_dot_in_the_name_of_a_folder_ends_no_name(llada, tmp_path: Path):
    shutil.copytree(llada[0], tmp_path / "mdm-1.5")
    assert unmask.load(tmp_path / "mdm-1.5").config["name"] == "mdm-1.5"


def test_weights_are_mapped_and_cast(llada):
    folder, _ = llada
    half = unmask.load(folder, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    model = unmask.load(folder)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    maps = Path("/proc/self/maps")
    if maps.exists():
        assert "model-00001-of-00002.safetensors" in maps.read_text(), "what needs no copy stays in its file"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return offline_hub(tmp_path, monkeypatch)


def test_the_hubs_cache_without_network(hub: Path, llada):
    folder, _ = llada
    as_cache(hub, "GSAI-ML/LLaDA-8B-Base", folder)
    tokens = tokens_of(61)
    ours = everywhere(unmask.load("hf://GSAI-ML/LLaDA-8B-Base"), tokens)
    assert torch.equal(ours, everywhere(unmask.load(folder), tokens))
    again = unmask.load(Path("hf://GSAI-ML/LLaDA-8B-Base"))  # a Path has one slash less
    assert again.config["source"] == "hf://GSAI-ML/LLaDA-8B-Base"


@pytest.mark.parametrize("inside", ["", "mdm_safetensors/"])
def test_one_file_of_a_repository(hub: Path, tmp_path: Path, inside: str):
    file = tmp_path / "repository" / f"{inside}mdm-170M-100e18.safetensors"
    file.parent.mkdir(parents=True)
    save_file(to_published(SMDM, Transformer(SMDM_170, seed=0).state_dict(), SMDM_170), file)
    as_cache(hub, "nieshen/SMDM", tmp_path / "repository")
    for address in (f"{inside}mdm-170M-100e18.safetensors", "mdm-170M-100e18.safetensors"):
        assert unmask.load(f"hf://nieshen/SMDM/{address}").network.config.heads == 12
    with pytest.raises(ValueError, match="not in the repository, or not in the hub's cache"):
        unmask.load("hf://nieshen/SMDM/arm-6M.safetensors")
    if inside:
        with pytest.raises(ValueError, match="no run folder and no published checkpoint"):
            unmask.load("hf://nieshen/SMDM")


def test_the_tokenizer_of_a_repository(hub: Path, tmp_path: Path):
    """Texts and pairs are prepared with it; of its files only the tokenizer's are asked for."""
    texts, pairs = tmp_path / "texts.txt", tmp_path / "pairs.jsonl"
    template = "{% for message in messages %}{{ message['content'] }}.{% endfor %}"
    texts.write_text("\n\n".join(f"{'word ' * i}end." for i in range(40)))
    pairs.write_text("".join(json.dumps({"prompt": f"{i}+1=", "response": str(i + 1)}) + "\n" for i in range(40)))
    (tmp_path / "repository").mkdir()
    train_bpe(["some words in a row"] * 9, 300).save(tmp_path / "repository")
    (tmp_path / "repository/chat_template.jinja").write_text(template)
    as_cache(hub, "someone/model", tmp_path / "repository")
    one = prepare(str(texts), tmp_path / "one", tokenizer="hf://someone/model")
    two = prepare(str(texts), tmp_path / "two", tokenizer=str(tmp_path / "repository"))
    assert (one / "manifest.json").read_bytes() == (two / "manifest.json").read_bytes()
    asked = prepare_pairs(str(pairs), tmp_path / "pairs", tokenizer="hf://someone/model").folder
    assert load_manifest(asked)["pairs"]["template"] == template
    with pytest.raises(ValueError, match="hf://someone/else: not in the hub's cache"):
        prepare(str(texts), tmp_path / "three", tokenizer="hf://someone/else")
    assert not (tmp_path / "three").exists()


def test_no_network(hub: Path):
    with pytest.raises(ValueError, match="hf://louaaron/sedd-small: not in the hub's cache, and no network") as caught:
        unmask.load("hf://louaaron/sedd-small")
    assert "\n" not in str(caught.value)
    for address in ("hf://", "hf://one", "hf://a/../b"):
        with pytest.raises(ValueError, match="an address on the hub is hf://owner/repository"):
            unmask.load(address)
    with pytest.raises(ValueError, match="not a name that a repository can have"):
        unmask.load("hf://a b/c??")


def test_tokenizers_come_with_them(hub: Path, tmp_path: Path, llada):
    """Beside the weights, or the family's in the hub's cache; asked for only when it is needed."""
    folder = tmp_path / "radd"
    config = TransformerConfig(vocab=50_257, layers=1, heads=1, width=4, flavour="dit", mlp=16)
    folder.mkdir()
    save_file(to_published(RADD, Transformer(config, seed=0).state_dict(), config), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(published_config(RADD, config)))
    model = unmask.load(folder)
    with pytest.raises(ValueError, match="hf://openai-community/gpt2: not in the hub's cache"):
        model.canvas("Some {{3}}")
    root = os.environ.get("UNMASK_DATA")
    if root is None:
        pytest.skip("needs GPT-2's tokenizer: UNMASK_DATA/tokenizers/gpt2")
    as_cache(hub, "openai-community/gpt2", Path(root) / "tokenizers" / "gpt2")
    canvas = model.canvas("Some {{3}}")
    assert canvas.tolist() == [50256, 4366, 220, 50257, 50257, 50257]
    beside = unmask.load(folder, tokenizer=Path(root) / "tokenizers" / "gpt2")
    assert beside.decode(torch.tensor([4366])) == "Some"
    small = unmask.load(llada[0], tokenizer=Path(root) / "tokenizers" / "gpt2")
    with pytest.raises(ValueError, match="50257 tokens, but the network has 61: not its tokenizer"):
        small.canvas("Some")


def test_a_vocabulary_with_merges_beside_the_weights(hub: Path, tmp_path: Path):
    """GPT-2's files without tokenizer.json; one without GPT-2's end token, as Dream's, is not read by GPT-2's rules."""
    config = TransformerConfig(vocab=259, layers=1, heads=1, width=4, flavour="dit", mlp=16)
    save_file(to_published(RADD, Transformer(config, seed=0).state_dict(), config), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(published_config(RADD, config)))
    vocab = {letter: i for i, letter in enumerate(byte_letters())} | {"Ġt": 256, "Ġth": 257, "<|endoftext|>": 258}
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    (tmp_path / "merges.txt").write_text("#version: 0.2\nĠ t\nĠt h\n")
    tokenizer = unmask.load(tmp_path).tokenizer
    assert tokenizer.encode("a the") == [ord("a"), 257, ord("e")]
    assert (tokenizer.vocab, tokenizer.end, tokenizer.decode([257, ord("e")])) == (259, 258, " the")
    vocab["other"] = vocab.pop("<|endoftext|>")
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    with pytest.raises(ValueError, match="no tokenizer with these weights: give one by --tokenizer"):
        unmask.load(tmp_path).tokenizer.encode("a")
    (tmp_path / "vocab.json").write_text("{")
    with pytest.raises(ValueError, match=r"vocab\.json: not JSON"):
        unmask.load(tmp_path).tokenizer.encode("a")


# ---- what is wrong is said in one line


def test_answers_of_the_hub(monkeypatch: pytest.MonkeyPatch):
    """A repository that is not there, one that is gated, a revision that is none, and a network that breaks off."""
    huggingface_hub = pytest.importorskip("huggingface_hub")
    errors, response = huggingface_hub.errors, SimpleNamespace(headers={}, status_code=404, request=None)
    for error, message in (
        (
            errors.RepositoryNotFoundError("404", response=response),
            "hf://a/b: no such repository on the hub",
        ),
        (errors.GatedRepoError("403", response=response), "hf://a/b: its owner gives it on request: ask on its page"),
        (errors.RevisionNotFoundError("404", response=response), "hf://a/b: the repository has no revision 'c'"),
        (ConnectionError("broken\npipe"), "hf://a/b: cannot be fetched (broken)"),
    ):

        def answer(*_: object, error: Exception = error, **__: object) -> str:
            raise error

        monkeypatch.setattr(huggingface_hub, "snapshot_download", answer)
        refused("hf://a/b@c", message)


def wrong(kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A checkpoint with one thing wrong."""
    save_file(llada_of(theirs("Llama")), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(LLADA_CONFIG))
    file = folder / "model.safetensors"
    if kind == "truncated file":
        file.write_bytes(file.read_bytes()[:-50])
    elif kind == "wrong shape":
        (folder / "config.json").write_text(json.dumps({**LLADA_CONFIG, "mlp_hidden_size": 50}))
    elif kind == "unknown family":
        (folder / "config.json").write_text('{"model_type": "mamba"}')
    elif kind == "corrupt JSON":
        (folder / "config.json").write_text('{"model_type": ')
    elif kind == "pickle with code":
        Trap.where = folder / "ran"
        torch.save({"model": {"x": Trap()}}, folder / "a.pth")
        return str(folder / "a.pth")
    elif kind == "not enough memory":
        monkeypatch.setattr("unmask.checkpoint.loading.free_memory", lambda device: 0)
    elif kind == "no repository":
        monkeypatch.setattr("huggingface_hub.snapshot_download", no_repository)
        return "hf://a/b"
    elif kind == "no network":
        offline_hub(folder, monkeypatch)
        return "hf://a/b"
    return str(folder)


def no_repository(*_: object, **__: object) -> str:
    from huggingface_hub.errors import RepositoryNotFoundError

    raise RepositoryNotFoundError("404", response=SimpleNamespace(headers={}, status_code=404, request=None))


@pytest.mark.parametrize(
    ("kind", "message"),
    {
        "truncated file": "not a whole safetensors file", "wrong shape": "misshapen",
        "unknown family": "none of the families",
        "corrupt JSON": "not JSON", "pickle with code": "never run", "not enough memory": "not enough memory",
        "no repository": "no such repository", "no network": "no network to fetch it",
    }.items(),
)  # fmt: skip
def test_bad_input_is_one_line_and_exit_2(kind: str, message: str, tmp_path, capsys, monkeypatch):
    address = wrong(kind, tmp_path, monkeypatch)
    words = ["evaluate", "perplexity", "--checkpoint", address, "--data", str(tmp_path)]
    for command in (
        ["sample", "--checkpoint", address],
        words,
        ["convert", address, "--to", "hf", "--out", str(tmp_path / "x")],
    ):
        with pytest.raises(SystemExit) as caught:
            main(command)
        said = capsys.readouterr()
        assert caught.value.code == 2
        assert message in " ".join(said.err.split())
        assert "Traceback" not in said.err
        assert said.out == ""
    assert not (tmp_path / "ran").exists()


def refused(path: object, message: str, **options: object) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        unmask.load(path, **options)
    assert "\n" not in str(caught.value)


def test_damaged_files(tmp_path: Path, llada):
    folder, _ = llada
    file = tmp_path / "model.safetensors"
    save_file(llada_of(theirs("Llama")), file)
    config = dict(LLADA_CONFIG)
    whole = file.read_bytes()
    for part in (whole[:100], whole[:-50], b"", b"nonsense"):
        file.write_bytes(part)
        refused(file, "model.safetensors: not a whole safetensors file", config=config)
    file.write_bytes(whole)
    (tmp_path / "config.json").write_text('{"model_type": "llada", ')
    refused(tmp_path, "config.json: not JSON")
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    refused(tmp_path, "model_type 'gpt2' is none of the families RADD, MDLM, SEDD, SMDM, LLaDA, Llama, Dream")
    (tmp_path / "config.json").write_text(json.dumps({**config, "block_type": "sequential"}))
    refused(tmp_path, "LLaDA with block_type 'sequential' is another network")
    (tmp_path / "config.json").write_text(json.dumps({**config, "d_model": 30}))
    refused(tmp_path, "width 30 must be an even multiple of heads 4")
    (tmp_path / "config.json").write_text(json.dumps({**config, "mlp_hidden_size": 50}))
    refused(tmp_path, "misshapen: model.transformer.blocks.0.ff_proj.weight (48, 32) instead of (50, 32)")
    (tmp_path / "config.json").write_text(json.dumps({**config, "n_layers": 3}))
    refused(tmp_path, "missing: model.transformer.blocks.2.attn_norm.weight")
    (tmp_path / "config.json").write_text(json.dumps({**config, "n_layers": 1}))
    refused(tmp_path, "surplus: model.transformer.blocks.1.")
    refused(file, "family 'gpt' is unknown", family="gpt")
    refused(file, "not a checkpoint of SMDM: it has no transformer.wte.weight", family="smdm")
    refused(tmp_path / "nowhere", "no run folder and no published checkpoint")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    file.unlink()
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(tmp_path, "model-00001-of-00002.safetensors: no such file")
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../../etc/model.safetensors"}}')
    refused(tmp_path, "names what is no file of weights in its folder")
    for name in ("", "model.safetensors.index.json"):
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
        refused(tmp_path, "names what is no file of weights in its folder")
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    refused(tmp_path, 'no "weight_map"')


def test_of_a_tensor_in_two_shards_the_index_says_which(tmp_path: Path, llada):
    shutil.copytree(llada[0], tmp_path / "llada")
    index = json.loads((tmp_path / "llada" / "model.safetensors.index.json").read_text())["weight_map"]
    first, last = sorted(set(index.values()))
    name = next(name for name, file in index.items() if file == first)
    stale = load_file(tmp_path / "llada" / first)[name] * 2
    save_file({**load_file(tmp_path / "llada" / last), name: stale}, tmp_path / "llada" / last)
    ours, theirs = (unmask.load(folder).network.state_dict() for folder in (tmp_path / "llada", llada[0]))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_tied_network_with_an_output_layer_of_its_own_keeps_it(tmp_path: Path):
    network = theirs("Llama")
    network.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**settings, "tie_word_embeddings": True}))
    tokens = tokens_of(61)
    model = unmask.load(tmp_path)
    assert not model.network.config.tied
    with torch.no_grad():
        close(everywhere(model, tokens, 1), network(tokens).logits[:, :-1], atol=5e-5)
    tensors = load_file(tmp_path / "model.safetensors")
    save_file(
        tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, tmp_path / "model.safetensors"
    )
    assert unmask.load(tmp_path).network.config.tied


WRONG = {
    "num_attention_heads": "2",
    "hidden_size": 16.0,
    "num_hidden_layers": 10**9,
    "tie_word_embeddings": float("nan"),
    "rope_parameters": {"rope_type": "llama3", "factor": 8},
    "sliding_window": "x",
}


@pytest.mark.parametrize("name", WRONG)
def test_settings_of_the_wrong_kind(name: str, tmp_path: Path):
    theirs("Mistral").save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**settings, name: WRONG[name]}))
    refused(tmp_path, "model.safetensors: ")


def test_a_sliding_window_is_refused_unless_texts_stay_inside(tmp_path: Path):
    """What is read without it is another network from the first token that it hides."""
    network = theirs("Mistral", sliding_window=8)
    network.save_pretrained(tmp_path)
    remedy = {"max_position_embeddings": 8}
    refused(tmp_path, "mistral with sliding_window 8, which this package has not")
    tokens, model = tokens_of(61), unmask.load(tmp_path, config=remedy)
    assert model.length == 8
    with torch.no_grad():
        ours, real = everywhere(model, tokens, 1), network(tokens).logits[:, :-1]
    close(ours[:, :8], real[:, :8], atol=5e-5)
    assert not torch.allclose(ours[:, 8:], real[:, 8:], atol=1e-2)
    for used in (True, False):
        windowed = theirs("Qwen2", use_sliding_window=used, sliding_window=8, max_window_layers=0)
        windowed.save_pretrained(tmp_path / str(used))
    refused(tmp_path / "True", "qwen2 with sliding_window 8")
    assert unmask.load(tmp_path / "False").length == 128


def test_a_configuration_that_says_nothing_is_refused(tmp_path: Path):
    file = tmp_path / "smdm.safetensors"
    sizes = TransformerConfig(vocab=9, layers=6, heads=4, width=256)
    save_file(to_published(SMDM, Transformer(sizes, seed=0).state_dict(), sizes), file)
    refused(file, "says nothing of SMDM's words or ours: num_attention_heads", config={"num_attention_heads": 8})
    assert unmask.load(file, config={"n_head": 8, "other": 1}).network.config.heads == 8
    refused("builtin", "a run says its own configuration", config={"rotary_base": 5.0})


def test_a_bare_dream_has_its_own_rotary_base():
    sizes = TransformerConfig(9, 1, 2, 16, kv_heads=1, mask_id=8, shifted=True, qkv_bias=True)
    tensors = to_published(DREAM, Transformer(sizes, seed=0).state_dict(), sizes)
    assert config_of(DREAM, tensors, heads=2, kv_heads=1, mask_id=8).rotary_base == 1e6


def test_two_files_are_one_too_many(tmp_path: Path):
    for name in ("a", "b"):
        save_file({"x": torch.zeros(1)}, tmp_path / f"{name}.safetensors")
    refused(tmp_path, "2 files of weights (a.safetensors, ...): give one of them")
    refused(tmp_path / "a.safetensors", "tensors of no known family (x, ...): give --family (family=) one of RADD")
    save_file({"x": torch.zeros(1, dtype=torch.int8)}, tmp_path / "a.safetensors")
    refused(tmp_path / "a.safetensors", "x holds I8: only float weights can be read")


class Trap:
    """What a pickle can do: run something when it is read."""

    def __reduce__(self):
        return (os.mkdir, (str(Trap.where),))


def test_code_in_a_pickle_is_never_run(tmp_path: Path):
    Trap.where = tmp_path / "ran"
    for name, legacy in (("a.pth", False), ("b.pth", True)):
        torch.save({"model": {"x": Trap()}}, tmp_path / name, _use_new_zipfile_serialization=not legacy)
        refused(tmp_path / name, "holds code or objects beside tensors, which are never run")
    assert not Trap.where.exists()


def test_damaged_pytorch_files(tmp_path: Path):
    path = tmp_path / "a.pth"
    torch.save(radd_tensors(0), path)
    whole = path.read_bytes()
    for part in (whole[: len(whole) // 2], b"", b"nonsense"):
        path.write_bytes(part)
        refused(path, "a.pth: not a")
    torch.save({"step": 3}, path)
    refused(path, "no weights in it")
    torch.save({"model": radd_tensors(0), "ema": {"shadow_params": ["a"]}}, path)
    refused(path, "its average has 1 tensors that do not fit")
    torch.save({name: value.to("meta") for name, value in radd_tensors(0).items()}, path)
    refused(path, "is sparse or without its numbers")
    torch.save(radd_tensors(0), path, _use_new_zipfile_serialization=False)  # older than PyTorch 1.6
    assert unmask.load(path, config={"heads": 2}).vocab == 11


def test_hydra_settings_that_are_no_yaml(radd_run):
    folder, _ = radd_run
    for text, message in (("a: [", "not YAML"), ("- a", "expected settings, found a list")):
        (folder / ".hydra" / "config.yaml").write_text(text)
        refused(folder, message)


def test_too_little_memory(llada, monkeypatch: pytest.MonkeyPatch):
    folder, _ = llada
    monkeypatch.setattr("unmask.checkpoint.loading.free_memory", lambda device: 70_000)
    refused(folder, "not enough memory", dtype=torch.float64)
    monkeypatch.setattr("unmask.checkpoint.loading.free_memory", lambda device: None)
    assert unmask.load(folder, dtype=torch.float64).vocab == 61

    def full(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr("unmask.checkpoint.loading.to_ours", full)
    refused(folder, "not enough memory")


def test_published_configurations_lead_back(llada):
    model = unmask.load(llada[0])
    row = published_config(LLADA, model.network.config)
    assert {key: row[key] for key in LLADA_CONFIG if key in row and key != "vocab_size"} == {
        key: value for key, value in LLADA_CONFIG.items() if key in row and key != "vocab_size"
    }
