"""Constraints in words: an automaton accepts exactly what `re` fits, a schema's texts are valid, tokens spell texts."""

import json
import math
import random
import re
from functools import reduce
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models

from unmask import grammar
from unmask.data import Tokenizer, byte_tokenizer, train_bpe
from unmask.grammar.regular import choices, code_points, regular, utf8
from unmask.grammar.schema import schema_pattern
from unmask.sampling.automaton import OPEN, START, Automaton, ByteAutomaton, over_tokens

LETTERS = "abkKé€🐈\n "
BYTES = byte_tokenizer()
BPE = train_bpe(['{"name": "the cat", "age": 12} the cat sat on the mat, naïve 日本語 🐈\n' * 20], 340)


def reads(letters: ByteAutomaton, text: str) -> bool:
    state = START
    for byte in text.encode():
        state = letters.table[state, letters.kind[byte]]
    return bool(letters.accepting[state])


def some(automaton: Automaton, coin: random.Random, about: int) -> list[int]:
    """Tokens of a text that fits: at random, and after about so many tokens by the shortest way."""
    near = [automaton.ends]  # the states from which at most so many tokens suffice
    while (more := near[-1] | automaton.before(near[-1], OPEN)) != near[-1]:
        near.append(more)
    state, tokens = START, []
    while not (automaton.accepting[state] and (len(tokens) >= about or coin.random() < 0.1)):
        far = next(k for k, states in enumerate(near) if states >> state & 1)
        goal = near[far - 1] if far and len(tokens) >= about else near[-1]
        ways = [c for c, target in enumerate(automaton.table[state]) if goal >> int(target) & 1]
        if not ways:
            break
        kind = coin.choice(ways)
        tokens.append(int(coin.choice(np.flatnonzero(automaton.class_of == kind).tolist())))
        state = int(automaton.table[state, kind])
    return tokens


# --- regular expressions ------------------------------------------------------------------------------------

leaves = st.sampled_from(
    [
        "a",
        "b",
        "é",
        "🐈",
        ".",
        r"\w",
        r"\s",
        r"\d",
        "[ab]",
        "[^a]",
        "[^é🐈]",
        "[a-€]",
        "(?i:k)",
        "(?s:.)",
        "(?a:\\w)",
        "(?a:\\w(?u:\\w))",
        "",
    ]
)
patterns = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map(lambda pair: f"(?:{pair[0]}|{pair[1]})"),
        st.tuples(inner, st.sampled_from(["*", "+", "?", "*?", "??", "{2}", "{1,3}", "{0,2}?"])).map(
            lambda pair: f"({pair[0]}){pair[1]}"
        ),
    ),
    max_leaves=6,
)


@settings(max_examples=120)
@given(patterns, st.lists(st.text(LETTERS, max_size=6), max_size=12), st.data())
def test_an_automaton_accepts_what_re_fits(pattern, texts, data):
    letters = regular(pattern)
    texts.append(data.draw(st.from_regex(pattern, fullmatch=True)))
    for text in texts:
        fits = re.fullmatch(pattern, text) is not None
        assert reads(letters, text) == fits, (pattern, text)


@pytest.mark.parametrize(
    "pattern",
    ["a|ab", "a*?b?", "(a|b)*?a", "é+", "^ab$", r"\Aab\Z", "(?i)k", "[^\n]", "^a$|^b$|^(aba|^k)$"],
)
def test_alternatives_that_search_engines_cut(pattern):
    """A leftmost-first automaton forgets "ab" in "a|ab"; characters of several bytes repeat."""
    for text in ["a", "ab", "aba", "aaba", "éé", "k", "\u212a", "b", "", "\n"]:
        assert reads(regular(pattern), text) == (re.fullmatch(pattern, text) is not None)


