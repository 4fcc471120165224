"""Judging texts: the number is the judge's own, entropy and diversity are their formulas, and low is not good."""

import json
import math
import re
import sys

import numpy as np
import pytest
import torch
from hubs import as_cache, offline_hub

from unmask.checkpoint import CONFIG, MODEL, Model, convert, describe
from unmask.checkpoint.tensors import write_published
from unmask.cli import main
from unmask.data import byte_tokenizer, prepare
from unmask.evaluate import caution, generation, judge_texts, load_judge, mauve, quality, reference_texts
from unmask.evaluate.generation import diversity, read_texts
from unmask.evaluate.judge import entropy
from unmask.files import write_json
from unmask.sampling import Draw, Tweedie
from unmask.transformer import Transformer, TransformerConfig

TEXTS = ["abcab", "a longer text of several words", "", "naïve"]


def make_run(folder, *, causal: bool, length: int | None = None):
    config = TransformerConfig(vocab=258, layers=1, heads=2, width=32, causal=causal)
    folder.mkdir(parents=True, exist_ok=True)
    requested = {} if length is None else {"requested": {"length": length}}
    write_json(folder / CONFIG, {"name": "small", "network": describe(config), **requested})
    write_published(folder / MODEL, Transformer(config, seed=3).state_dict())
    byte_tokenizer().save(folder)
    return folder


@pytest.fixture(scope="module")
def arm(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "arm", causal=True)


@pytest.fixture(scope="module")
def mdm() -> Model:
    config = TransformerConfig(vocab=258, layers=1, heads=2, width=32)
    return Model(Transformer(config, seed=1).eval(), byte_tokenizer(), {"name": "mdm"})


def direct(network, ids: list[int], begin: int) -> float:
    """-log p of the tokens after a begin token, from one plain forward pass."""
    tokens = torch.tensor([[begin, *ids]])
    log_p = network(tokens, torch.arange(1, tokens.shape[1])).detach().double().log_softmax(-1)
    return -float(log_p[torch.arange(len(ids)), torch.tensor(ids)].sum())


# --- the judge --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 3])
def test_a_run_folder_of_ours_judges(arm, batch):
    judge = load_judge(str(arm))
    verdicts = judge_texts(judge, TEXTS, batch=batch)
    ids = [list(text.encode()) for text in TEXTS]
    expected = [direct(judge.network, row, judge.begin) if row else 0.0 for row in ids]
    assert verdicts.nats == pytest.approx(expected, rel=1e-5)
    assert verdicts.tokens.tolist() == [5, 30, 0, 6]
    assert re.fullmatch("small [0-9a-f]{8}", judge.name), "its name and a digest of its weights"


def test_a_longer_text_is_read_in_overlapping_windows(tmp_path):
    """Eight tokens at a time: 8, then up to 4 new ones behind 4 or more that are given."""
    judge = load_judge(str(make_run(tmp_path / "short", causal=True, length=8)))
    ids = list(b"abcdefghijklm")
    spans = [(0, 8, 0), (4, 12, 4), (5, 13, 7)]  # start, end, tokens given
    expected = sum(
        direct(judge.network, ids[low:high], judge.begin) - direct(judge.network, ids[low : low + given], judge.begin)
        if given
        else direct(judge.network, ids[low:high], judge.begin)
        for low, high, given in spans
    )
    assert float(judge_texts(judge, ["abcdefghijklm", "ab"]).nats[0]) == pytest.approx(expected, rel=1e-5)


