"""Guidance by its weight and quality by its cost, on a network whose answers are known."""

from dataclasses import replace

import pytest
import torch

from unmask.checkpoint import Model
from unmask.data import byte_tokenizer
from unmask.evaluate.ablation import by_weight, measured, tradeoff_rows
from unmask.evaluate.answers import Asking, Question
from unmask.experiments.guidance import refuse_shared
from unmask.sampling import Confidence, Draw, LeftToRight, Tweedie

BYTES = byte_tokenizer()


class Echo:
    """Answers the digit that it is asked, surely only under guidance: without it another one is likelier."""

    vocab, mask_id, causal, normalised = 258, 258, False, True

    def __call__(self, tokens, at, *, then=None, rows=None, level=None):
        length, logits = tokens.shape[1], torch.zeros(len(at), 258)
        asked = tokens[at // length, 1]
        for i, (digit, place) in enumerate(zip(asked.tolist(), (at % length).tolist(), strict=True)):
            if place > 2:
                logits[i, BYTES.end] = 9.0
                continue
            logits[i, ord("9")] = 9.0
            if digit != self.mask_id:
                logits[i, digit] = 8.0  # likelier than without the question, less likely than 9
        return logits if then is None else then(logits, slice(0, len(at)))


MODEL = Model(Echo(), BYTES, {})
ASKING = Asking(policy=Confidence(), draw=Draw(temperature=0), block=4, seed=0)


def questions(digits: str) -> list[Question]:
    return [Question(i, (digit,), False, (f"#### {digit}",)) for i, digit in enumerate(digits)]


def test_the_weight_is_chosen_on_the_first_part():
    parts = {"development": questions("0123"), "test": questions("4567")}

    def measure(some: list[Question], weight: float) -> dict:
        return measured(MODEL, some, replace(ASKING, guidance=weight), "echo")

    rows = by_weight(parts, [0.0, 0.5, 1.0, 3.0], measure)
    found = {(row["part"], row["guidance"]): row for row in rows}
    assert [found["development", w]["exact_match"] for w in (0.0, 0.5, 1.0, 3.0)] == [0, 1, 1, 1]
    assert {weight for part, weight in found if part == "test"} == {0.0, 0.5}
    assert (found["test", 0.0]["exact_match"], found["test", 0.5]["exact_match"]) == (0, 1)
    assert found["test", 0.5]["nfe"] == 2 * found["test", 0.0]["nfe"]


def test_no_other_part_chooses_the_weight():
    right = {"development": {0.0: 0.0, 0.5: 1.0}, "test": {0.0: 2.0, 0.5: 0.5}, "more": {0.0: 0.0, 0.5: 0.0}}
    parts = {part: [Question(part, (part,), False)] for part in right}
    rows = by_weight(parts, [0.5], lambda some, weight: {"exact_match": right[str(some[0].id)][weight]})
    assert [(row["part"], row["guidance"]) for row in rows] == [(part, weight) for part in parts for weight in (0, 0.5)]


def test_a_question_of_both_parts_is_refused():
    with pytest.raises(ValueError, match="'3' is a question of the development and of the test part"):
        refuse_shared(questions("0123"), questions("34"))


def test_a_tradeoff_has_a_row_a_way_with_its_cost():
    for policy, nfe in ((Tweedie(steps=1), 1), (LeftToRight(), 4)):
        ways = {"other": ASKING, "echo": Asking(policy=policy, block=4)}
        rows = tradeoff_rows({"other": MODEL, "echo": MODEL}, questions("0123456789"), ways)
        assert [row["policy"] for row in rows] == [repr(ASKING.policy), repr(policy)]
        assert rows[1]["nfe"] <= nfe
        assert all(row["seconds_per_answer"] > 0 and row["questions"] == 10 for row in rows)