@settings(max_examples=200)
@given(
    st.integers(0, 0x10FFFF), st.integers(0, 0x10FFFF), st.lists(st.characters(exclude_categories=["Cs"]), max_size=9)
)
def test_utf8_spells_a_range_and_nothing_else(low, high, characters):
    low, high = sorted((low, high))
    if low <= 0xDFFF and high >= 0xD800:
        return
    spelt = list(utf8(low, high))
    assert sum(int(np.prod([b - a + 1 for a, b in span])) for span in spelt) == high - low + 1
    for character in [*characters, chr(low), chr(high)]:
        found = [
            span
            for span in spelt
            if len(span) == len(character.encode())
            and all(a <= byte <= b for byte, (a, b) in zip(character.encode(), span, strict=True))
        ]
        assert len(found) == (low <= ord(character) <= high)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("a(", "missing \\), unterminated subpattern"),
        (r"(a)\1", "groupref is not regular"),
        ("(?=a)a", "assert is not regular"),
        (r"a\b", "cannot stand inside"),
        ("(a$|b)b", "cannot stand inside"),
        ("(a|b)*a(a|b){20}", "more than 20,000 states: use smaller counts"),
        ("a{1000000}", "more than 100,000 steps: use smaller counts"),
        ("(a?){2000}", "too many ways to read the same text: use smaller counts"),
        ("(" * 5000 + ")" * 5000, "nested|recursion"),
    ],
)
def test_what_no_automaton_can_follow(pattern, message):
    with pytest.raises(ValueError, match=message) as caught:
        regular(pattern)
    assert "\n" not in str(caught.value)


def test_a_letter_that_stands_for_itself_is_not_looked_for_among_all_characters():
    before = code_points.cache_info().misses
    regular("".join(map(chr, range(0x4E00, 0x4E40))))
    assert code_points.cache_info().misses == before
    assert not regular("\ud800").accepting.any()


@settings(max_examples=100)
@given(st.lists(st.text(LETTERS, min_size=1, max_size=5), min_size=1, max_size=8), st.text(LETTERS, max_size=5))
def test_choices_are_all_there_is(texts, other):
    letters = choices(texts)
    for text in [*texts, *(text[:-1] for text in texts), other]:
        assert reads(letters, text) == (text in texts)


@pytest.mark.parametrize("pattern", ["(){10000000}a", "(){0,10000000}a"])
def test_nothing_repeated_is_nothing(pattern):
    """At once, however often."""
    assert [reads(regular(pattern), text) for text in ("a", "", "aa")] == [True, False, False]


@pytest.mark.parametrize("texts", [[], [""], ["a", ""]])
def test_empty_choices(texts):
    with pytest.raises(ValueError, match="at least one, and none of them empty"):
        choices(texts)


def test_a_choice_of_no_characters_is_named():
    with pytest.raises(ValueError, match=r"choice 'a\\ud800': half a surrogate pair"):
        choices(["b", "a\ud800"])


# --- tokens -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Tokenizer:
    """Llama 2's shape: "▁" for a space, a token a byte, and a decoder that drops the first space."""
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "▁a", "a▁b", "▁▁", "é"]
    model = models.BPE({name: id for id, name in enumerate(names)}, [], unk_token="<unk>", byte_fallback=True)
    inner = tokenizers.Tokenizer(model)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    inner.decoder = decoders.Sequence(steps)
    return saved(inner, ["<unk>", "<s>", "</s>"], tmp_path_factory.mktemp("llama"))


def saved(inner: tokenizers.Tokenizer, special: list[str], folder: Path) -> Tokenizer:
    inner.add_special_tokens(special)
    inner.save(str(folder / "tokenizer.json"))
    return Tokenizer.load(folder)


@pytest.mark.parametrize("which", ["bytes", "bpe", "llama"])
def test_spellings_joined_are_what_is_decoded(which, llama):
    tokenizer = {"bytes": BYTES, "bpe": BPE, "llama": llama}[which]
    spelt, coin = tokenizer.spellings(), random.Random(0)
    assert len(spelt) == tokenizer.vocab
    assert spelt[tokenizer.begin] is None
    assert spelt[tokenizer.end] is None
    assert tokenizer.drops_first_space() == (which == "llama")
    for _ in range(300):
        ids = [coin.randrange(tokenizer.vocab) for _ in range(8)]
        text = b"".join(spelt[id] or b"" for id in ids)
        if which == "llama":
            ids, text = [tokenizer.begin, *tokenizer.encode("a"), *ids], b"a" + text
            try:
                text.decode()
            except UnicodeDecodeError:
                continue  # its decoder spoils the run
        assert tokenizer.decode(ids) == text.decode(errors="replace")


