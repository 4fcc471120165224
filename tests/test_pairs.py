"""Fine-tuning sets: layouts, templates, what is malformed, and that the loss sees answers and nothing else."""

import gzip
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from unmask.checkpoint import convert, load
from unmask.cli import main
from unmask.data import Tokenizer, byte_tokenizer, load_split, prepare_pairs, sequences
from unmask.data.pairs import (
    CHAT_TEMPLATE,
    Between,
    Blanks,
    Chat,
    Malformed,
    Pairs,
    PairSet,
    Plain,
    Reading,
    Template,
    encode,
    load_pairs,
    load_template,
    prompt_ids,
    rows_of,
    template_of,
)
from unmask.data.pairs.encoding import UNIFORMS, blanked
from unmask.data.sides import Sides
from unmask.data.sources import source_of
from unmask.evaluate.answers import questions_of
from unmask.files import alone, read_json, read_lines, write_json
from unmask.objectives import AnyOrder, LambdaDCE, NextToken, TimeDCE
from unmask.train import Optimiser, TrainConfig, expected_level, train
from unmask.transformer import Transformer, TransformerConfig
from unmask.wrappers import Apart

BYTES = byte_tokenizer()
ROWS = [{"prompt": f"{a}+{b}=", "response": str(a + b)} for a in range(12) for b in range(12)]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def jsonl(path: Path, rows: list) -> str:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return str(path)


def prepared_sums(folder: Path) -> Path:
    return prepare_pairs(jsonl(folder / "sums.jsonl", ROWS), folder / "data", tokenizer="characters").folder


@pytest.fixture(scope="module")
def sums(tmp_path_factory) -> Path:
    return prepared_sums(tmp_path_factory.mktemp("sums"))


def plain_set(examples: list[tuple[str, str]]) -> PairSet:
    encoded = [encode(Plain(*each), BYTES, Template(), np.zeros(UNIFORMS)) for each in examples]
    lengths = np.array([len(each.ids) for each in encoded])
    ids, answer = (np.concatenate([getattr(each, name) for each in encoded]) for name in ("ids", "answer"))
    return PairSet(ids, answer, np.cumsum(lengths) - lengths, lengths)


def pairs(examples: list[tuple[str, str]], length: int, packed: bool = False, causal: bool = False) -> Pairs:
    return Pairs(plain_set(examples), length, BYTES.begin, BYTES.end, packed, causal)


def network(causal: bool = False, shifted: bool = False) -> Transformer:
    sizes = TransformerConfig(vocab=258, layers=2, heads=2, width=32, causal=causal, shifted=shifted)
    return Transformer(sizes, seed=1).double()


def test_an_answer_between_two_texts():
    """Given, answered, given; 0 to 16 end tokens stand behind it, or as many as it is long, and none at the end."""
    for written, u, ends in (("is very", 0.0, 0), ("is very", 0.5, 8), ("is very", 0.999, 16), ("o" * 30, 0.999, 30)):
        ids, answer = encode(Between("The sky ", written, " blue."), BYTES, Template(), np.full(UNIFORMS, u))
        assert ids.tolist() == [*b"The sky ", *written.encode(), *[BYTES.end] * ends, *b" blue."]
        assert "".join("01"[int(bit)] for bit in answer) == "0" * 8 + "1" * (len(written) + ends) + "0" * 6
    with pytest.raises(ValueError, match="empty"):
        Reading()({"prompt": "a", "suffix": "c", "response": " "})


def test_such_pairs_are_prepared_and_are_no_questions(tmp_path, monkeypatch):
    rows = [{"prompt": f"{i} + ", "response": f"{i}", "suffix": f" = {2 * i}"} for i in range(40)]
    source = jsonl(tmp_path / "a.jsonl", rows)
    folder = prepare_pairs(source, tmp_path / "d", tokenizer="characters", validation=0.3).folder
    found = load_pairs(folder, "train")
    first = found.ids[: found.lengths[0]]
    assert Tokenizer.load(folder).decode(first[first != Tokenizer.load(folder).end].tolist()).count("=") == 1
    with pytest.raises(ValueError, match=r"a.jsonl, line 1: .*unmask sample --templates fills blanks"):
        questions_of(source)
    # where blanks had another room, the folder holds something else
    assert prepare_pairs(source, folder, tokenizer="characters", validation=0.3).folder == folder
    monkeypatch.setattr("unmask.data.pairs.preparing.ROOM", 0)
    with pytest.raises(ValueError, match="holds something else"):
        prepare_pairs(source, folder, tokenizer="characters", validation=0.3)


def test_each_source_has_a_share_of_its_own(tmp_path):
    """Three bad rows of four to be held out are not lost among three hundred good ones."""
    good = [{"prompt": f"{i}?", "response": "so"} for i in range(300)]
    learnt, held_out = jsonl(tmp_path / "a.jsonl", good), tmp_path / "b.jsonl"
    held_out.write_text('{"prompt": "x?", "response": "so"}\n1\n2\n3\n')
    with pytest.raises(ValueError, match=r"3 of 4 rows cannot be used, more than the share of 0.01"):
        prepare_pairs(learnt, tmp_path / "d", tokenizer="bytes", held_out=str(held_out))
    assert not (tmp_path / "d").exists()


# what a row says


