"""Answers of many lengths: enumeration on both worlds, no padding, greedy truth, boundaries, continuations."""

import itertools
from dataclasses import dataclass

import pytest
import torch
from enumeration import CausalTable, Spy, check_mean, costs, expected, in_order, in_steps, law, random_orders

from unmask.checkpoint import Model
from unmask.data import byte_tokenizer, train_bpe
from unmask.evaluate.continuing import Prompt, continuations
from unmask.evaluate.scoring import Answer, Scorer, encode_pairs, greedily_written, number_of, windows
from unmask.likelihood import importance_log_likelihood, log_likelihood, ordered_log_likelihood, surprisal
from unmask.sampling import Confidence, Draw, LeftToRight, draw_plan, sample
from unmask.transformer import Transformer, TransformerConfig
from unmask.world import InconsistentTable, JointTable, all_sequences
from unmask.wrappers import Counted, Guided

BYTES = byte_tokenizer()


def random_model(causal: bool, dtype: torch.dtype = torch.float64) -> Model:
    config = TransformerConfig(vocab=BYTES.vocab, layers=2, heads=2, width=32, causal=causal)
    network = Transformer(config, seed=3)
    with torch.no_grad():
        for weights in network.parameters():  # far from flat, so that a padded or misplaced token would show
            weights.mul_(2)
    return Model(network.to(dtype).eval().requires_grad_(False), BYTES, {"name": "random"})


@pytest.fixture(scope="module")
def mdm() -> Model:
    return random_model(causal=False)


@pytest.fixture(scope="module")
def arm() -> Model:
    return random_model(causal=True)