def test_a_tokenizer_without_bytes(tmp_path):
    inner = tokenizers.Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1, "##b": 2}, unk_token="[UNK]"))
    inner.decoder = decoders.WordPiece()
    with pytest.raises(ValueError, match="WordPiece decoder\\) has no bytes for each token"):
        saved(inner, ["</s>"], tmp_path).spellings()


@settings(max_examples=80)
@given(patterns, st.lists(st.text("abkKé\n ", min_size=1, max_size=3), min_size=1, max_size=8), st.data())
def test_tokens_fit_where_their_text_does(pattern, words, data):
    """For tokens of several characters, single bytes of characters, special tokens, and an end token behind."""
    pieces = [*(word.encode() for word in words), "é".encode()[:1], "é".encode()[1:], None, b"", None]
    end = len(pieces) - 1
    try:
        automaton = over_tokens(regular(pattern), pieces, vocab=end + 3, end=end)
    except ValueError:
        automaton = None  # no text of these tokens fits
    for ids in data.draw(st.lists(st.lists(st.integers(0, end + 2), max_size=5), max_size=20)):
        body = list(ids)
        while body and body[-1] == end:
            body.pop()
        spelt = [pieces[id] if id <= end else None for id in body]
        text = b"".join(piece or b"" for piece in spelt)
        try:
            fits = all(spelt) and re.fullmatch(pattern, text.decode()) is not None
        except UnicodeDecodeError:
            fits = False
        found = automaton is not None and automaton.accepts([int(automaton.class_of[id]) for id in ids])
        assert found == fits


def test_states_that_tokens_never_reach_are_left_out():
    automaton = over_tokens(regular("(ab)*|c{50}"), [b"ab", b"b", b"zz"])
    assert len(automaton.table) == 2 + 1  # dead, the start, and behind some ab
    assert automaton.class_of.tolist() == [1, 0, 0]
    assert automaton.lengths(5) == [0, 1, 2, 3, 4, 5]
    with pytest.raises(ValueError, match="no text that the model's tokens can spell"):
        over_tokens(regular("c"), [b"ab"])


def test_a_lost_first_space(llama):
    """Where nothing stands before it, the text that fits is the one that is left of the tokens' own."""
    ids = {text: [llama.inner.token_to_id(token) for token in tokens] for text, tokens in SPACED.items()}
    for pattern, fits in (("a b", {"▁a ▁b", "a▁b", "▁ a▁b"}), (" a", {"▁▁ a", "▁ ▁a"}), ("(?:a| )*", None)):
        automaton = grammar.regex(llama, pattern, opens=True)
        for name, tokens in ids.items():
            found = automaton.accepts([int(automaton.class_of[id]) for id in tokens])
            assert found == (re.fullmatch(pattern, llama.decode([llama.begin, *tokens])) is not None), (pattern, name)
            assert fits is None or found == (name in fits)


SPACED = {
    "▁a ▁b": ["▁a", "▁", "b"],
    "a▁b": ["a▁b"],
    "▁ a▁b": ["▁", "a▁b"],
    "▁▁ a": ["▁▁", "a"],
    "▁ ▁a": ["▁", "▁a"],
    "▁▁ ▁a": ["▁▁", "▁a"],
    "a": ["a"],
    "▁": ["▁"],
}


# --- JSON ---------------------------------------------------------------------------------------------------