@pytest.mark.parametrize(
    ("row", "example"),
    [
        ({"prompt": "Who is", "completion": " Ann."}, Plain("Who is", " Ann.")),
        ({"prompt": "1+1=", "response": "2"}, Plain("1+1=", "2")),
        ({"instruction": "Add", "input": "1, 2", "output": "3"}, Chat((("user", "Add\n\n1, 2"), ("assistant", "3")))),
        ({"instruction": "Hi", "input": "", "output": "Ho"}, Chat((("user", "Hi"), ("assistant", "Ho")))),
        ({"instruction": "Hi", "response": "Ho"}, Chat((("user", "Hi"), ("assistant", "Ho")))),
        ({"question": "Q?", "answer": "A."}, Chat((("user", "Q?"), ("assistant", "A.")))),
        ({"question": " Q? ", "answer": "1+1=<<1+1=2>>2\n#### 2"}, Plain("Q?\n", "1+1=<<1+1=2>>2\n#### 2")),
        ({"prompt": "Q?", "response": "<<1+1=2>> #### 2"}, Plain("Q?\n", "<<1+1=2>>\n#### 2")),
        ({"text": "a b c d"}, Blanks("a b c d")),
        ({"prompt": "a ", "suffix": " c", "response": "b"}, Between("a ", "b", " c")),
        ({"prompt": "", "suffix": " c", "completion": "b"}, Between("", "b", " c")),
        ({"prompt": "a ", "suffix": "", "response": "b"}, Plain("a ", "b")),
        ({"prompt": "a ", "suffix": None, "response": "b"}, Plain("a ", "b")),
        ({"prompt": "a\r\nb", "response": "c\rd"}, Plain("a\nb", "c\nd")),
        (
            {"system": "S", "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]},
            Chat((("system", "S"), ("user", "Hi"), ("assistant", "Ho"))),
        ),
        (
            {"system": "", "instruction": "Hi", "output": "Ho", "history": [["a", "b"]]},
            Chat((("user", "a"), ("assistant", "b"), ("user", "Hi"), ("assistant", "Ho"))),
        ),
        (  # a table's row has every column
            {"messages": None, "prompt": None, "response": None, "instruction": "Hi", "output": "Ho", "history": None},
            Chat((("user", "Hi"), ("assistant", "Ho"))),
        ),
        (
            {
                "messages": [
                    {"role": "system", "content": "S"},
                    *({"role": r, "content": r} for r in ("user", "assistant")),
                ]
            },
            Chat((("system", "S"), ("user", "user"), ("assistant", "assistant"))),
        ),
        (
            {
                "conversations": [
                    {"from": who, "value": str(i)} for i, who in enumerate(("gpt", "human", "gpt", "human"))
                ]
            },
            Chat((("user", "1"), ("assistant", "2"))),
        ),
    ],
)
def test_every_published_layout_is_read(row, example):
    assert Reading()(row) == [example]


def test_a_reasoned_answer_in_two_passes_and_a_chat_of_one_turn():
    two = Reading(passes=2)({"question": "Q?", "answer": "so\n#### 1,000"})
    assert [(each.prompt, each.answer) for each in two] == [("Q?\n", "so"), ("Q?\nso\n####", " 1,000")]
    turns = [{"from": who, "value": f"{who} {i}"} for i in range(3) for who in ("human", "gpt")]
    (chat,) = Reading(turns=1)({"conversations": turns})
    assert chat.messages == (("user", "human 0"), ("assistant", "gpt 0"))


def test_a_heading_is_no_answer_of_a_chain():
    answer = "#### Plan\n\nDo this, then that."
    assert Reading()({"prompt": "How?", "response": answer}) == [Plain("How?", answer)]


def test_blank_lines_in_an_answer_take_no_time():
    """They took time in the square of their number: minutes."""
    answer = "a" + "\n" * 300_000 + "b"
    assert Reading()({"prompt": "How?", "response": answer}) == [Plain("How?", answer)]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "a"}, "no known layout"),
        ({"prompt": "a", "response": 3}, "'response' is a int, no text"),
        ({"prompt": "a", "response": "  "}, "'response' is empty"),
        ({"prompt": "a", "response": "\ud800"}, "surrogate"),
        ({"prompt": None, "response": "a"}, "'prompt' is missing"),
        ({"prompt": "a", "response": "b", "system": "c"}, "'system' or 'history' beside plain text"),
        ({"question": "a", "answer": "b #### 1", "system": "c"}, "'system' or 'history' beside plain text"),
        ({"instruction": "a", "output": "b", "history": "c"}, "'history' is no list of questions with their answers"),
        ({"instruction": "a", "output": "b", "history": [["c", ""]]}, "'history' is empty"),
        ({"messages": "hello"}, "no list of messages"),
        ({"messages": [{"role": "user", "content": "a"}]}, "no answer"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "a message from 'tool'"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]}, "take turns"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "system", "content": "b"}]}, "not the first"),
    ],
)
def test_what_a_malformed_row_lacks_is_said(row, reason):
    with pytest.raises(ValueError, match=reason):
        Reading()(row)


def test_malformed_rows_are_counted_with_their_lines_and_stop_above_a_share(tmp_path):
    bad = ["{", "[1]", {"prompt": "x"}, ""]
    source = jsonl(tmp_path / "a.jsonl", [*ROWS[:50], *bad, *ROWS[50:97]])
    prepared = prepare_pairs(source, tmp_path / "out", tokenizer="bytes", allowed=0.03)
    assert prepared.rows == 100
    assert [str(each).split(":")[0] for each in prepared.malformed] == [f"a.jsonl, line {n}" for n in (51, 52, 53)]
    with pytest.raises(ValueError, match=r"3 of 100 rows .* share of 0.02 .*line 51: not JSON; .*line 52: a list, no"):
        prepare_pairs(source, tmp_path / "other", tokenizer="bytes", allowed=0.02)
    assert not (tmp_path / "other").exists()


