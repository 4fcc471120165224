"""Answers: two passes, resumption, FastChat's format, exact match on adversarial formats, a judge behind a stub."""

import http.server
import json
import threading
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
import torch

from unmask.checkpoint import Model
from unmask.cli import main
from unmask.data import byte_tokenizer, prepare_pairs
from unmask.data.pairs import Chat, load_template, prompt_ids, template_of
from unmask.data.pairs.layouts import second_pass
from unmask.evaluate.answering import EvaluateAnswers, _line
from unmask.evaluate.answers import Asking, Question, Written, answer_file, answers, exact_match, fill, questions_of
from unmask.evaluate.exact import final_number, same
from unmask.evaluate.grading import Endpoint, grade_file, messages_for
from unmask.grammar import Form
from unmask.hub import WANTED
from unmask.sampling import Confidence, LeftToRight, RandomOrder, Tweedie, sample
from unmask.transformer import Transformer, TransformerConfig

BYTES = byte_tokenizer()


def model(causal: bool = False, seed: int = 3) -> Model:
    """Random weights, but a bias towards letters: an end token now and then."""
    network = Transformer(TransformerConfig(vocab=258, layers=1, heads=2, width=16, causal=causal), seed=seed)
    return Model(network, BYTES, {"name": "small"})


SAID = Written("so", 1, False)
QUESTIONS = [Question(i, (f"{'x' * (i % 5)} {i}?\n",), False, (f"#### {i}",)) for i in range(11)]


# exact match


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("#### 18", 18),
        ("so 3 + 4 = 7\n#### 7", 7),
        ("#### 1,234,567", 1234567),
        ("#### $1,234.50", Fraction("1234.5")),
        ("The answer is 72.", 72),
        ("the answer is: 72.00 dollars", 72),
        ("Answer: -5", -5),
        ("She answered 4 of them, so 12 in all.", 12),
        ("3 answers were wrong: 7 = 4 + 3 of 10", 10),
        ("Her answer 4 was wrong. It is 12", 12),
        ("#### −5", -5),
        ("#### -$5", -5),
        ("It costs 5 dollars and 20 cents", 20),
        ("10 apples\n#### 12 apples, of which 3 are red", 12),
        ("\\boxed{42}", 42),
        ("\\boxed{1{,}000}", 1000),
        ("3/4", Fraction(3, 4)),
        ("#### .5", Fraction(1, 2)),
        ("50%", 50),
        ("#### 5 #### 6", 6),
        ("7-2=5", 5),
        ("2×3=6.", 6),
        ("B2 is a room", None),
        ("no number", None),
        ("1/0", None),
        ("", None),
        ("####", None),
        ("12 #### ", 12),
        ("0012", 12),
        ("99999999999999999999999999", 99999999999999999999999999),
        ("7 and 1" + "0" * 5000, 7),
        ("The answer is 9 + 9 = 18.", 18),
        ("Answer: 9*2 = 18", 18),
        ("The answer is 18, since 9*2 = 18 and 3*4 = 12", 18),
        ("The answer is 5. We know that 3 = 3", 5),
        ("The answer is x = 5", 5),
        ("#### 9 + 9 = 18\n\nNow 3 = 3.", 18),
        ("_18_", 18),
        ("**18**", 18),
        ("B_2", None),
        ("1.8e1", 18),
        ("1e5", 100000),
        ("18e", 18),
        ("18eggs", 18),
        ("2e-3", Fraction(1, 500)),
        ("\\boxed{\\frac{1}{2}}", Fraction(1, 2)),
        ("\\boxed{1\\frac{1}{2}}", Fraction(3, 2)),
        ("#### 2 1/2", Fraction(5, 2)),
        ("1 000", 1000),
        ("1'000", 1000),
        ("1\u202f000\u202f000", 1000000),
        ("12 34", 34),
        ("1 0000", 0),
        ("#### - 18", -18),
        ("The answer is - 5", -5),
        ("x = - 5", -5),
        ("7 - 5", 5),
        ("- 5 apples", 5),
        ("1,000 2,000", 2000),
        ("5 100", 5100),
        ("15 eggs, 2 fell; 13", 13),
    ],
)
def test_the_final_number(text, number):
    assert final_number(text) == number