PERSON = {
    "$defs": {"word": {"type": "string", "minLength": 1, "maxLength": 8}},
    "title": "Person",
    "type": "object",
    "properties": {
        "name": {"$ref": "#/$defs/word"},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["a", "b.c", 1, None, {"x": [1, "é"]}]}, "maxItems": 3},
        "id": {"type": "string", "pattern": r"^[a-f\d]{4}$"},
        "size": {"type": ["number", "null"]},
    },
    "required": ["id"],
}
SCHEMAS = [
    PERSON,
    {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"const": '"q" \\ \n'}, "c": {"type": "boolean"}}},
    {"type": "object", "properties": {"a": {"type": "null"}, "b": {"type": "null"}}, "required": ["a", "b"]},
    {"type": "object", "additionalProperties": {"type": "number"}},
    {"type": "array", "items": {"anyOf": [{"type": "integer", "minimum": 1}, {"type": "string"}]}, "minItems": 2},
    {"type": "array", "prefixItems": [{"type": "string", "maxLength": 2}, {"type": "boolean"}]},
    {"type": "array", "items": {"type": "null"}, "minItems": 1, "maxItems": 1},
    {"type": "array", "items": {"type": "null"}, "maxItems": 0},
    {"type": "integer", "enum": [1, 12, "no", True]},
    {"type": "integer", "minimum": -3, "maximum": 11},
    {"type": "string", "pattern": r"^[^@]+@[^@\s]+\.\w{2,3}$|^\S$", "format": "email"},
    {"type": "array", "items": {"type": "integer", "exclusiveMinimum": 9}, "uniqueItems": False, "readOnly": True},
]


@pytest.mark.parametrize("schema", SCHEMAS, ids=range(len(SCHEMAS)))
@pytest.mark.parametrize("tokenizer", [BYTES, BPE], ids=["bytes", "bpe"])
def test_what_fits_a_schema_is_valid(schema, tokenizer):
    automaton, coin = grammar.json_schema(tokenizer, schema, end=False), random.Random(1)
    for about in range(0, 60, 3):
        text = b"".join(tokenizer.spellings()[id] for id in some(automaton, coin, about)).decode()
        jsonschema.validate(json.loads(text), schema, jsonschema.Draft202012Validator)


def test_usual_json_fits_its_schema():
    person = {"name": "Ann é", "age": 41, "tags": ["a", None, 1], "id": "00ff", "size": -1.5e3}
    for given_ in (person, {"id": "00ff"}, {"age": 0, "id": "0123"}, {"tags": [], "id": "abcd", "size": None}):
        for separators in ((", ", ": "), (",", ":")):
            text = json.dumps(given_, ensure_ascii=False, separators=separators)
            assert re.fullmatch(schema_pattern(PERSON), text), text
    assert not re.fullmatch(schema_pattern(PERSON), json.dumps({"age": 41}))


@pytest.mark.parametrize("pattern", [".", r"\s", r"\S", r"[^\s]", r"\W", r"[\W\d]", r"[^\D]", "[^@]", "(?i)k"])
def test_a_pattern_is_kept_as_python_reads_it_and_as_ecma_does(pattern):
    """Only in ECMA-262 U+FEFF is a space, and U+2028 and U+2029 end a line; only in Unicode U+00A0 is a space."""
    written = re.compile(schema_pattern({"type": "string", "pattern": pattern}))
    plain = re.compile("""[^\x00-\x1f"\\\\\u2028\u2029\ufeff]""")
    for character in map(chr, (*range(0x800), *range(0x2000, 0x2030), 0x65E5, 0xFEFF, 0x1F408)):
        fits = [re.fullmatch(pattern, character, flags) for flags in (0, re.ASCII)]
        assert bool(written.fullmatch(f'"{character}"')) == all([*fits, plain.fullmatch(character)]), character