def test_rows_that_cannot_be_encoded_are_counted_too(tmp_path):
    """A text too short for a blank, a chat that the template refuses, a letter of no token: by place, not a stop."""
    texts = jsonl(tmp_path / "a.jsonl", [*({"text": f"text number {i}"} for i in range(98)), {"text": "ab"}])
    prepared = prepare_pairs(texts, tmp_path / "texts", tokenizer="bytes", allowed=0.02)
    (short,) = prepared.malformed
    assert str(short) == "a.jsonl, line 99: a text of 2 tokens is too short for a blank"
    assert prepare_pairs(texts, tmp_path / "texts", tokenizer="bytes", allowed=0.02) == prepared  # and known ever after
    with pytest.raises(ValueError, match="1 of 99 rows cannot be used"):
        prepare_pairs(texts, tmp_path / "texts", tokenizer="bytes", allowed=0.001)
    with pytest.raises(ValueError, match="1 of 99 rows cannot be used"):
        prepare_pairs(texts, tmp_path / "none", tokenizer="bytes", allowed=0.001)
    template = tmp_path / "template.jinja"
    refusal = "{% if messages | length > 2 %}{{ raise_exception('one turn alone') }}{% endif %}"
    template.write_text(f"{refusal}{{% for m in messages %}}<{{{{ m.role }}}}>{{{{ m.content }}}}{{% endfor %}}")
    turn = [{"role": "user", "content": "a question"}, {"role": "assistant", "content": "its answer"}]
    chats = [{"messages": [*turn[:1], {**turn[1], "content": str(i)}]} for i in range(30)]
    held_out = jsonl(tmp_path / "held.jsonl", [{"messages": turn}])
    made = jsonl(tmp_path / "b.jsonl", [*chats, {"messages": turn * 2}])
    options = {"tokenizer": "characters", "template": str(template), "held_out": held_out, "allowed": 0.1}
    prepared = prepare_pairs(made, tmp_path / "chats", **options)
    assert [str(each) for each in prepared.malformed] == ["b.jsonl, line 31: the chat template refuses: one turn alone"]
    letters = Tokenizer.load(prepared.folder)  # of the template's own words, and of both sides
    assert letters.decode(letters.encode("<user>its")) == "<user>its"
    strange = jsonl(tmp_path / "c.jsonl", [*ROWS[:60], {"prompt": "é", "response": "e"}])
    prepared = prepare_pairs(strange, tmp_path / "strange", tokenizer=str(prepared_sums(tmp_path)), allowed=0.1)
    assert [each.place for each in prepared.malformed] == ["c.jsonl, line 61"]
    with pytest.raises(ValueError, match="none of the 1 examples for validation can be used"):
        prepare_pairs(made, tmp_path / "empty", **{**options, "held_out": jsonl(tmp_path / "d.jsonl", [{"text": "a"}])})


def test_rows_of_every_kind_of_file(tmp_path):
    rows = [{"prompt": "a", "response": "b"}, {"prompt": "c", "response": "d"}]
    pyarrow = pytest.importorskip("pyarrow")
    pyarrow.parquet = pytest.importorskip("pyarrow.parquet")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    (tmp_path / "a.json").write_text(json.dumps(rows))
    (tmp_path / "a.txt").write_text("a||b\n\nc||d\n")
    (tmp_path / "a.tsv").write_text("a\tb\r\nc\td")
    sources = [str(tmp_path / f"a.{kind}") for kind in ("parquet", "json", "txt", "tsv")]
    assert [[row for _, row in rows_of(source)] for source in sources] == [rows] * 4
    assert [place for place, _ in rows_of(sources[2])] == ["a.txt, line 1", "a.txt, line 3"]
    (tmp_path / "b.tsv").write_text("a\tb\tc\nd||e\tf\n")
    (_, third), (_, fourth) = rows_of(str(tmp_path / "b.tsv"))
    assert str(third).startswith("b.tsv, line 1: more than one tab")
    assert fourth == {"prompt": "d", "response": "e\tf"}
    (tmp_path / "c.tsv").write_text("Question\tAnswer\na\tb\n")
    with pytest.raises(ValueError, match=r"c\.tsv, line 1: names of columns, no example: remove it"):
        list(rows_of(str(tmp_path / "c.tsv")))
    (tmp_path / "b.json").write_text('[1, {"text": "x"}]')
    first, second = (row for _, row in rows_of(str(tmp_path / "b.json")))
    assert isinstance(first, Malformed)
    assert second == {"text": "x"}
    with pytest.raises(ValueError, match="no such file"):
        list(rows_of("nowhere.jsonl"))