@pytest.mark.parametrize(
    ("answer", "reference", "right"),
    [
        ("#### 18", "Janet … 9 * 2 = $<<9*2=18>>18.\n#### 18", True),
        ("#### 18.0", "#### 18", True),
        ("#### 180", "#### 18", False),
        ("18 is wrong, #### 19", "#### 18", False),
        ("#### - 18", "#### 18", False),
        ("1e5", "1", False),
        ("#### 1,8", "#### 18", False),
        ("", "#### 18", False),
        ("579", "579", True),
        ("0579", "579", True),
        ("-579", "579", False),
        (" Uriah  Hawthorne", "uriah hawthorne.", True),
        ("Uriah", "Uriah Hawthorne", False),
        ("the 2 of us", "the 3 of us", False),
        ("The 2 of us.", "the 2 of us", True),
    ],
)
def test_same(answer, reference, right):
    assert same(answer, reference) is right


# answers


def test_two_passes_against_the_plain_statement():
    """Pass one writes a chain behind the question; pass two an answer behind question, chain and mark."""
    net, policy = model(), Confidence()
    asking = Asking(policy=policy, length=6, block=60, passes=2, final=3, seed=4, batch=2)
    ((_, record),) = answers(net, [Question("q", ("why?\n",), False)], asking)

    def plainly(text: str, length: int, number: int) -> tuple[str, int]:
        canvas = torch.tensor([BYTES.begin, *BYTES.encode(text), *[net.mask_id] * length])
        samples = sample(net, [canvas], policy, seed=4, sequences=[number], end=BYTES.end)
        tokens = samples.tokens[0][-length:].tolist()
        tokens = tokens[: tokens.index(BYTES.end)] if BYTES.end in tokens else tokens
        return BYTES.decode(tokens), int(samples.nfe[0])

    chain, nfe = plainly("why?\n", 6, 0)
    answer, more = plainly(f"why?\n{chain.strip()}\n####", 3, 1)
    assert second_pass("why?\n", chain) == f"why?\n{chain.strip()}\n####"
    assert record["choices"][0]["turns"] == [f"{chain.strip()}\n#### {answer.strip()}"]
    assert record["nfe"] == nfe + more


@pytest.mark.parametrize("causal", [False, True])
def test_an_answer_is_its_questions_own_whatever_the_batch(causal):
    net = model(causal)
    whole, some = (
        dict(answers(net, QUESTIONS, Asking(block=24, seed=1, batch=batch), which))
        for batch, which in ((16, None), (2, [3, 7, 8]))
    )
    assert sorted(whole) == list(range(11))
    assert {i: row["choices"] for i, row in some.items()} == {i: whole[i]["choices"] for i in (3, 7, 8)}


def test_answers_end_at_the_end_token_and_fill_the_block():
    net = model()
    (written,) = fill(net, [[65, 66]], [0], Asking(policy=RandomOrder(), block=10))
    assert written.nfe <= 8
    (short,) = fill(net, [[65, 66]], [0], Asking(policy=Tweedie(steps=1), block=10))
    assert short.nfe == 1
    (cut,) = fill(net, [[65] * 30], [0], Asking(block=12, length=4))
    assert cut.cut
    assert len(cut.text.encode()) <= 12 * 3  # up to four bytes, each maybe a replacement character


def test_guidance_costs_twice_and_needs_no_equal_prompts():
    found = dict(answers(model(), QUESTIONS, Asking(policy=Confidence(), length=4, block=24, guidance=1.0)))
    plain = dict(answers(model(), QUESTIONS, Asking(policy=Confidence(), length=4, block=24)))
    for i in range(11):
        assert found[i]["nfe"] <= 8
        assert found[i]["nfe"] % 2 == 0
        assert plain[i]["nfe"] <= 4
    arm = dict(answers(model(True), QUESTIONS, Asking(policy=LeftToRight(), length=4, block=24, guidance=0.5)))
    assert len(arm) == 11


