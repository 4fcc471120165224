"""Comparing result files: like with like, paired where it can be, with errors that are the differences' own."""

import json
import math

import numpy as np
import pytest

from unmask.data import byte_tokenizer
from unmask.evaluate import PACKED, Stream, compare, cut, read_rows

BYTES = byte_tokenizer()


def row(nats, tokens, documents, **changes) -> dict:
    """A perplexity row of these windows."""
    total, size = float(np.sum(nats)), int(np.sum(tokens))
    return {
        "experiment": "perplexity",
        "model": "m",
        "corpus": "ptb",
        "split": "test",
        "protocol": "radd: blocks of 4",
        "data": "d1",
        "tokenizer": "t1",
        "nats": total,
        "tokens": size,
        "bits_per_byte": total / math.log(2) / (3 * size),
        "stderr_mc": 0.0,
        "stderr_data": 5.0,
        "bound": "exact",
        "estimator": "chain rule",
        "values": {"nats": list(nats), "tokens": list(tokens), "documents": list(documents)},
    } | changes


def text(**changes) -> dict:
    base = {"experiment": "generation", "model": "m", "judge": "j", "length": 64, "caution": "none"}
    numbers = {"generative_perplexity": 30.0, "stderr": 3.0, "entropy": 4.0, "entropy_stderr": 0.3}
    return base | numbers | changes


def test_a_paired_difference_by_hand():
    """Documents 0 = {window 0, 1} and 1 = {window 2}: differences 1 + 2 and 9 over 4 + 4 and 4 tokens, whose
    residuals -5 and 5 are divided by 1 less a share of 2/3 and of 1/3.
    """
    a = row([11.0, 12.0, 19.0], [4, 4, 4], [0, 0, 7], model="a", stderr_mc=3.0)
    b = row([10.0, 10.0, 10.0], [4, 4, 4], [0, 0, 7], model="b", stderr_mc=4.0, bound="upper bound")
    (found,) = compare([a], [b])
    assert (found["first"], found["second"], found["unit"]) == ("a", "b", "nats per token")
    assert found["difference"] == pytest.approx(1.0)
    assert found["stderr"] == pytest.approx(math.sqrt(1 / 2 * ((5 * 3) ** 2 + (5 * 3 / 2) ** 2)) / 12)
    assert found["stderr_mc"] == pytest.approx(5 / 12)
    assert found["sigmas"] == pytest.approx(found["difference"] / found["stderr"])
    assert found["paired"] == "2 documents, 3 windows"
    assert found["note"] == "a: exact; b: upper bound"
    (back,) = compare([b], [a])
    assert back["difference"] == pytest.approx(-1.0)


def test_pairing_takes_the_texts_luck_out():
    """The error is that of the differences over corpora, far below the unpaired one: 1000 corpora of 30 documents."""
    generator = np.random.default_rng(1)
    differences, paired, unpaired = [], [], []
    for _ in range(1000):
        hard = generator.normal(10, 3, 30)
        nats = [hard + generator.normal(shift, 0.5, 30) for shift in (0.2, 0.0)]
        spread = [math.sqrt(30 / 29 * ((each - each.mean()) ** 2).sum()) for each in nats]
        a, b = (row(n, [4] * 30, range(30), stderr_data=s) for n, s in zip(nats, spread, strict=True))
        (found,) = compare([a], [b])
        differences.append(found["difference"])
        paired.append(found["stderr"])
        (found,) = compare([a], [b | {"values": None}])
        unpaired.append(found["stderr"])
    ratio = np.sqrt(np.mean(np.square(paired))) / np.std(differences)
    assert ratio == pytest.approx(1, abs=0.1)  # 4 standard errors of a standard deviation over 1000 draws: 0.09
    assert np.mean(unpaired) > 5 * np.mean(paired)