def test_a_files_suffix_compression_and_line_ends_are_those_of_running_text(tmp_path):
    rows = [{"prompt": "a", "response": "b"}, {"prompt": "c", "response": "d"}]
    lines = "\n".join(map(json.dumps, rows)).encode()
    files = {"A.JSONL": lines, "a.ndjson": lines, "a.jsonl.gz": gzip.compress(lines), "a.txt": b"a||b\rc||d\r"}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
        assert [row for _, row in rows_of(str(tmp_path / name))] == rows
    (tmp_path / "a.jsonl.gz").write_bytes(files["a.jsonl.gz"][:-9])
    with pytest.raises(ValueError, match=r"cannot read .*a\.jsonl\.gz: "):
        list(rows_of(str(tmp_path / "a.jsonl.gz")))


def test_additions_are_right_and_on_one_side_only():
    learnt, asked = (
        {row["prompt"]: row["response"] for _, row in rows_of(name)} for name in ("addition", "addition:test")
    )
    assert (len(learnt), len(asked)) == (60_000, 4_000)
    assert not learnt.keys() & asked.keys()
    assert all(sum(map(int, p[:-1].split("+"))) == int(r.strip()[::-1]) for p, r in (*learnt.items(), *asked.items()))
    assert [sum(len(r) == n for r in learnt.values()) for n in (4, 5, 6)] == [20_000] * 3


def test_continuations_are_text_as_it_stands_and_held_out_by_document():
    learnt, asked = (
        [row["prompt"] + row["response"] for _, row in rows_of(name)] for name in ("continuation", "continuation:test")
    )
    assert all(len(text.split()) == 16 for text in (*learnt, *asked))
    side = {True: "", False: ""}
    for held_out, _, part in Sides.of([source_of("builtin")], 0.05).parts():  # as `unmask prepare` does
        side[held_out] += " ".join(part.text.split()) + " "
    assert all(text in side[True] for text in asked[:200])
    assert all(text in side[False] for text in learnt[:200])


# templates


@pytest.mark.parametrize("source", [Template().source, CHATML])
def test_templates_round_trip(source):
    """Pieces join to the text; answers are what the assistant says; asking gives what stands before the answer."""
    messages = (
        ("system", "Be kind."),
        ("user", "{{ 1 }}"),
        ("assistant", "One <|im_end|>"),
        ("user", "b"),
        ("assistant", "B"),
    )
    template = Template(source, "", "<|end|>", ("<|im_start|>", "<|im_end|>", "<|end|>"))
    pieces = template(messages)
    text = "".join(piece.text for piece in pieces)
    assert all(content in text for _, content in messages)
    close = "<|im_end|>" if source == CHATML else "<|end|>"
    answers = "".join(piece.text for piece in pieces if piece.answer)
    assert answers.split() == f"One <|im_end|>{close} B{close}".split() or answers == f"One <|im_end|>{close}B{close}"
    asked = "".join(piece.text for piece in template(messages[:2], ask=True))
    before = "".join(piece.text for piece in pieces[: [piece.answer for piece in pieces].index(True)])
    assert asked == before
    assert not any(piece.special for piece in pieces if piece.text in dict(messages).values())


def test_special_tokens_are_the_templates_alone():
    """What a user writes stays text even where it spells a special token."""
    template = Template(Template().source, "", "<|end|>", ("<|end|>",))
    ids = encode(Chat((("user", "<|end|>"), ("assistant", "no"))), BYTES, template, np.zeros(UNIFORMS))
    assert ids.ids.tolist().count(BYTES.end) == 1
    assert BYTES.decode(ids.ids) == "User: <|end|>\nAssistant: no"
    assert BYTES.decode(ids.ids[ids.answer]) == " no"
    assert ids.ids[-1] == BYTES.end
    assert ids.answer[-1]


def test_a_broken_template_is_refused():
    with pytest.raises(ValueError, match="no Jinja"):
        Template("{% for %}")((("user", "a"),))
    with pytest.raises(ValueError, match="leaves out"):
        Template("{{ messages[0].content }}")((("user", "a"), ("assistant", "b")))
    with pytest.raises(ValueError, match="refuses: only users"):
        Template("{{ raise_exception('only users') }}")((("user", "a"),))
    for source in ("{{ 1/0 }}", "{{ messages[0]['content'] + 1 }}", "{{ range(10**9) | list }}"):
        with pytest.raises(ValueError, match=r"refuses: [^\n]+$"):
            Template(source)((("user", "a"),))


def test_templates_find_what_published_ones_ask_for():
    """Loops with a way out, the mark of what is learnt, tools that are none; today's date where they insist on it."""
    template = Template(
        "{% if tools is not none %}{{ tools[0] }}{% endif %}"
        "{% if strftime_now is defined %}{{ strftime_now('%d') }}{% else %}26 Jul: {% endif %}"  # Llama 3.2's way
        "{% for m in messages %}{% if loop.index > 2 %}{% break %}{% endif %}"
        "{% generation %}{{ m.content }}.{% endgeneration %}{% endfor %}"
    )
    pieces = template((("user", "a"), ("assistant", "b")))
    assert "".join(piece.text for piece in pieces) == "26 Jul: a.b."
    with pytest.raises(ValueError, match=r"refuses: strftime_now would write today's date, .*: write a date"):
        Template("{{ strftime_now('%d') }}{{ messages[0].content }}")((("user", "a"),))


def test_a_special_token_behind_a_blank_ends_an_answer():
    """Llama 2's and Mistral's way; the end token of every answer but the last was not learnt."""
    template = Template("{% for m in messages %} {{ m.content }} {{ eos_token }}{% endfor %}", "", "</s>", ("</s>",))
    pieces = template((("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")))
    assert "".join(piece.text for piece in pieces if piece.answer) == " b </s> d </s>"


