"""Blanks of unknown length, and templates in batches."""

import json
import math
import re
from dataclasses import replace

import pytest
import torch

from unmask.checkpoint import Model
from unmask.data import byte_tokenizer
from unmask.evaluate.infilling import likely_lengths, templates_of
from unmask.evaluate.writing import write
from unmask.transformer import Transformer, TransformerConfig

BYTES = byte_tokenizer()


class Counting:
    """A network that knows texts of the form a^n b^n: what stands behind depends on how far it is from the left."""

    vocab, mask_id, causal, normalised, config = 258, 258, False, True, None

    def parameters(self):
        return iter([torch.zeros(1)])

    def __call__(self, tokens, at, *, then=None, rows=None, level=None):
        length = tokens.shape[1]
        column = at % length - 1
        want = torch.where(column < 6, ord("a"), ord("b"))  # the sixth token is the first b, whatever is seen
        logits = torch.full((len(at), 258), math.log(0.1 / 257)).scatter(1, want[:, None], math.log(0.9))
        return logits if then is None else then(logits, slice(0, len(at)))


def counting() -> Model:
    return Model(Counting(), BYTES, {})


def test_the_length_is_that_under_which_the_text_behind_is_most_probable():
    """aa + n hidden + bbb is right for n = 4 alone; for n < 4 each b too far left costs log(0.9 / (0.1 / 257))."""
    text, (candidates,) = likely_lengths(counting(), "aa{{1..7}}bbb")
    assert text == "aa{{4}}bbb"
    right, wrong = -math.log(0.9), -math.log(0.1 / 257)
    for length, nats, stderr in candidates:
        misplaced = max(0, min(3, 4 - length))
        assert nats == pytest.approx(3 * right + misplaced * (wrong - right), rel=1e-5, abs=5 * stderr)


class Ending(Counting):
    """A network that holds an end token for the likelier the further it is behind the first letter, where all that it
    is asked about is hidden.
    """

    def __init__(self, ends: list[float]) -> None:
        self.ends, self.canvases = torch.tensor(ends), []

    def __call__(self, tokens, at, *, then=None, rows=None, level=None):
        assert level.tolist() == [1.0]
        assert (tokens.flatten()[at] == self.mask_id).all()
        self.canvases.append((tokens[0].tolist(), at.tolist()))
        p = self.ends[at - 2]  # behind the begin token and one letter
        logits = ((1 - p) / 257).log()[:, None].repeat(1, 258)
        logits[:, BYTES.end] = p.log()
        return logits if then is None else then(logits, slice(0, len(at)))


def test_the_length_by_the_end_token_is_the_median_of_its_law():
    """p(n <= k) is that of an end token at place k, of five; p(n <= 5) is 1."""
    model, done = Model(Ending([0.0, 0.1, 0.48, 0.6, 0.9]), BYTES, {}), []
    text, (candidates,) = likely_lengths(model, "a{{1..5}}b", by="end", progress=lambda *told: done.append(told))
    assert text == "a{{3}}b"
    assert done == [(5, 5)]
    assert [each.length for each in candidates] == [1, 2, 3, 4, 5]
    assert [math.exp(-each.nats) for each in candidates] == pytest.approx([0.1, 0.38, 0.12, 0.3, 0.1], rel=1e-5)
    # the least stands for all that are shorter; nothing need stand behind
    text, (candidates,) = likely_lengths(model, "a{{4..5}}", by="end")
    assert text == "a{{4}}"
    assert [math.exp(-each.nats) for each in candidates] == pytest.approx([0.9, 0.1], rel=1e-5)


def test_blanks_are_settled_by_their_own_end_tokens_from_the_left():
    """The next blank is as long as the middle of its range, then this one is as long as it was settled."""
    net = Ending([0.1, 0.1, 0.6, 0.1, 0.1, 0.1, 0.9, 0.9, 0.9])
    assert likely_lengths(Model(net, BYTES, {}), "a{{1..4}}b{{2..4}}c", by="end")[0] == "a{{2}}b{{3}}c"
    mask, (a, b, c) = BYTES.end + 1, b"abc"
    assert net.canvases == [
        ([BYTES.begin, a, *[mask] * 4, b, *[mask] * 3, c], [2, 3, 4, 5]),
        ([BYTES.begin, a, *[mask] * 2, b, *[mask] * 4, c], [5, 6, 7, 8]),
    ]


def test_what_is_no_law_of_lengths_is_made_one():
    """An end token less likely further right counts for as much as the one before."""
    text, (candidates,) = likely_lengths(Model(Ending([0.1, 0.4, 0.3, 0.3]), BYTES, {}), "a{{1..4}}b", by="end")
    assert text == "a{{4}}b"
    assert [math.exp(-each.nats) for each in candidates] == pytest.approx([0.4, 0.0, 0.0, 0.6], rel=1e-5)
    for certain, length in ((1.0, 2), (0.0, 4)):
        text, (candidates,) = likely_lengths(Model(Ending([certain] * 4), BYTES, {}), "a{{2..4}}b", by="end")
        assert text == f"a{{{{{length}}}}}b"
        assert all(math.isfinite(each.nats) for each in candidates)