def ragged(count: int = 40) -> list[Answer]:
    """Answers of many lengths, four to a question."""
    generator = torch.Generator().manual_seed(5)
    answers = []
    for i in range(count):
        context, scored = (int(torch.randint(low, high, (), generator=generator)) for low, high in ((0, 9), (1, 6)))
        tokens = torch.randint(BYTES.vocab, (context + scored,), generator=generator).tolist()
        answers.append(Answer([BYTES.begin, *tokens], scored, i // 4))
    return answers


def in_place(scorer: Scorer, answers: list[Answer]) -> list:
    """Scores in the order of the answers; each is scored once."""
    scores = {}
    for part, some in scorer(answers):
        assert not scores.keys() & set(part)
        scores |= dict(zip(part, some, strict=True))
    return [scores[i] for i in range(len(answers))]


@pytest.mark.parametrize("world", [JointTable(3, 4), InconsistentTable(3, 4)])
def test_scores_are_the_enumerated_ones(world):
    """Of "bound" the mean over all orders of the answer, of "chain" the one from the left, given the context."""
    table, x = costs(world, 4), all_sequences(3, 4)[7:10]
    answers = [Answer(row, 3, i) for i, row in enumerate(x.tolist())]
    chain = in_place(Scorer(world, "chain"), answers)
    truth = in_order(table, x, in_steps([1, 2, 3]))
    assert [-score.log_p for score in chain] == pytest.approx(truth.tolist(), abs=1e-9)
    assert all(score.stderr == 0 for score in chain)
    bound = expected(random_orders([1, 2, 3]), table, x)
    for row, value in zip(x.tolist(), bound.tolist(), strict=True):
        repeated = [Answer(row, 3, number) for number in range(500)]
        scores = in_place(Scorer(world, draws=4), repeated)  # 7 masks: with as many draws they would be enumerated
        check_mean(torch.tensor([-score.log_p for score in scores], dtype=torch.float64), value)
        assert sum(score.stderr > 0 for score in scores) > 250  # two small replicates may coincide


def test_a_causal_network_is_scored_exactly():
    world = CausalTable()
    x = torch.cat([torch.zeros(27, 1, dtype=torch.long), all_sequences(3, 3)], -1)
    scores = in_place(Scorer(world), [Answer(row, 3, 0) for row in x.tolist()])
    assert [score.log_p for score in scores] == pytest.approx(world.log_p().tolist(), abs=1e-9)
    assert sum(score.greedy for score in scores) == 1
    greedy = [0]
    for i in range(3):
        logits = world(torch.tensor([[*greedy, *[0] * (3 - i)]]), torch.tensor([i + 1]))
        greedy.append(int(logits.argmax()))
    assert [score.greedy for score in scores] == [row == greedy for row in x.tolist()]


@pytest.mark.parametrize("seed", range(5))
def test_greedy_is_what_greedy_decoding_writes(seed):
    """Of all answers to a context the one that the sampler writes by the same rule, and no other."""
    world = InconsistentTable(3, 4, seed=seed)
    x = all_sequences(3, 4)
    maskable = torch.tensor([False, True, True, True]).expand(len(x), -1)
    contexts = torch.full((3, 4), world.mask_id)
    contexts[:, 0] = torch.arange(3)
    written = sample(world, contexts, Confidence(), draw=Draw(temperature=0)).tokens
    truth = [any(torch.equal(row, text) for text in written) for row in x]
    assert greedily_written(world, x, maskable).tolist() == truth
    assert sum(truth) == 3


@pytest.mark.parametrize("kind", ["mdm", "arm"])
@pytest.mark.parametrize("estimator", ["bound", "chain"])
def test_scores_equal_direct_calls_one_at_a_time(kind, estimator, request):
    model, answers = request.getfixturevalue(kind), ragged()
    scores = in_place(Scorer(model, estimator, draws=8, seed=3), answers)
    for answer, score in zip(answers, scores, strict=True):
        x_0 = torch.tensor([answer.tokens])
        maskable = torch.arange(x_0.shape[1])[None] >= x_0.shape[1] - answer.scored
        if estimator == "chain":
            estimate = ordered_log_likelihood(model, x_0, draw_plan(LeftToRight(), maskable))
        else:
            estimate = log_likelihood(model, x_0, maskable, draws=8, seed=3, sequences=[answer.number])
        assert score.log_p == pytest.approx(-estimate.nats, abs=1e-9)
        assert score.stderr == pytest.approx(estimate.stderr_mc, abs=1e-9)


def test_neither_the_size_of_a_call_nor_the_order_of_the_work_changes_a_score(mdm):
    answers = ragged()
    base = in_place(Scorer(mdm, draws=8), answers)
    for tokens in (1, 50, 10**6):
        again = in_place(Scorer(mdm, draws=8, tokens=tokens), answers)
        assert [score.log_p for score in again] == pytest.approx([score.log_p for score in base], abs=1e-9)
        assert [score.greedy for score in again] == [score.greedy for score in base]
    back = in_place(Scorer(mdm, draws=8, tokens=50), answers[::-1])[::-1]
    assert [score.log_p for score in back] == pytest.approx([score.log_p for score in base], abs=1e-9)


@pytest.mark.parametrize("estimator", ["bound", "chain"])
def test_no_call_holds_a_padded_row_or_more_tokens_than_allowed(mdm, estimator):
    answers = [answer for answer in ragged(64) for _ in range(3)]
    spy = Spy(mdm)
    in_place(Scorer(spy, estimator, draws=8, tokens=60), answers)
    texts = [torch.tensor(answer.tokens) for answer in answers]
    for tokens, _, _ in spy.asked:
        same = [text for text in texts if len(text) == tokens.shape[1]]
        for row in tokens:
            assert any(bool(((row == text) | (row == mdm.mask_id)).all()) for text in same)
        assert tokens.numel() <= 60


def test_options_of_one_question_share_their_maskings():
    """Equal answers of one number score the same, and near ones differ by less noise than of numbers of their own."""
    world = InconsistentTable(3, 4, sharpness=1.0)
    a, b = [0, 1, 2, 1], [0, 1, 2, 2]
    shared, own = [], []
    for number in range(300):
        scorer = Scorer(world, draws=2 * 2)
        first, second, twin = in_place(scorer, [Answer(a, 3, number), Answer(b, 3, number), Answer(a, 3, number)])
        assert first == twin
        other = in_place(scorer, [Answer(b, 3, number + 1000)])[0]
        shared.append(first.log_p - second.log_p)
        own.append(first.log_p - other.log_p)
    assert torch.tensor(shared).var() < 0.7 * torch.tensor(own).var()


@pytest.mark.parametrize("kind", ["mdm", "arm"])
def test_a_begin_token_in_front_is_given(kind, request):
    """Also of a model that is wrapped; elsewhere it is a token as others are, and so it is to a bare network."""
    model = request.getfixturevalue(kind)
    x_0 = torch.cat([model.canvas("a b"), torch.tensor([BYTES.begin])])[None]
    scored = torch.arange(5)[None] > 0
    for network in (model, Counted(model)):
        assert log_likelihood(network, x_0).nats == log_likelihood(network, x_0, scored).nats
        assert torch.equal(surprisal(network, x_0).nats, surprisal(network, x_0, scored).nats)
    if not model.causal:
        assert importance_log_likelihood(model, x_0, orders=1).tokens == 4
        assert log_likelihood(model.network, x_0).tokens == 5


def test_an_answer_without_tokens_is_certain(mdm):
    assert in_place(Scorer(mdm, draws=8), [Answer([BYTES.begin, 5], 0, 0)])[0].log_p == 0


@dataclass(frozen=True)
class Toward:
    """log q of the canvas, less `weight` times that without its condition: a guided network, literally."""

    network: object
    condition: torch.Tensor
    weight: float = 0.5
    causal = False
    normalised = True
    vocab = 3
    mask_id = 3

    def __call__(self, tokens, at, *, then=None, rows=None, level=None):
        free = tokens.masked_fill(self.condition, self.mask_id)
        logits = (1 + self.weight) * self.network(tokens, at) - self.weight * self.network(free, at)
        return logits if then is None else then(logits, slice(0, len(at)))


def test_guidance_is_by_the_context_of_each_answer():
    """Contexts of different length in one call's worth of work; one that is empty guides nothing."""
    world = InconsistentTable(3, 4)
    answers = [Answer([0, 1, 2, 0], 2, 0), Answer([0, 1, 2, 0], 3, 0), Answer([2, 1, 1, 1], 2, 1)]
    scores = in_place(Scorer(world, "chain", guidance=0.5), answers)
    for answer, score in zip(answers, scores, strict=True):
        x, given = torch.tensor([answer.tokens]), 4 - answer.scored
        table = costs(Toward(world, torch.tensor([0 < i < given for i in range(4)])), 4)
        truth = in_order(table, x, in_steps(range(given, 4)))
        assert -score.log_p == pytest.approx(float(truth), abs=1e-9)
    plain = in_place(Scorer(world, "chain"), answers)
    assert [a == b for a, b in zip(scores, plain, strict=True)] == [False, True, False]
    many = [Answer([0, *x], scored, 0) for x in itertools.product(range(3), repeat=3) for scored in (1, 2)]
    scorer = Scorer(world, "chain", guidance=2.0)  # who is left of a call keeps a condition of its own
    alone = [in_place(scorer, [answer])[0] for answer in many]
    assert [score.greedy for score in in_place(scorer, many)] == [score.greedy for score in alone]
    assert len({score.greedy for score in alone}) == 2


def test_guidance_of_a_causal_model_is_refused(arm):
    with pytest.raises(ValueError, match="absent"):
        in_place(Scorer(arm, guidance=0.5), ragged(8))


def test_a_guided_continuation_is_that_of_the_guided_network(mdm):
    prompts = [Prompt(list(b"ab"), most=5, draw=Draw(0.0)), Prompt(list(b"abcd"), most=3, draw=Draw(0.0))]
    for prompt, text in zip(prompts, continuations(mdm, prompts, length=64, guidance=2.0), strict=True):
        canvas = torch.tensor([BYTES.begin, *prompt.tokens, *[mdm.mask_id] * prompt.most])
        condition = torch.tensor([0 < i <= len(prompt.tokens) for i in range(len(canvas))])
        network = Guided(mdm, [condition], 2.0)
        tokens = sample(network, [canvas], Confidence(), draw=Draw(0.0)).tokens[0][1:].tolist()
        ends = tokens.index(BYTES.end) if BYTES.end in tokens else len(tokens)
        assert text == BYTES.decode(tokens[:ends])[len(prompt.tokens) :]


def test_the_boundary_is_where_the_whole_text_parts_from_the_context():
    text = "the cat sat on the mat. the hat that the cat saw. " * 20
    tokenizer = train_bpe([text], 300)
    pairs = [("the ca", "t sat"), ("the cat", " sat"), ("the cat ", "sat"), ("", "the cat"), ("the cat", ""), ("", "")]
    spans = 0
    for (context, answer), (before, after) in zip(pairs, encode_pairs(tokenizer, pairs), strict=True):
        assert before + after == tokenizer.encode(context + answer)
        alone = tokenizer.encode(context)
        assert before == alone[: len(before)]
        spans += before != alone
    assert spans >= 2, "no token spans a boundary: the test shows nothing"
    assert encode_pairs(tokenizer, [("the cat", " sat")])[0][0] == tokenizer.encode("the cat")


@pytest.mark.parametrize(("before", "count", "length"), list(itertools.product((0, 3, 20), (1, 4, 5, 11), (1, 2, 5))))
def test_windows_score_each_token_once_and_keep_to_the_length(before, count, length):
    context, answer = list(range(before)), list(range(100, 100 + count))
    parts = windows(context, answer, length)
    assert [token for _, scored in parts for token in scored] == answer
    whole = context + answer
    for given, scored in parts:
        assert scored
        assert len(given) + len(scored) <= length
        at = whole.index(scored[0])
        assert given == whole[at - len(given) : at]
    if count <= length:
        assert len(parts) == 1
        assert len(parts[0][0]) == min(before, length - count)


def test_numbers_belong_to_their_words():
    numbers = [number_of("piqa", i) for i in range(100)] + [number_of("boolq", i) for i in range(100)]
    assert len(set(numbers)) == 200
    assert all(0 <= number < 2**63 for number in numbers)
    assert number_of("piqa", 7) == numbers[7]


def chosen(model: Model, prompt: list[int], count: int) -> list[int]:
    """The most probable token, again and again."""
    tokens = [model.tokenizer.begin, *prompt]
    for _ in range(count):
        canvas = torch.tensor([[*tokens, model.mask_id]])
        tokens.append(int(model(canvas, torch.tensor([len(tokens)])).argmax()))
    return tokens[1 + len(prompt) :]


def test_an_arm_continues_with_the_most_probable_tokens(arm):
    greedy = Draw(temperature=0)
    prompts = [list(b"ab"), list(b"hello there"), []]
    texts = continuations(arm, [Prompt(p, most=9, draw=greedy) for p in prompts], length=64, block=4)
    for prompt, text in zip(prompts, texts, strict=True):
        written = chosen(arm, prompt, 9)
        written = written[: written.index(BYTES.end)] if BYTES.end in written else written
        assert text == BYTES.decode([*prompt, *written])[len(BYTES.decode(prompt)) :]


@pytest.mark.parametrize("kind", ["mdm", "arm"])
def test_continuations_do_not_depend_on_their_company(kind, request):
    model = request.getfixturevalue(kind)
    prompts = [Prompt(list(b"x" * n), most=5 + n, draw=Draw(temperature=1.0), number=n) for n in range(7)]
    together = continuations(model, prompts, length=16, block=4, seed=2)
    for prompt, text in zip(prompts, together, strict=True):
        assert continuations(model, [prompt], length=16, block=4, seed=2, tokens=1) == [text]
    assert continuations(model, prompts, length=16, block=4, seed=3) != together


@dataclass(frozen=True)
class Recites:
    """Writes one text over and over, certain of itself: the token at position i is the i-th of the text."""

    text: bytes
    causal = False
    normalised = True
    vocab = BYTES.vocab
    mask_id = BYTES.vocab

    def __call__(self, tokens, at, *, then=None, rows=None, level=None):
        ids = torch.tensor([self.text[(int(i) % tokens.shape[1] - 1) % len(self.text)] for i in at])
        logits = torch.full((len(at), self.vocab), -20.0).scatter(-1, ids[:, None], 20.0)
        return logits if then is None else then(logits, slice(0, len(at)))


def test_a_text_ends_before_its_first_stop_sequence_of_many_tokens():
    model = Model(Recites(b"one two\n\nthree. "), BYTES, {})  # pyrefly: ignore

    def written(*stops: str, most: int = 40) -> str:
        return continuations(model, [Prompt(list(b"one"), stops, most)], length=100, block=3)[0]

    assert written("\n\n") == " two"
    assert written("three", "\n\n") == " two"
    assert written("three") == " two\n\n"
    assert written("nowhere", most=7) == " two\n\nt"
    assert written("", most=2) == " t"
    assert written(most=0) == ""


def test_a_text_ends_at_the_end_token_and_may_outgrow_the_length():
    @dataclass(frozen=True)
    class Ends(Recites):
        def __call__(self, tokens, at, *, then=None, rows=None, level=None):
            assert tokens.shape[1] <= 1 + 8
            return super().__call__(tokens, at, then=then)

    model = Model(Ends(b"a"), BYTES, {})  # pyrefly: ignore
    assert continuations(model, [Prompt(list(b"b" * 30), most=50)], length=8) == ["a" * 50]
    model = Model(Recites(bytes([97])), BYTES, {})  # pyrefly: ignore
    ended = Recites(b"ab")
    object.__setattr__(ended, "text", [97, 98, BYTES.end, 99])
    assert continuations(Model(ended, BYTES, {}), [Prompt([97], most=9)], length=32) == ["b"]  # pyrefly: ignore


def test_wrong_settings_are_refused(mdm):
    with pytest.raises(ValueError, match="bound or chain"):
        Scorer(mdm, "guess")  # pyrefly: ignore
    with pytest.raises(ValueError, match="at least 1"):
        Scorer(mdm, tokens=0)


def test_on_the_joint_table_the_chain_is_the_conditional_probability():
    world = JointTable(3, 3)
    truth = law(random_orders([1, 2]), costs(world, 3), torch.tensor([1, 3, 3])).log()
    rows = [(i, row) for i, row in enumerate(all_sequences(3, 3).tolist()) if row[0] == 1]
    chain = in_place(Scorer(world, "chain"), [Answer(row, 2, 0) for _, row in rows])
    assert [score.log_p for score in chain] == pytest.approx([float(truth[i]) for i, _ in rows], abs=1e-9)