def test_the_prompt_of_an_example_is_what_a_model_is_asked_with():
    template = Template(Template().source, "", "<|end|>", ("<|end|>",))
    for example in (Plain("1+1=", "2"), Chat((("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")))):
        encoded = encode(example, BYTES, template, np.zeros(UNIFORMS))
        asked = prompt_ids(example, BYTES, template)
        assert encoded.ids[: len(asked)].tolist() == asked
        assert encoded.answer[len(asked) :].all()


# batches


def test_only_answers_are_maskable_and_end_tokens_fill_the_block():
    x_0, maskable, _ = pairs([("ab", "cd"), ("e", "f")], 7).take([0, 1])
    end, begin = BYTES.end, BYTES.begin
    a, b, c, d, e, f = b"abcdef"
    assert x_0.tolist() == [[begin, a, b, c, d, end, end, end], [begin, e, f, *[end] * 5]]
    assert maskable.tolist() == [[False] * 3 + [True] * 5, [False] * 2 + [True] * 6]


def test_packed_examples_stand_behind_begin_tokens_of_their_own():
    x_0, maskable, _ = (packed := pairs([("ab", "cd"), ("e", "f"), ("g", "h")], 10, packed=True)).take([0, 1])
    end, begin = BYTES.end, BYTES.begin
    a, b, c, d, e, f, g, h = b"abcdefgh"
    assert x_0.tolist() == [[begin, a, b, c, d, end, begin, e, f, end, end], [begin, g, h, *[end] * 8]]
    assert maskable[0].tolist() == [False] * 3 + [True] * 3 + [False] * 2 + [True] * 2 + [False]
    assert maskable[1].tolist() == [False] * 2 + [True] * 2 + [False] * 7
    assert packed.segments([0, 1]).tolist() == [[0] * 6 + [1] * 4 + [-1], [2] * 4 + [-1] * 7]


def test_every_example_is_in_one_row_and_long_ones_are_left_out():
    examples = [("x" * (i % 9), "y" * (1 + i % 5)) for i in range(50)]
    for packed in (False, True):
        made = pairs(examples, 10, packed)
        kept = [i for row in made.rows for i in row.tolist()]
        assert kept == [i for i, (p, a) in enumerate(examples) if len(p + a) + 1 <= 10]
        assert made.left_out == 50 - len(kept) > 0
    assert len(pairs(examples, 30, True)) < len(pairs(examples, 30)) / 2
    with pytest.raises(ValueError, match="the longest has 13"):
        _ = pairs([("x" * 10, "ab")], 12)


@pytest.mark.parametrize("length", [14, 15, 20])  # no filling, one token, several
@pytest.mark.parametrize(("causal", "shifted"), [(False, False), (True, False), (False, True)])
def test_packing_changes_no_loss(causal, shifted, length):
    """The likelihood of packed examples, kept apart, is the sum of theirs alone; without `Apart` it is another."""
    examples = [("ab", "cd"), ("e", "fgh"), ("", "i")]
    net, u = network(causal, shifted), torch.ones(1, dtype=torch.float64) * (1 - 1e-9)  # all that is maskable is masked
    objective = NextToken() if causal else AnyOrder()

    def nats(made: Pairs, row: int) -> float:
        x_0, maskable, _ = made.take([row])
        reader = Apart(net, made.segments([row])) if made.apart else net
        value = objective(reader, x_0, maskable, u, torch.Generator())
        # any-order weighs the masked positions by n/k = 1 here
        return float(value.detach())

    alone = sum(nats(pairs([example], len("".join(example)) + 1), 0) for example in examples)
    packed = pairs(examples, length, True, causal)
    assert len(packed) == 1
    assert nats(packed, 0) == pytest.approx(alone, rel=1e-5)
    x_0, maskable, _ = packed.take([0])
    assert float(objective(net, x_0, maskable, u, torch.Generator()).detach()) != pytest.approx(alone, rel=1e-5)


@pytest.mark.parametrize("causal", [False, True])
def test_nothing_is_seen_behind_a_text_that_is_given(causal):
    """A blank's loss is that of the text alone, however much fills its block; an answer's filling is learnt."""
    ids = np.array([*b"abXYcd", *b"efghij"])
    answer = np.array([False] * 2 + [True] * 2 + [False] * 2 + [False] * 3 + [True] * 3)
    examples, net = PairSet(ids, answer, np.array([0, 6]), np.array([6, 6])), network(causal)
    objective, u = NextToken() if causal else AnyOrder(), torch.ones(1, dtype=torch.float64) * (1 - 1e-9)

    def nats(row: int, length: int, apart: bool = True) -> float:
        made = Pairs(examples, length, BYTES.begin, BYTES.end, causal=causal)
        assert made.apart
        x_0, maskable, _ = made.take([row])
        assert int(maskable.sum()) == (3 + length - 6 if row else 2)
        reader = Apart(net, made.segments([row])) if apart else net
        return float(objective(reader, x_0, maskable, u, torch.Generator()).detach())

    assert nats(0, 9) == pytest.approx(nats(0, 6), rel=1e-9)
    assert nats(1, 9) == pytest.approx(nats(1, 9, apart=False), rel=1e-9)
    if not causal:
        assert nats(0, 9, apart=False) != pytest.approx(nats(0, 6), rel=1e-6)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("objective", [AnyOrder(), LambdaDCE(), TimeDCE(), NextToken()])