def test_ranges_that_tell_nothing_are_refused():
    with pytest.raises(ValueError, match=r"give at most \{\{2..18\}\}"):
        likely_lengths(counting(), "a{{2..19}}b", by="end")
    with pytest.raises(ValueError, match=r"give at most \{\{20..40\}\}"):
        likely_lengths(counting(), "a{{20..41}}b", by="end")
    for by in ("text", "end"):
        with pytest.raises(ValueError, match=r"blank \{\{0..5\}\}"):
            likely_lengths(counting(), "a{{0..5}}b", by=by)


def test_only_what_stands_up_to_the_window_and_the_next_blank_is_scored():
    _, (candidates,) = likely_lengths(counting(), "aa{{4..5}}bbbbbbbb", window=2)
    assert candidates[0].nats == pytest.approx(-2 * math.log(0.9), rel=1e-5)
    text, found = likely_lengths(counting(), "aa{{4..5}}b{{2..3}}bb{{1..2}}")
    assert [len(each) for each in found] == [2, 2]
    assert found[0][0].nats == pytest.approx(-math.log(0.9), rel=1e-5)
    assert text.endswith("bb{{1..2}}")


def test_more_than_the_model_was_trained_for_is_refused_and_lengths_are_counted():
    net = replace(counting(), config={"requested": {"length": 14}})
    done: list[tuple[int, int]] = []
    likely_lengths(net, "aa{{4..5}}b{{2..3}}b{{1..2}}", progress=lambda *told: done.append(told))
    assert done == [(1, 4), (2, 4), (3, 4), (4, 4)]
    with pytest.raises(ValueError, match="the longest has 15 tokens, and the model was trained on 14: give smaller"):
        likely_lengths(net, "aa{{4..10}}bbb")


def test_fixed_blanks_stay_and_a_causal_model_is_refused():
    assert likely_lengths(counting(), "aa{{3}}bb") == ("aa{{3}}bb", [])
    causal = Model(Transformer(TransformerConfig(vocab=258, layers=1, heads=2, width=16, causal=True)), BYTES, {})
    with pytest.raises(ValueError, match="give its length"):
        likely_lengths(causal, "a{{1..2}}b")


def test_templates_in_batches(tmp_path):
    rows = [{"text": "a{{2}}b"}, {"prompt": "c", "suffix": "d", "length": 3}, {"prompt": "e"}]
    path = tmp_path / "t.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    texts = templates_of(path)
    assert texts == ["a{{2}}b", "c{{3}}d", "e{{64}}"]
    assert templates_of(path, 9) == ["a{{2}}b", "c{{3}}d", "e{{9}}"]
    network = Transformer(TransformerConfig(vocab=258, layers=1, heads=2, width=16))
    records = write(Model(network, BYTES, {}), texts, seed=1)
    assert [len(record["pieces"]) for record in records] == [5, 6, 66]
    path.write_text('{"template": "a"}\n{"texts": "b"}')
    with pytest.raises(ValueError, match=r't\.jsonl, line 2: no "template"'):
        templates_of(path)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "Use {{5}} braces", "length": 3}, "plain text, without {{ or }}"),
        ({"prompt": "\\frac{{a}}{{b}}"}, "plain text, without {{ or }}"),
        ({"prompt": "a", "suffix": "}}"}, "plain text, without {{ or }}"),
        ({"prompt": "a", "length": -3}, "length -3 must be at least 1"),
        ({"prompt": "a", "length": "3"}, '"length" is a str: give a int'),
        ({"prompt": "a", "length": True}, '"length" is a bool: give a int'),
        ({"prompt": "a", "suffix": 4}, '"suffix" is a int: give a str'),
        ({"prompt": "a", "lenght": 3}, '"lenght" does nothing beside prompt, suffix, length: correct it'),
        ({"prompt": "a", "template": "{{2}}"}, '"prompt" does nothing beside template'),
        ({"template": "a {{b}}"}, "a blank is {{8}}"),
        ({"template": "a {{0}}"}, "blank {{0}}"),
    ],
)
def test_rows_that_are_no_templates_are_named(tmp_path, row, said):
    path = tmp_path / "t.jsonl"
    path.write_text(json.dumps({"prompt": "a{", "suffix": "{b", "length": None}) + "\n" + json.dumps(row))
    with pytest.raises(ValueError, match=re.escape("t.jsonl, line 2: ") + ".*" + re.escape(said)):
        templates_of(path)