def test_a_bidirectional_model_is_no_judge(tmp_path):
    with pytest.raises(ValueError, match="a judge must be causal"):
        load_judge(str(make_run(tmp_path / "mdm", causal=False)))


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    """A random GPT-2 of Hugging Face's with 16 positions, in a folder."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("hub") / "tiny-gpt2"
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=258, n_positions=16, n_embd=32, n_layer=1, n_head=2, bos_token_id=256, eos_token_id=257
    )
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    byte_tokenizer().save(folder)
    transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), bos_token="<|begin|>", eos_token="<|end|>"
    ).save_pretrained(folder)
    return folder


def test_any_hugging_face_causal_model_judges(gpt2):
    transformers = pytest.importorskip("transformers")
    judge = load_judge(str(gpt2))
    assert (judge.name, judge.length, judge.begin) == ("tiny-gpt2", 15, 256)
    verdicts = judge_texts(judge, ["abcab", "naïve text"], batch=2)
    model = transformers.AutoModelForCausalLM.from_pretrained(str(gpt2)).eval()
    for text, nats in zip(["abcab", "naïve text"], verdicts.nats, strict=True):
        ids = torch.tensor([[256, *text.encode()]])
        assert nats == pytest.approx(float(model(ids, labels=ids).loss.detach()) * (ids.shape[1] - 1), rel=1e-5)
    long = judge_texts(judge, ["a text of more than fifteen tokens"])
    assert long.tokens.tolist() == [34]


def test_a_published_model_judges_by_its_address(gpt2, tmp_path, capsys, monkeypatch):
    """Ours where `load` reads it (an ARM in SMDM's layout or Llama's, or one file), else transformers."""
    transformers, hub = pytest.importorskip("transformers"), offline_hub(tmp_path, monkeypatch)
    run, text = make_run(tmp_path / "arm", causal=True), "a text that is judged"
    truth = judge_texts(load_judge(str(run)), [text]).nats
    for to in ("smdm", "llama"):
        as_cache(hub, f"someone/{to}", convert(run, tmp_path / to, to))
    for address in ("someone/smdm", "someone/smdm/model.safetensors", "someone/llama"):
        judge = load_judge(f"hf://{address}")
        assert judge.name == address.rpartition("/")[2]
        assert judge_texts(judge, [text]).nats == pytest.approx(truth, rel=1e-5)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(str(tmp_path / "llama")).eval()
    ids = torch.tensor([[256, *text.encode()]])
    assert float(theirs(ids, labels=ids).loss.detach()) * len(text) == pytest.approx(float(truth[0]), rel=1e-4)
    as_cache(hub, "someone/gpt2", gpt2)
    far, near = (load_judge(name) for name in ("hf://someone/gpt2", str(gpt2)))
    assert (far.name, far.length) == ("gpt2", near.length)
    assert judge_texts(far, [text]).nats == pytest.approx(judge_texts(near, [text]).nats)
    addresses = ["--checkpoint", "hf://someone/smdm", "--judge", "hf://someone/gpt2"]
    main(["evaluate", "generation", *addresses, "--count", "2", "--length", "4", "left-to-right"])
    assert "by gpt2" in capsys.readouterr().out
    with pytest.raises(ValueError, match="hf://someone/none: not in the hub's cache, and no network"):
        load_judge("hf://someone/none")
    as_cache(hub, "someone/mdm", convert(make_run(tmp_path / "mdm", causal=False), tmp_path / "smdm-mdm", "smdm"))
    with pytest.raises(ValueError, match="hf://someone/mdm: a judge must be causal"):
        load_judge("hf://someone/mdm")


def test_a_judge_that_is_not_there(tmp_path):
    pytest.importorskip("transformers")
    with pytest.raises(ValueError, match=r"judge .*nowhere: no such file or folder, nor a name on the hub"):
        load_judge(str(tmp_path / "nowhere"))


# --- measures of texts ------------------------------------------------------------------------------------------------


def test_entropy_is_its_formula():
    assert entropy([3] * 9) == 0
    assert entropy(range(8)) == pytest.approx(math.log(8))
    assert entropy([1, 1, 2]) == pytest.approx(math.log(3) - 2 / 3 * math.log(2))
    assert entropy([]) == 0


def test_diversity_by_hand():
    row = diversity(["a b a b a b", "a b a b c", "x"])
    assert row["distinct_1"] == pytest.approx(4 / 12)
    assert row["distinct_2"] == pytest.approx(3 / 9)  # ab, ba, bc
    assert row["distinct_3"] == pytest.approx(3 / 7)  # aba, bab, abc
    assert row["repetition_4"] == pytest.approx((1 / 3 + 0) / 2)  # abab baba abab; abab babc
    assert row["overlap_4"] == pytest.approx((1 / 2 + 1 / 2) / 2)
    assert math.isnan(diversity(["x", "y"])["overlap_4"])


def test_a_row_adds_up(arm, mdm):
    judge = load_judge(str(arm))
    texts, said = generation(mdm, name="mdm", count=5, length=12, policy=Tweedie(3), seed=2)
    row = quality(judge, texts, said)
    verdicts = judge_texts(judge, texts)
    assert row["generative_perplexity"] == pytest.approx(math.exp(verdicts.nats.sum() / verdicts.tokens.sum()))
    assert row["entropy"] == pytest.approx(np.mean([entropy(judge.encode(text)) for text in texts]))
    assert row["bits_per_byte"] == pytest.approx(row["nats"] / math.log(2) / sum(len(t.encode()) for t in texts))
    assert (row["texts"], row["length"], row["model"]) == (5, 12, "mdm")
    assert row["nfe"] <= 3
    assert row["seconds_per_text"] > 0
    assert row["law"].startswith("tau-leaping with 3 steps")
    others = (row["nats"] - verdicts.nats) / (row["tokens"] - verdicts.tokens)  # the rate without each text
    spread = math.sqrt(4 / 5 * ((others - row["nats"] / row["tokens"]) ** 2).sum())
    assert row["stderr"] == pytest.approx(row["generative_perplexity"] * spread)
    assert [len(column) for column in row["values"].values()] == [5, 5, 5]


def test_the_error_is_the_spread_over_sets_of_texts(arm):
    """Over 300 sets of 8 texts the claimed error is the perplexity's standard deviation, within 15%."""
    judge, generator = load_judge(str(arm)), np.random.default_rng(0)
    every = ["".join(generator.choice(list("abcd "), size=generator.integers(4, 12))) for _ in range(2400)]
    verdicts = judge_texts(judge, every, batch=256)
    sets = np.arange(2400).reshape(300, 8)
    nats, tokens = verdicts.nats[sets], verdicts.tokens[sets]
    value = np.exp(nats.sum(1) / tokens.sum(1))
    others = (nats.sum(1, keepdims=True) - nats) / (tokens.sum(1, keepdims=True) - tokens)
    claimed = value * np.sqrt(7 / 8 * ((others - np.log(value)[:, None]) ** 2).sum(1))
    assert np.sqrt((claimed**2).mean()) / value.std() == pytest.approx(1, abs=0.15)  # 3.7 standard errors
    row = quality(judge, every[:8], {})
    assert row["stderr"] == pytest.approx(claimed[0])