def test_the_loss_sees_only_answers(objective, packed):
    """No token that only prompts hold is ever a target. Planted fault: with the prompt maskable, it is."""
    causal = isinstance(objective, NextToken)
    made = pairs([("ab", "cd"), ("ba", "dc")], 12, packed)
    index = list(range(len(made)))
    x_0, maskable, _ = made.take(index)

    def targets(maskable: torch.Tensor) -> torch.Tensor:
        net, scored = network(causal), torch.zeros(258, dtype=torch.bool)

        class Spy:
            vocab, mask_id, normalised = net.vocab, net.mask_id, True
            causal = net.causal

            def __call__(self, tokens, at, *, then=None, rows=None, level=None):
                assert not bool((x_0.flatten()[at] == BYTES.begin).any())
                scored[x_0.flatten()[at]] = True
                return net(tokens, at, then=then, rows=rows, level=level)

        for seed in range(20):
            u = torch.rand(len(x_0), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
            objective(Spy(), x_0, maskable, u, torch.Generator().manual_seed(seed))
        return scored

    prompt, answer = [ord(c) for c in "ab"], [ord(c) for c in "cd"]
    seen = targets(maskable)
    assert not seen[prompt].any()
    assert seen[answer].all()
    fault = maskable | (x_0 < 256)
    assert targets(fault)[prompt].all()


@pytest.mark.parametrize("causal", [False, True])
def test_no_gradient_reaches_the_prompts_targets(causal):
    """d loss / d logits is zero at every position of the prompt, and nowhere in the answer."""
    made = pairs([("ab", "cd")], 8)
    x_0, maskable, _ = made.take([0])
    net = network(causal)
    full = torch.arange(x_0.numel())[1:]
    out = net(x_0.masked_fill(maskable, net.mask_id) if not causal else x_0, full)
    out.retain_grad()
    nats = -(out.log_softmax(-1).gather(-1, x_0.flatten()[full][:, None]).squeeze(-1) * maskable.flatten()[full]).sum()
    nats.backward()
    rows = out.grad.abs().sum(-1)
    assert bool((rows[~maskable.flatten()[full]] == 0).all())
    assert bool((rows[maskable.flatten()[full]] > 0).all())
    objective = NextToken() if causal else AnyOrder()
    u = torch.tensor([1 - 1e-9], dtype=torch.float64)
    loss = objective(net, x_0, maskable, u, torch.Generator())
    assert float(loss.detach()) == pytest.approx(float(nats.detach()), rel=1e-5)


def test_dropped_prompts_hide_what_is_given_and_nothing_else():
    count, options = 400, {"share": 0.25, "absent": 258, "seed": 3, "step": 5}
    made = pairs([("ab", "cd"), ("e", "fg")] * count, 12, packed=True)
    rows = list(range(count))
    x_0, maskable, _ = made.take(rows)
    hidden = made.without_prompts(x_0, maskable, rows, **options)
    assert torch.equal(hidden[maskable], x_0[maskable])
    assert bool((hidden[:, [0, 6]] == BYTES.begin).all())
    assert bool((hidden[:, 10:] == BYTES.end).all())
    first, second = (hidden[:, 1:3] == 258), hidden[:, 7] == 258
    assert bool((first[:, 0] == first[:, 1]).all())
    for share in (first[:, 0].double().mean(), second.double().mean()):
        assert abs(float(share) - 0.25) < 4 * (0.25 * 0.75 / count) ** 0.5
    assert bool((first[:, 0] != second).any())  # examples of a row are drawn apart
    part = made.without_prompts(x_0[100:], maskable[100:], rows[100:], **options)
    assert torch.equal(part, hidden[100:])  # whichever process has them
    one = pairs([("ab", "cd")], 8)
    x_0, maskable, _ = one.take([0])
    hidden = one.without_prompts(x_0, maskable, [0], **{**options, "share": 1.0})
    assert hidden[0, :4].tolist() == [BYTES.begin, 258, 258, ord("c")]


def test_blanks_keep_the_text_and_close_with_end_tokens():
    ids, rng = np.arange(40), np.random.default_rng(0)
    answered = []
    for _ in range(300):
        made = blanked(ids, 257, rng.random(UNIFORMS))
        assert made.ids[made.ids != 257].tolist() == ids.tolist()
        assert made.answer[made.ids == 257].all()
        inside = np.diff(np.flatnonzero(np.diff(np.concatenate([[0], made.answer, [0]]))).reshape(-1, 2))[:, 0]
        assert 1 <= len(inside) <= 3
        answered.append(made.answer[made.ids != 257].mean())
    assert 0.1 < np.mean(answered) < 0.6


# on disk, and through the one trainer


def test_a_question_stands_on_one_side_only(sums, tmp_path):
    rows = [{"question": f"Q{i}?", "answer": f"because {i}\n#### {i}"} for i in range(40)]
    source = jsonl(tmp_path / "q.jsonl", rows)
    folder = prepare_pairs(source, tmp_path / "d", tokenizer="bytes", validation=0.3, reading=Reading(passes=2)).folder
    tokenizer, asked = Tokenizer.load(folder), {}
    for split in ("train", "validation"):
        made = load_pairs(folder, split)
        texts = [tokenizer.decode(made.ids[s : s + n]) for s, n in zip(made.starts, made.lengths, strict=True)]
        asked[split] = {text.split("?")[0] for text in texts}
        assert len(texts) == 2 * len(asked[split])
    assert not asked["train"] & asked["validation"]
    assert len(asked["train"] | asked["validation"]) == 40
    assert 4 <= len(asked["validation"]) <= 20
    assert load_template(folder, tokenizer).source == Template().source


def test_the_same_request_is_answered_again_and_another_is_refused(sums, tmp_path):
    source = jsonl(tmp_path / "a.jsonl", ROWS)
    options = {"tokenizer": "characters", "held_out": jsonl(tmp_path / "b.jsonl", ROWS[:7])}
    folder = prepare_pairs(source, tmp_path / "d", **options).folder
    assert len(load_pairs(folder, "validation").lengths) == 7
    before = (folder / "manifest.json").stat().st_mtime_ns
    prepare_pairs(source, folder, **options)
    assert (folder / "manifest.json").stat().st_mtime_ns == before
    assert {path.name for path in tmp_path.iterdir()} == {"a.jsonl", "b.jsonl", "d"}  # no lock, no part
    with pytest.raises(ValueError, match="holds something else"):
        prepare_pairs(source, folder, tokenizer="bytes")
    with pytest.raises(ValueError, match="no tokenizer 'words'"):
        prepare_pairs(source, tmp_path / "e", tokenizer="words")


def test_the_template_beside_the_tokenizer_is_part_of_the_request(tmp_path):
    """Planted fault: after it had changed, the same command gave the old texts."""
    source = jsonl(tmp_path / "a.jsonl", [{"instruction": f"Say {i}", "output": str(i)} for i in range(9)])
    tokenizer = tmp_path / "tokenizer.json"
    BYTES.save(tokenizer)
    (tmp_path / CHAT_TEMPLATE).write_text("{% for m in messages %}[{{ m.content }}]{% endfor %}")
    prepare_pairs(source, tmp_path / "d", tokenizer=str(tokenizer))
    (tmp_path / CHAT_TEMPLATE).write_text("{% for m in messages %}({{ m.content }}){% endfor %}")
    with pytest.raises(ValueError, match="holds something else"):
        prepare_pairs(source, tmp_path / "d", tokenizer=str(tokenizer))


def test_texts_without_a_prompt_are_not_one_question(tmp_path):
    rows = [{"prompt": "", "completion": f"Text number {i}"} for i in range(40)]
    folder = prepare_pairs(jsonl(tmp_path / "a.jsonl", rows), tmp_path / "d", tokenizer="bytes", validation=0.3).folder
    assert 4 <= len(load_pairs(folder, "validation").lengths) <= 20


@pytest.mark.parametrize("damage", [lambda data: data[:300], lambda data: data[:-1] + b"\xff", None])
def test_damaged_pairs_are_refused_by_all_that_read_them(tmp_path, damage):
    """Cut short, with a token that is another, or missing: in one line, and not called whole."""
    file = prepared_sums(tmp_path) / "train.safetensors"
    file.unlink() if damage is None else file.write_bytes(damage(file.read_bytes()))
    for call in (lambda: prepared_sums(tmp_path), lambda: load_pairs(tmp_path / "data", "train")):
        with pytest.raises(ValueError, match=r"train.safetensors is missing or damaged: delete .*data and run unmask"):
            call()


def test_one_process_prepares_a_folder_and_clears_what_a_killed_one_left(tmp_path):
    (tmp_path / ".data.partial").mkdir()
    (tmp_path / ".data.partial" / "torn").write_text("")
    with alone(tmp_path / ".data.lock", ""), pytest.raises(ValueError, match="data: already being prepared by"):
        prepared_sums(tmp_path)
    prepared_sums(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"sums.jsonl", "data"}


def config(data: Path, causal: bool = False, **changes) -> TrainConfig:
    vocab = Tokenizer.load(data).vocab
    made = TrainConfig(
        network=TransformerConfig(vocab=vocab, layers=1, heads=2, width=32, causal=causal),
        data=str(data),
        objective=NextToken() if causal else AnyOrder(),
        length=24,
        batch=16,
        steps=30,
        optimiser=Optimiser(rate=1e-2, warmup=5),
        precision="float32",
        device="cpu",
        validate_every=30,
        save_every=30,
    )
    return replace(made, **changes)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("changes", [{}, {"packed": True}, {"drop_prompt": 0.2}])
def test_the_one_trainer_learns_from_the_same_files(sums, tmp_path, causal, changes):
    run = train(config(sums, causal, **changes), tmp_path / "run")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if row["kind"] == "train"]
    assert losses[-1] < 0.8 * losses[0]
    assert next(row for row in rows if row["kind"] == "validation")["nats_per_token"] < losses[0]
    assert load(run).causal == causal