@pytest.mark.parametrize("low", [None, -120, -99, -1, 0, 1, 37, 100])
@pytest.mark.parametrize("high", [None, -100, -1, 0, 5, 99, 101, 320])
def test_integers_between_bounds(low, high):
    if low is not None and high is not None and low > high:
        return
    inside = {name: value for name, value in (("minimum", low), ("maximum", high)) if value is not None}
    outside = {f"exclusive{name.title()}": value + (0.5 if name == "maximum" else -1) for name, value in inside.items()}
    for bounds in (inside, outside):
        pattern = re.compile(schema_pattern({"type": "integer", **bounds}))
        for value in range(-400, 400):
            fits = (low is None or value >= low) and (high is None or value <= high)
            assert bool(pattern.fullmatch(str(value))) == fits, value
        assert not any(map(pattern.fullmatch, ("", "-", "00", "01", "-01", "1.0")))


DOUBLED = {"0": {"const": "x" * 1000}}
DOUBLED |= {str(i): {"type": "array", "prefixItems": [{"$ref": f"#/$defs/{i - 1}"}] * 2} for i in range(1, 41)}
NESTED = reduce(lambda inner, _: {"type": "array", "items": inner}, range(3000), {"type": "null"})


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "array", "items": {"type": "null"}, "uniqueItems": True}, "#: 'uniqueItems' cannot be kept"),
        ({"oneOf": [{"type": "null"}]}, "#: 'oneOf' cannot be kept"),
        ({"type": "object", "properties": {"a": {"allOf": []}}}, "#/properties/a: 'allOf' cannot be kept"),
        ({"type": ["number", "integer"], "minimum": 7}, "#: 'minimum' cannot be kept"),
        ({"type": "integer", "minimum": 7, "exclusiveMaximum": 7}, "exclusiveMaximum and minimum leave no integer"),
        ({"type": "integer", "maximum": math.inf}, "maximum Infinity must be a number of 18 digits at most"),
        ({"type": "integer", "exclusiveMinimum": True}, "exclusiveMinimum true must be a number"),
        ({"type": "string", "pattern": '^a"$'}, "fits no text without quotation marks"),
        ({"type": "string", "pattern": "a+", "minLength": 3}, "say the length inside the pattern"),
        ({"type": "string", "pattern": "(a"}, "unterminated"),
        ({"type": "string", "pattern": "a)|(?:b"}, "unbalanced parenthesis"),
        ({"$defs": {"t": {"type": "array", "items": {"$ref": "#/$defs/t"}}}, "$ref": "#/$defs/t"}, "refers to itself"),
        ({"$ref": "#/$defs/none"}, "there is no #/\\$defs/none"),
        ({"type": "object"}, "say its properties"),
        ({"type": "array"}, "say its items"),
        ({"type": "object", "properties": {}, "required": ["a"]}, '"a" required, but not among the properties'),
        ({"type": "string", "minLength": 3, "maxLength": 2}, "leave no length"),
        ({"type": "null", "enum": [1]}, "no value is of type null"),
        ({"type": "text"}, 'type "text": say one of string'),
        ({"type": "object", "properties": None, "required": ["b"]}, "#: properties null must be an object"),
        ({"type": "object", "properties": {}, "required": None}, "#: required null must be a list"),
        ({"type": "object", "properties": {}, "required": [["a"], 1]}, '\\["a"\\], 1 required, but not among'),
        ({"items": {"type": "string", "pattern": 1}}, "#/items: pattern 1 must be a string"),
        ({"type": "array", "prefixItems": [{"type": "null"}], "minItems": "1"}, "minItems 1 and maxItems None leave"),
        ({"type": "string", "minLength": True}, "minLength True and maxLength None leave no length"),
        ({"$defs": DOUBLED, "$ref": "#/$defs/40"}, "longer than 300,000 characters"),
        (NESTED, "nested too deeply"),
        ({"const": math.nan}, "#: NaN: JSON has finite numbers only"),
        ({"enum": [1, [-math.inf]]}, "#: \\[-Infinity\\]: JSON has finite"),
        (True, "found true"),
        ([1], "found \\[1\\]"),
    ],
)
def test_what_cannot_be_kept_is_refused(schema, message):
    with pytest.raises(ValueError, match=message) as caught:
        schema_pattern(schema)
    assert "\n" not in str(caught.value)