def test_low_perplexity_with_low_entropy_is_no_quality():
    """A model that repeats itself is cautioned against, one like the reference is not."""
    people = {"entropy": 4.4, "entropy_stderr": 0.02, "generative_perplexity": 30.0, "stderr": 1.0}
    loop = {"entropy": 1.2, "entropy_stderr": 0.05, "generative_perplexity": 2.0, "stderr": 0.1}
    good = {"entropy": 4.38, "entropy_stderr": 0.02, "generative_perplexity": 33.0, "stderr": 1.5}
    sure = {"entropy": 4.41, "entropy_stderr": 0.02, "generative_perplexity": 12.0, "stderr": 0.5}
    assert "less varied than the reference (entropy 1.20 against 4.40 nats)" in caution(loop, people)
    assert caution(good, people) == "none"
    assert caution(sure, people).startswith("more probable to the judge than the reference")
    assert caution(good, None).startswith("no reference texts")


def test_a_repeating_text_is_found_out(arm, tmp_path):
    """End to end: real words against one word said over and over, judged by an ARM."""
    source = tmp_path / "people.txt"
    words = [f"word{i} {'abcdefghij'[i % 10]}{i * 7919 % 101}" for i in range(400)]
    source.write_text(" ".join(words), encoding="utf-8")
    judge = load_judge(str(arm))
    people = quality(judge, reference_texts(source, judge, count=10, length=40), {"model": "people"})
    loop = quality(judge, ["the " * 10] * 10, {"model": "loop"})
    assert "less varied" in caution(loop, people)
    assert caution(people, people) == "none"