def test_training_says_what_is_left_out_and_what_it_came_to(sums, tmp_path, capsys):
    longest = int(load_pairs(sums, "train").lengths.max())
    many, out = len(load_pairs(sums, "train").lengths), tmp_path / "run"
    words = "--steps 2 --batch 4 --layers 1 --heads 2 --width 32 --neighbours 1 --device cpu"
    main(["train", "tiny", "--data", str(sums), "--out", str(out), "--length", str(longest - 1), *words.split()])
    said = capsys.readouterr().err
    longer = int((load_pairs(sums, "train").lengths == longest).sum())
    assert f"{longer} of {many} train examples are longer than {longest - 1} tokens" in said
    assert f"left out: --length {longest} takes them all" in said
    row = [row for row in read_lines(out / "metrics.jsonl") if row["kind"] == "validation"][-1]
    error = math.hypot(row["stderr"], row["stderr_texts"])
    assert f"held out, step 2: {row['nats_per_token']:.3f} ± {error:.3f} nats/token (upper bound)\n" in said
    asks = f"unmask evaluate answers --checkpoint {out} --questions FILE --out answers.jsonl"
    assert f"next: unmask sample --checkpoint {out} --template TEXT, or {asks}\n" in said


@pytest.mark.parametrize("packed", [False, True])
def test_the_output_layer_is_counted_where_answers_are(sums, packed):
    """The share of the positions that batches say are maskable; of running text, and of what is not there, all."""
    made = config(sums, packed=packed)
    rows = made.sequences(Tokenizer.load(sums))[0]
    maskable = rows.take(range(len(rows)))[1]
    assert rows.share == pytest.approx(float(maskable[:, 1:].double().mean()))
    share = expected_level(made.objective, made.length) * made.length * rows.share
    flops = 3 * made.network.forward_flops(made.length + 1, share) * made.batch * made.steps
    assert made.cost()["flops_true"] == pytest.approx(flops)
    assert replace(made, data="nowhere").cost()["flops_true"] > flops