def test_a_file_that_was_cut_off_goes_on(tmp_path):
    net, asking, out = model(), Asking(block=20, batch=2), tmp_path / "a.jsonl"
    whole = answer_file(net, QUESTIONS, asking, out, name="small")
    lines = out.read_text().splitlines(keepends=True)
    out.write_text("".join(lines[:4]) + lines[4][:30])
    done = []
    again = answer_file(net, QUESTIONS, asking, out, name="small", progress=lambda n, all_: done.append((n, all_)))
    assert [row["choices"] for row in again] == [row["choices"] for row in whole]
    counts = [count for count, _ in done]
    assert counts[0] == 4
    assert counts == sorted(counts)
    assert set(counts) >= {5, 6, 7}, "while the group is written, before any answer is there"
    assert done[-1] == (11, 11)
    assert [json.loads(line) for line in out.read_text().splitlines()] == again, "in the questions' order"
    with pytest.raises(ValueError, match="another asking"):
        answer_file(net, QUESTIONS, Asking(block=21), out, name="small")
    with pytest.raises(ValueError, match="another model_id"):
        answer_file(net, QUESTIONS, asking, out, name="other")


def test_a_file_says_which_answers_are_right(tmp_path):
    """By the references of now; where there is none, nothing is said of it."""
    net, asking, out = model(), Asking(block=20), tmp_path / "new" / "a.jsonl"
    text = answer_file(net, QUESTIONS[:3], asking, out, name="small")[0]["choices"][0]["turns"][-1]
    asked = [replace(question, references=()) for question in QUESTIONS[:3]]
    for references, right in (((), None), ((text + "?",), False), ((text,), True)):
        asked[0] = replace(asked[0], references=references, as_text=True)
        rows = answer_file(net, asked, asking, out, name="small")
        assert [json.loads(line) for line in out.read_text().splitlines()] == rows
        assert [(row["reference"], row["right"]) for row in rows] == [
            (references[0] if references else None, right), (None, None), (None, None)
        ]  # fmt: skip


def test_a_file_of_answers_belongs_to_its_questions_and_weights(tmp_path):
    """Whatever they are called; the batch changes nothing."""
    net, asking, out = model(), Asking(block=20, batch=2), tmp_path / "a.jsonl"
    whole = answer_file(net, QUESTIONS[:3], asking, out, name="small")
    assert answer_file(net, QUESTIONS[:2], replace(asking, batch=7), out, name="small") == whole[:2]
    assert [json.loads(line)["question_id"] for line in out.read_text().splitlines()] == [0, 1, 2]
    with pytest.raises(ValueError, match="holds answers to other questions: choose another file"):
        answer_file(net, QUESTIONS[5:], asking, out, name="small")
    with pytest.raises(ValueError, match="question_id 1 is another question: choose another file"):
        answer_file(net, [Question(1, ("else?\n",), False)], asking, out, name="small")
    with pytest.raises(ValueError, match="answers of another weights"):
        answer_file(model(seed=4), QUESTIONS[:3], asking, out, name="small")
    assert len(out.read_text().splitlines()) == 3


@pytest.mark.parametrize(
    "line",
    [
        {"question_id": 1},
        {"choices": []},
        {"choices": [{"turns": []}]},
        {"choices": [{"turns": [1]}]},
        {"choices": {}},
        {"nfe": None},
    ],
)
def test_a_file_of_another_maker_is_named(tmp_path, line):
    net, out = model(), tmp_path / "a.jsonl"
    (row,) = answer_file(net, QUESTIONS[:1], Asking(block=20), out, name="small")
    kept = {name: value for name, value in {**row, **line}.items() if value is not None}
    write = kept if len(line) != 1 or "question_id" not in line else line
    out.write_text(json.dumps(write) + "\n")
    with pytest.raises(ValueError, match=r"a.jsonl, line 1: no answer of this command; choose another file"):
        answer_file(net, QUESTIONS[:1], Asking(block=20), out, name="small")