def test_two_tokenizers_compare_in_bits_a_byte():
    a, b = row([10.0, 12.0], [4, 4], [0, 1]), row([9.0, 6.0, 4.0], [3, 3, 2], [0, 1, 1], tokenizer="t2")
    (found,) = compare([a], [b])
    assert (found["unit"], found["paired"]) == ("bits per byte", "no")
    assert found["difference"] == pytest.approx(a["bits_per_byte"] - b["bits_per_byte"])
    scale = math.log(2) * 24
    assert found["stderr"] == pytest.approx(math.hypot(5, 5) / scale)
    (other,) = compare([a], [row([9.0, 13.0], [5, 3], [0, 1])])
    assert (other["unit"], other["paired"]) == ("nats per token", "no"), "other windows of the same tokens"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"protocol": "mdlm: blocks of 4"}, "protocol 'radd: blocks of 4' against 'mdlm: blocks of 4'"),
        ({"corpus": "lambada"}, "corpus 'ptb' against 'lambada'"),
        ({"data": "d2"}, "data 'd1' against 'd2'"),
        ({"split": "validation"}, "split 'test' against 'validation'"),
    ],
)
def test_unlike_things_are_refused(change, named):
    with pytest.raises(ValueError, match="these rows measure different things") as caught:
        compare([row([1.0], [4], [0])], [row([1.0], [4], [0]) | change])
    assert named in str(caught.value)


def test_of_many_rows_the_like_are_compared():
    first = [row([1.0, 2.0], [4, 4], [0, 1]), row([1.0, 1.0], [4, 4], [0, 1], corpus="lambada"), text()]
    second = [row([1.0, 1.0], [4, 4], [0, 1], corpus="lambada"), text(generative_perplexity=20.0, entropy=2.0)]
    found = compare(first, second)
    assert [(each["corpus"], each["unit"]) for each in found] == [
        ("lambada", "nats per token"),
        ("texts of 64 tokens", "generative perplexity"),
        ("texts of 64 tokens", "entropy"),
    ]
    assert found[1]["difference"] == pytest.approx(10)
    assert found[1]["stderr"] == pytest.approx(math.hypot(3, 3))
    assert found[2]["difference"] == pytest.approx(2)


def test_cautions_go_along():
    (found, _) = compare([text(caution="less varied")], [text(model="n")])
    assert found["note"] == "m: less varied"


def test_one_model_in_two_files_is_told_apart(tmp_path):
    for name in ("cold", "warm"):
        (tmp_path / f"{name}.json").write_text(json.dumps({"rows": [text()]}), encoding="utf-8")
    found = compare(*(read_rows(tmp_path / f"{name}.json") for name in ("cold", "warm")))
    assert {(each["first"], each["second"]) for each in found} == {("m (cold)", "m (warm)")}


def test_one_document_tells_no_sigmas():
    a = row([3.0], [4], [0], stderr_data=None, stderr_mc=0.3)
    (found,) = compare([a], [row([2.0], [4], [0], stderr_data=None, stderr_mc=0.4)])
    assert math.isnan(found["stderr"])
    assert found["stderr_mc"] == pytest.approx(0.5 / 4)
    assert math.isnan(found["sigmas"])


def test_values_without_documents_are_not_paired():
    columns = {"nats": [3.0], "tokens": [4], "entropy": [1.0]}
    (found,) = compare([row([3.0], [4], [0], values=columns)], [row([2.0], [4], [0], values=columns)])
    assert found["paired"] == "no"


def test_windows_that_other_seeds_drew_are_other_texts():
    """They have the same numbers of tokens and, of one document, the same documents."""
    texts = Stream.of(["abcdefghij"], BYTES, ["abcdefghij"], [0])
    rows = [
        row([1.0, 2.0], [2, 2], [0, 0], protocol=cut(texts, PACKED, BYTES, length=2, sequences=2, seed=seed).protocol)
        for seed in (0, 1)
    ]
    with pytest.raises(ValueError, match=r"drawn by seed 0' against .* drawn by seed 1'"):
        compare(rows[:1], rows[1:])


def test_files_that_hold_nothing_to_compare(tmp_path):
    path = tmp_path / "a.json"
    for content, message in (
        ({"samples": []}, "has no list of 'rows'"),
        ({"rows": [3]}, "has no list of 'rows'"),
        ({"rows": [{"experiment": "other"}]}, "no row of perplexity or generation"),
        ({"rows": [row([1.0], [4], [0], yardstick=True)]}, "no row of perplexity or generation"),
        ({"rows": [row([1.0], [4], [0], bits_per_byte=None)]}, "its row of m has no 'bits_per_byte'"),
        ({"rows": [row([1.0], [4], [0], data=None)]}, "its row of m has no 'data'"),
    ):
        path.write_text(json.dumps(content), encoding="utf-8")
        with pytest.raises(ValueError, match=message) as caught:
            read_rows(path)
        assert str(path) in str(caught.value)
    with pytest.raises(ValueError, match="no such file"):
        read_rows(tmp_path / "nowhere.json")