def test_a_run_belongs_to_its_pairs(sums, tmp_path):
    """The same rows written out by another template are other data; a run that did not record what is left out."""
    rows = [{"instruction": f"Say {i}", "output": str(i)} for i in range(20)]
    (tmp_path / "template.jinja").write_text("{% for m in messages %}{{ m.content }}\n{% endfor %}")
    source = jsonl(tmp_path / "chats.jsonl", rows)
    one = prepare_pairs(source, tmp_path / "one", tokenizer="bytes").folder
    two = prepare_pairs(source, tmp_path / "two", tokenizer="bytes", template=str(tmp_path / "template.jinja")).folder
    run = train(config(one, steps=1, length=32), tmp_path / "run")
    with pytest.raises(ValueError, match="other settings \\(corpus"):
        train(config(two, steps=1, length=32), run)
    told = read_json(run / "config.json")
    del told["requested"]["corpus"]["splits"]
    write_json(run / "config.json", told)
    train(config(two, steps=1, length=32), run)


def test_a_chat_template_goes_where_the_weights_go(tmp_path):
    """Into the run, its checkpoints, a mirror and what that fills, and a conversion; and anew where it lacks."""
    chats = [
        {"messages": [{"role": "user", "content": f"{i}"}, {"role": "assistant", "content": "so"}]} for i in range(9)
    ]
    (tmp_path / "chat.jinja").write_text("{% for m in messages %}[{{ m.content }}]{% endfor %}")
    options = {"tokenizer": "bytes", "template": str(tmp_path / "chat.jinja"), "validation": 0.3}
    data = prepare_pairs(jsonl(tmp_path / "chats.jsonl", chats), tmp_path / "data", **options).folder
    settings = replace(config(data, steps=1, length=16), mirror=f"file://{tmp_path / 'mirror'}")
    run = train(settings, tmp_path / "run")
    filled = train(settings, tmp_path / "filled")
    told = template_of(run).source
    assert told == (tmp_path / "chat.jinja").read_text()
    for folder in (*run.glob("checkpoints/*"), tmp_path / "mirror", filled, *filled.glob("checkpoints/*")):
        assert (folder / CHAT_TEMPLATE).read_text() == told
    assert template_of(convert(run, tmp_path / "out", "unmask")).source == told
    (run / CHAT_TEMPLATE).unlink()
    train(settings, run)
    assert template_of(run).source == told


def test_a_pretrained_run_is_fine_tuned(sums, tmp_path):
    first = train(config(sums, steps=5), tmp_path / "first")
    second = train(
        config(sums, steps=1, init=str(first), optimiser=Optimiser(rate=1e-9, warmup=0)), tmp_path / "second"
    )
    a, b = (load(run).network.state_dict() for run in (first, second))
    assert all(torch.allclose(a[name], b[name], atol=1e-6) for name in a)


def test_pairs_are_no_running_text(sums):
    with pytest.raises(ValueError, match=r"holds prompts with answers .*: give another folder, or measure answers"):
        load_split(sums, "validation")


def test_running_text_cannot_be_packed_as_pairs_and_blocks_stay(sums, tmp_path):
    assert isinstance(sequences(sums, "train", length=12, begin=0, end=1), Pairs)
    with pytest.raises(ValueError, match="drop_prompt"):
        config(sums, drop_prompt=1.0)


def test_the_side_without_an_example_that_fits_is_named(tmp_path):
    """Planted fault: of a validation side without one it was said that no example fits."""
    train_on, held_out, folder = (tmp_path / name for name in ("train.jsonl", "validation.jsonl", "pairs"))
    for path, answer in ((train_on, "b"), (held_out, "b" * 40)):
        path.write_text(json.dumps({"question": "a", "answer": answer}) + "\n", encoding="utf-8")
    prepare_pairs(str(train_on), folder, tokenizer="bytes", held_out=str(held_out))
    options = {"length": 32, "begin": 0, "end": 1}
    assert len(sequences(folder, "train", **options)) == 1
    with pytest.raises(ValueError, match=r"pairs, validation: no example fits in 32 tokens, .*: raise --length"):
        sequences(folder, "validation", **options)