def test_what_is_refused_leaves_no_file(tmp_path):
    chat = [Question(0, ("One?", "Two?"), True)]
    for net, questions, asking, said in (
        (model(causal=True), QUESTIONS[:1], Asking(Confidence(), block=20), "causal"),
        (model(), chat, Asking(block=40, passes=2), "question 0 is a chat, and two passes are for plain questions"),
    ):
        with pytest.raises(ValueError, match=said):
            answer_file(net, questions, asking, tmp_path / "a.jsonl", name="small")
        assert not (tmp_path / "a.jsonl").exists()


def test_no_prompt_is_left_out_for_want_of_room():
    with pytest.raises(ValueError, match="block 20 has no room for a prompt beside 20 tokens"):
        Asking(length=20, block=20)
    with pytest.raises(ValueError, match="block 16 has no room"):
        Asking(passes=2, block=16)
    Asking(length=19, block=20)


def test_the_answer_format_is_what_fastchat_reads(tmp_path):
    """FastChat's `load_model_answers` keys by question_id; its judge reads choices[0]["turns"][i]."""
    rows = [{"question_id": 81, "category": "writing", "turns": ["Write.", "Again."], "reference": ["a", "b"]}]
    (tmp_path / "q.jsonl").write_text(json.dumps(rows[0]))
    questions = questions_of(str(tmp_path / "q.jsonl"))
    assert questions == [Question(81, ("Write.", "Again."), True, ("a", "b"), "writing")]
    (record,) = answer_file(model(), questions, Asking(block=80, length=5), tmp_path / "a.jsonl", name="small")
    read = json.loads((tmp_path / "a.jsonl").read_text())
    assert {"question_id": int, "answer_id": str, "model_id": str, "choices": list, "tstamp": float} == {
        key: type(read[key]) for key in ("question_id", "answer_id", "model_id", "choices", "tstamp")
    }
    assert read["choices"][0]["index"] == 0
    assert [type(turn) for turn in read["choices"][0]["turns"]] == [str, str]
    assert read == record