def test_references_are_passages_of_the_length_asked_for(arm, tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.txt").write_text(str(i) * 25, encoding="utf-8")
    judge = load_judge(str(arm))
    passages = reference_texts(tmp_path, judge, count=6, length=10)
    assert sorted(passages) == sorted([str(i) * 10 for i in range(3)] * 2), "two whole passages in each document"
    with pytest.raises(ValueError, match="6 passages of 10 tokens, fewer than the 7"):
        reference_texts(tmp_path, judge, count=7, length=10)
    folder = prepare(str(tmp_path), tmp_path / "prepared", tokenizer="bytes", validation=0.4)
    assert set("".join(reference_texts(folder, judge, count=2, length=10))) < set("012"), "validation documents only"


def test_texts_of_a_file(tmp_path, arm):
    record = {"text": "abc", "policy": "P", "exact_for": "law", "nfe": 3, "seconds": 4.0, "given": [True, False, False]}
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"samples": [record, {**record, "nfe": 5}]}), encoding="utf-8")
    texts, said = read_texts(path)
    assert texts == ["abc", "abc"]
    assert (said["nfe"], said["seconds_per_text"], said["length"], said["model"]) == (4, 2, 2, "mine")
    for bad, message in (
        ({"samples": []}, "has no list of 'samples'"),
        ({"rows": []}, "has no list of 'samples'"),
        ({"samples": [record, {**record, "policy": "Q"}]}, "texts of several policies, P, Q"),
        ({"samples": [record, {**record, "draw": "top_k 1"}]}, "texts of several policies, P, P with top_k 1"),
        ({"samples": [record, {**record, "given": [True, True, False, False]}]}, "a text with a prompt"),
        ({"samples": [record, {**record, "given": [True, False]}]}, "texts of 1, 2 tokens"),
    ):
        path.write_text(json.dumps(bad), encoding="utf-8")
        with pytest.raises(ValueError, match=message):
            read_texts(path)


def test_texts_that_are_there_are_not_written_otherwise(capsys):
    for option in (["--temperature", "0.5"], ["--count", "8"], ["--length", "9"], ["--policy", "tweedie"]):
        with pytest.raises(SystemExit, match="2"):
            main(["evaluate", "generation", "--judge", "j", "--samples", "x.json", *option])
        assert f"{option[0]} does nothing beside --samples" in capsys.readouterr().err


def test_too_little_to_judge(arm):
    judge = load_judge(str(arm))
    with pytest.raises(ValueError, match="1 text tells no error"):
        quality(judge, ["a"], {})
    with pytest.raises(ValueError, match="all texts are empty"):
        quality(judge, ["", ""], {})


def test_a_changed_draw_states_no_law(mdm):
    _, said = generation(mdm, count=2, length=4, draw=Draw(temperature=0.5))
    assert said["law"].startswith("no stated law")


# --- MAUVE ------------------------------------------------------------------------------------------------------------


def test_mauve_where_it_is_at_hand(gpt2):
    """Texts beside themselves score 1, beside others less."""
    pytest.importorskip("mauve")
    words = np.random.default_rng(0).choice(list("abcdefg"), size=(40, 12))
    texts = ["".join(row) for row in words]
    assert mauve(texts, texts, str(gpt2)) == pytest.approx(1, abs=1e-3)
    assert mauve(["zzzzz"] * 40, texts, str(gpt2)) < 0.5
    with pytest.raises(ValueError, match="MAUVE with nowhere: "):
        mauve(texts, texts, "nowhere")


def test_mauve_without_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "mauve", None)
    with pytest.raises(ValueError, match="--mauve needs the package mauve-text"):
        mauve(["a"], ["b"], "gpt2")
