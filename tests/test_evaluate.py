"""Rows of result files, yardsticks beside them, written records."""

import math
import time

import pytest

from unmask.checkpoint import Model
from unmask.data import Tokenizer, load_split, prepare
from unmask.evaluate import baselines, perplexity, prepared, write
from unmask.sampling import Blocks, Confidence, Draw, LeftToRight, RandomOrder, Remasking, Speculative, Tweedie
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


@pytest.mark.parametrize("draw", [Draw(top_p=1.0), Draw(top_k=258), Draw(top_k=1000, top_p=1.0)], ids=repr)
def test_a_filter_that_keeps_all_changes_no_law(model, draw):
    assert write(model, ["{{2}}"], draw=draw)[0]["exact_for"] == "the random-order law"
    assert write(model, ["{{2}}"], draw=Draw(top_k=model.vocab - 1))[0]["exact_for"].startswith("no stated law")


def test_ends_change_the_law_but_from_the_left(model):
    for policy in (RandomOrder(), Blocks(2), Confidence(), Speculative()):
        law = write(model, ["{{4}}"], policy, until_end=True)[0]["exact_for"]
        assert law == f"no stated law: filling up behind an end token changes the one of {policy.exact_for}"
    for policy in (LeftToRight(2), Blocks(1), Blocks(2, LeftToRight()), Speculative(LeftToRight())):
        assert write(model, ["{{4}}"], policy, until_end=True)[0]["exact_for"] == policy.exact_for


def test_progress_ends_where_all_is_written(model):
    """Though some of it was written twice."""
    told = []
    write(model, ["{{6}}"] * 5, Remasking(12, cap=0.5), progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (30, 30)
    assert max(done for done, _ in told) == 30


def test_nfe_is_what_the_plan_says(model):
    record = write(model, ["{{40}}"], Tweedie(steps=4))[0]
    assert record["nfe"] == 4