def test_questions_of_every_format_and_what_is_none(tmp_path):
    def asked(name: str, *rows: dict) -> list[Question]:
        (tmp_path / name).write_text("\n".join(map(json.dumps, rows)))
        return questions_of(str(tmp_path / name))

    assert asked("g.jsonl", {"question": "Q?", "answer": "so\n#### 4"})[0].references == ("so\n#### 4",)
    assert asked("p.jsonl", {"prompt": "a", "response": "b"}) == [Question(0, ("a",), False, ("b",))]
    assert asked("c.jsonl", {"instruction": "a", "output": "b"}) == [Question(0, ("a",), True, ("b",))]
    talk = [{"role": role, "content": role[0]} for role in ("system", "user", "assistant")]
    assert asked("m.jsonl", {"messages": talk}) == [Question(0, ("u",), True, ("a",), system="s")]
    with pytest.raises(ValueError, match=r"x.jsonl, line 2: .*no known layout"):
        asked("x.jsonl", {"prompt": "a", "response": "b"}, {"prompt": "a"})
    assert asked("r.jsonl", {"turns": ["a"], "reference": "four"})[0].references == ("four",)
    with pytest.raises(ValueError, match=r"t.jsonl, line 2: a second question of question_id 7"):
        asked("t.jsonl", {"question_id": 7, "turns": ["a"]}, {"question_id": "7", "turns": ["b"]})
    (tmp_path / "e.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="no questions"):
        questions_of(str(tmp_path / "e.jsonl"))


def test_exact_match_has_an_error_and_needs_references():
    texts = ["#### 1", "the answer is 2", "3 or 5", "4"]
    questions = [Question(i, ("?",), False, (f"#### {i + 1}",)) for i in range(4)]
    records = [{"choices": [{"turns": [text]}], "nfe": 2, "seconds": 0.5, "prompt_cut": False} for text in texts]
    row = exact_match(questions, records, "m")
    assert row["exact_match"] == 0.75
    assert row["stderr"] == pytest.approx((0.75 * 0.25 / 4) ** 0.5)
    assert row["values"]["right"] == [True, True, False, True]
    for share, said in ((0, "exact match 0.0% of 4 (by the rule of three 74.9% or less)"), (1, "25.1% or more")):
        alike = [{**record, "choices": [{"turns": [f"#### {i + share}"]}]} for i, record in enumerate(records)]
        row = exact_match(questions, alike, "m")
        assert row["stderr"] is None, "four of a kind are no certainty"
        assert said in _line(row)
    with pytest.raises(ValueError, match="question 9 has no reference"):
        exact_match([Question(9, ("?",), True)], records[:1], "m")
    with pytest.raises(ValueError, match="question 9 has no reference"):
        exact_match([Question(9, ("?", "??"), True, ("#### 1",))], records[:1], "m")


@pytest.mark.parametrize("causal", [False, True])
def test_answers_fit_what_is_asked_for(causal, tmp_path):
    asking, out = Asking(length=6, block=32, form=Form(choices="yes|no")), tmp_path / "a.jsonl"
    records = answer_file(model(causal), QUESTIONS[:4], asking, out, name="m")
    assert {record["choices"][0]["turns"][0] for record in records} == {"yes", "no"}
    twice = replace(asking, passes=2, final=6)
    (_, record), *_ = answers(model(causal), QUESTIONS[:1], twice)
    assert record["choices"][0]["turns"][0].split("#### ")[1] in ("yes", "no")
    with pytest.raises(ValueError, match="answers of another asking"):
        answer_file(model(causal), QUESTIONS[:4], replace(asking, form=Form(choices="yes|maybe")), out, name="m")
    with pytest.raises(ValueError, match="--regex, --schema and --choices: give one of them"):
        Form(choices="yes", regex="y+")


def test_a_set_may_be_compared_as_text(tmp_path):
    """Of digits in an order of their own, zeros count, and so does what stands before them."""
    assert same("850", "0850")
    assert not same("850", "0850", as_text=True)
    assert same(" 0850", "0850", as_text=True)
    sums = [question for question in questions_of("addition:test") if question.references[0].startswith("0")]
    (first, *_) = sums
    texts = [first.references[0], first.references[0].lstrip("0"), f"1 {first.references[0]}"]
    records = [{"choices": [{"turns": [text]}], "nfe": 1, "seconds": 1, "prompt_cut": False} for text in texts]
    assert exact_match([first] * 3, records, "m")["values"]["right"] == [True, False, False]
    (tmp_path / "a.jsonl").write_text(json.dumps({"prompt": "a", "response": "07", "match": "text"}))
    assert questions_of(str(tmp_path / "a.jsonl"))[0].as_text


def test_a_chat_template_is_the_checkpoints_own(tmp_path, monkeypatch):
    """From the hub as from a folder; a prepared folder that happens to be the current one has no say."""
    repository, net = tmp_path / "repository", model()
    repository.mkdir()
    (repository / "chat_template.jinja").write_text(
        "{% for message in messages %}{{ message['content'] }}!{% endfor %}"
    )
    rows = "".join(json.dumps({"prompt": f"{i}?", "response": str(i)}) + "\n" for i in range(40))
    (tmp_path / "q.jsonl").write_text(rows)
    monkeypatch.chdir(prepare_pairs(str(tmp_path / "q.jsonl"), tmp_path / "d", tokenizer="characters").folder)
    monkeypatch.setattr("unmask.hub._snapshot", lambda *_: repository)
    for address in ("hf://someone/model", str(repository)):
        asked = EvaluateAnswers(Path(address), "q", Path("a"))
        assert asked._template(net).source == template_of(repository).source
    assert "chat_template.jinja" in WANTED


def test_a_system_message_stands_before_every_turn(monkeypatch, tmp_path):
    """What is asked is what training puts before the answer; with another system message it is another question."""
    given = []
    monkeypatch.setattr("unmask.evaluate.answers.fill", lambda _, prompts, *__, **___: given.append(prompts) or [SAID])
    talk = (("system", "Be terse."), ("user", "why?"), ("assistant", "so"), ("user", "how?"))
    question, asking = Question(0, ("why?", "how?"), True, system="Be terse."), Asking(block=99)
    list(answers(model(), [question], asking))
    assert given == [[prompt_ids(Chat(talk[:n]), BYTES, asking.template)] for n in (2, 4)]
    assert "Be terse." in BYTES.decode(given[0][0])
    assert messages_for(question, ["so", "thus"], 0)[1]["content"].startswith("[System]\nBe terse.\n\n[User]\nwhy?")
    answer_file(model(), [question], asking, tmp_path / "a.jsonl", name="m")
    with pytest.raises(ValueError, match="question_id 0 is another question"):
        answer_file(model(), [replace(question, system="")], asking, tmp_path / "a.jsonl", name="m")


# a judge


class Stub(http.server.BaseHTTPRequestHandler):
    """An OpenAI-compatible endpoint that grades by the length of the question and fails when told to."""

    seen: list[dict] = []  # noqa: RUF012
    failures = 0

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert self.path == "/v1/chat/completions"
        type(self).seen.append({**body, "key": self.headers.get("Authorization")})
        if type(self).failures:
            type(self).failures -= 1
            self.send_error(503)
            return
        grade = "none" if "ungraded" in body["messages"][1]["content"] else "[[7]] no: [[6.5]]"
        content = None if "nothing to say" in body["messages"][-1]["content"] else f"Fair. {grade}"
        message = {"choices": [{"message": {"role": "assistant", "content": content}}]}
        self.send_response(200)
        if "hang up" in body["messages"][-1]["content"]:
            self.send_header("Content-Length", "9999")
        self.end_headers()
        self.wfile.write(json.dumps(message).encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def stub():
    Stub.seen, Stub.failures = [], 0
    server = http.server.HTTPServer(("127.0.0.1", 0), Stub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


def test_a_judge_grades_every_turn_once_and_survives_failures(stub, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    questions = [Question(1, ("One?", "Two?"), True, ("ref",)), Question(2, ("ungraded",), True)]
    records = [
        {"answer_id": "a", "model_id": "m", "choices": [{"index": 0, "turns": turns}]} for turns in (["x", "y"], ["z"])
    ]
    Stub.failures = 2
    endpoint, out = Endpoint(stub, "judge", wait=0.0), tmp_path / "j.jsonl"
    row = grade_file(questions, records, endpoint, out)
    assert (row["score"], row["turns"], row["without_grade"]) == (6.5, 3, 1)
    assert len(Stub.seen) == 5
    assert all(body["key"] == "Bearer secret" and body["model"] == "judge" for body in Stub.seen)
    written = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(line["question_id"], line["turn"], line["score"]) for line in written] == [
        (1, 1, 6.5),
        (1, 2, 6.5),
        (2, 1, -1),
    ]
    assert written[0]["judge"] == ["judge", "unmask-v1"]
    assert grade_file(questions, records, endpoint, out) == row
    assert len(Stub.seen) == 6, "what has no grade is asked for again"
    assert len(out.read_text().splitlines()) == 3
    other = [Question(1, ("One?", "Two?"), True, ("another reference",)), questions[1]]
    grade_file(other, records, endpoint, out)
    assert len(Stub.seen) == 9, "both turns of another reference, and what has no grade"
    second = messages_for(questions[0], ["x", "y"], 1)[1]["content"]
    assert [second.index(part) for part in ("One?", "ref", "x", "Two?", "y")] == sorted(
        second.index(part) for part in ("One?", "ref", "x", "Two?", "y")
    )


def test_refusals_are_counted_and_none_but_refusals_is_an_error(stub, tmp_path):
    """A completion without content is a judgment without a grade: the others are graded."""
    questions = [Question(i, (text,), True) for i, text in enumerate(("One?", "nothing to say", "Two?"))]
    records = [{"answer_id": str(i), "choices": [{"index": 0, "turns": ["x"]}]} for i in range(3)]
    row = grade_file(questions, records, Endpoint(stub, "judge"), tmp_path / "j.jsonl")
    assert (row["score"], row["stderr"], row["without_grade"]) == (6.5, None, 1)
    with pytest.raises(ValueError, match=r"judge gives no grade in 1 judgments \(it says 'nothing'\): see"):
        grade_file(questions[1:2], records[1:2], Endpoint(stub, "judge"), tmp_path / "none.jsonl")


def test_a_grades_error_is_over_questions(stub, tmp_path, monkeypatch):
    """Two talks of two turns, graded 4 and 4, 6 and 8: the turns of one talk are one observation."""
    grades = iter((4, 4, 6, 8))
    monkeypatch.setattr(Endpoint, "__call__", lambda *_: f"[[{next(grades)}]]")
    questions = [Question(i, ("One?", "Two?"), True) for i in range(2)]
    records = [{"answer_id": str(i), "choices": [{"index": 0, "turns": ["x", "y"]}]} for i in range(2)]
    row = grade_file(questions, records, Endpoint(stub, "judge"), tmp_path / "j.jsonl")
    assert (row["score"], row["stderr"], row["turns"], row["prompt"]) == (5.5, pytest.approx(1.5), 4, "unmask-v1")


def test_judgments_that_were_cut_off_go_on(stub, tmp_path):
    """Inside a letter of several bytes, too; what is no judgment is named."""
    questions = [Question(i, ("Straße?",), True) for i in range(2)]
    records = [{"answer_id": str(i), "choices": [{"index": 0, "turns": ["x"]}]} for i in range(2)]
    endpoint, out = Endpoint(stub, "judge"), tmp_path / "j.jsonl"
    row = grade_file(questions, records, endpoint, out)
    whole = out.read_bytes()
    out.write_bytes(whole[: whole.rindex("ß".encode()) + 1])
    assert grade_file(questions, records, endpoint, out) == row
    assert len(Stub.seen) == 3
    out.write_text('{"score": 1}\n')
    with pytest.raises(ValueError, match=r"j.jsonl, line 1: no judgment"):
        grade_file(questions, records, endpoint, out)


@pytest.mark.parametrize(
    ("url", "asked", "said"),
    [
        ("", "hang up", "IncompleteRead"),
        ("http://127.0.0.1:80x/v1", "?", "nonnumeric port"),
    ],
)
def test_what_a_judge_does_instead_is_one_line(stub, url, asked, said):
    with pytest.raises(ValueError, match=said):
        Endpoint(url or stub, "judge", wait=0.0)(
            [{"role": "system", "content": ""}, {"role": "user", "content": asked}]
        )


def test_a_judge_that_is_not_there_is_one_line(stub):
    Stub.failures = 99
    with pytest.raises(ValueError, match="503"):
        Endpoint(stub, "judge", wait=0.0)([{"role": "user", "content": "?"}])
    with pytest.raises(ValueError, match="fails"):
        Endpoint("http://127.0.0.1:9", "judge", attempts=1)([{"role": "user", "content": "?"}])


def test_the_command(stub, tmp_path, capsys):
    from unmask.train import TrainConfig, train

    rows = [{"prompt": f"{i}?", "response": f"{i}"} for i in range(40)]
    source = tmp_path / "q.jsonl"
    source.write_text("\n".join(map(json.dumps, rows)))
    data = prepare_pairs(str(source), tmp_path / "d", tokenizer="characters").folder
    network = TransformerConfig(vocab=13, layers=1, heads=2, width=16)
    config = TrainConfig(network, str(data), length=8, steps=2, batch=4, device="cpu", precision="float32", name="q")
    run = train(config, tmp_path / "run")
    out, result = tmp_path / "a.jsonl", tmp_path / "r.json"
    words = ["evaluate", "answers", "--checkpoint", run, "--questions", source, "--out", out, "--result", result]
    main([*map(str, words), "confidence"])
    assert "exact match" in capsys.readouterr().out
    assert template_of(run).source == load_template(data, BYTES).source
    row = json.loads(result.read_text())["rows"][0]
    assert row["questions"] == 40
    assert row["policy"].startswith("Confidence")
    main([*map(str, words[:-2]), "--judge", stub, "--judge-model", "stub", "confidence"])
    assert "grade 6.50" in capsys.readouterr().out
    assert len(Path(tmp_path / "a.judgments.jsonl").read_text().splitlines()) == 40
