"""N-gram yardsticks against plain counting, rows of result files, written records."""

import math
import time
from collections import Counter

import numpy as np
import pytest
import torch

from unmask.checkpoint import Model
from unmask.data import Tokenizer, load_split, prepare
from unmask.evaluate import Bigram, Unigram, baselines, perplexity, prepared, write
from unmask.sampling import Draw, LeftToRight, RandomOrder, Tweedie
from unmask.transformer import Transformer, TransformerConfig


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    for i in range(6):
        (folder / f"{i}.txt").write_text(
            f"document {i} says: naïve cafés, {i * 'abc'} and so on.\n" * 9, encoding="utf-8"
        )
    return prepare(str(folder), tmp_path_factory.mktemp("data") / "d", tokenizer="bytes", validation=0.3)


@pytest.fixture(scope="module")
def model(data) -> Model:
    config = TransformerConfig(vocab=258, layers=1, heads=2, width=32)
    return Model(Transformer(config, seed=1).eval(), Tokenizer.load(data), {"name": "random"})


def test_unigram_and_bigram_are_their_formulas():
    """Against dictionaries, token by token, unseen pairs and unseen tokens included."""
    rng = np.random.default_rng(0)
    stream, vocab = rng.integers(0, 6, 400).astype(np.uint16), 8
    x_0 = torch.from_numpy(rng.integers(0, 8, (5, 7)))
    maskable = torch.from_numpy(rng.random((5, 7)) < 0.7)
    maskable[:, 0] = False
    ones, pairs = Counter(stream.tolist()), Counter(zip(stream[:-1].tolist(), stream[1:].tolist(), strict=True))

    def uni(b: int) -> float:
        return (ones[b] + 1) / (len(stream) + vocab)

    def bi(a: int, b: int) -> float:
        total = sum(n for (left, _), n in pairs.items() if left == a)
        kinds = max(1, sum(1 for left, _ in pairs if left == a))
        return (pairs[a, b] + kinds * uni(b)) / (total + kinds)

    assert sum(uni(b) for b in range(vocab)) == pytest.approx(1)
    assert sum(bi(3, b) for b in range(vocab)) == pytest.approx(1)
    assert sum(bi(7, b) for b in range(vocab)) == pytest.approx(1)
    rows = list(zip(x_0.tolist(), maskable.tolist(), strict=True))
    expected = [-sum(math.log(uni(b)) for b, m in zip(x, k, strict=True) if m) for x, k in rows]
    assert Unigram.fit(stream, vocab).nats(x_0, maskable) == pytest.approx(expected)
    expected = [-sum(math.log(bi(x[i - 1], x[i])) for i in range(1, 7) if k[i]) for x, k in rows]
    assert Bigram.fit(stream, vocab).nats(x_0, maskable) == pytest.approx(expected)


def test_rows_score_every_held_out_token_once(data, model):
    """Tokens, bits per byte and kind of bound are those of the whole split; yardsticks score the same tokens."""
    split = load_split(data, "validation")
    held_out = prepared(data, model.tokenizer, corpus="held out", length=16)
    row = perplexity(model, held_out, draws=8)
    assert row["tokens"] == len(split.tokens)
    assert row["bound"] == "upper bound"
    assert row["stderr_mc"] > 0
    assert row["documents"] == len(split.names)
    assert row["bits_per_byte"] == pytest.approx(row["nats"] / math.log(2) / split.bytes.sum())
    assert row["perplexity"] == pytest.approx(math.exp(row["nats"] / row["tokens"]))
    for law in baselines(held_out, vocab=258):
        assert law["tokens"] == row["tokens"]
        assert law["bound"] == "exact"
        assert law["stderr_mc"] == 0


def test_some_sequences_are_the_same_for_all(data, model):
    """A sample of blocks is chosen by the seed, the same for a model and its yardsticks."""
    held_out = prepared(data, model.tokenizer, length=16, sequences=5, seed=3)
    row = perplexity(model, held_out, draws=8)
    laws = baselines(held_out, vocab=258)
    assert row["sequences"] == 5
    assert {law["tokens"] for law in laws} == {row["tokens"]}


def test_write_records_what_was_given_and_what_it_cost(model):
    records = write(model, ["ab{{5}}cd", "x{{3}}"], RandomOrder(), seed=4)
    for record, blanks in zip(records, (5, 3), strict=True):
        assert record["nfe"] == blanks
        assert sorted(step for step in record["step"] if step >= 0) == list(range(blanks))
        assert record["given"] == [step < 0 for step in record["step"]]
        assert "".join(record["pieces"]) == record["text"]
        assert all(0 < c <= 1 for c in record["confidence"])
        assert record["exact_for"] == "the random-order law"
    assert records[0]["text"].startswith("ab")
    assert records[0]["text"].endswith("cd")
    assert write(model, ["ab{{5}}cd"], RandomOrder(), seed=4)[0]["text"] == records[0]["text"]


def test_watching_costs_no_sampling_time(model):
    record = write(model, ["{{3}}"], on_step=lambda step: time.sleep(0.5))[0]
    assert record["seconds"] < 1.0


def test_a_changed_draw_states_no_law(model):
    record = write(model, ["{{4}}"], LeftToRight(), draw=Draw(temperature=0.5))[0]
    assert record["exact_for"].startswith("no stated law")


def test_nfe_is_what_the_plan_says(model):
    record = write(model, ["{{40}}"], Tweedie(steps=4))[0]
    assert record["nfe"] == 4
