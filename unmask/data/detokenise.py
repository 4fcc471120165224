"""Detokenisers: benchmark texts back to how people write, one function a corpus.

The corpora were published in tokens of their own time (spaces around punctuation, "@-@" for a hyphen, "N" for a
number). GPT-2's paper undid that before scoring (Radford et al. 2019, section 3), and the conventions that RADD,
SEDD and MDLM share are those of Megatron-LM and of GPT-2's reproductions. The order of the rules is part of a
protocol, odd ones included; what a rule does to a literal text stands in tests/test_protocols.py.
"""

import re
from collections.abc import Iterable


def wikitext(text: str) -> str:
    """WikiText-2 and -103: "@-@" joins, punctuation moves to its word, brackets and quotes close up.

    Left out of the published rules is one that never fires: its pattern asks for slashes around an apostrophe, and
    no line of WikiText has them. The rule for " N " is Penn Treebank's, but the published code applies it here too.
    """
    text = _replaced(text, [("s '", "s'"), (" @-@ ", "-"), (" @,@ ", ","), (" @.@ ", ".")])
    text = _replaced(text, [(f" {mark} ", f"{mark} ") for mark in ":;.!?,"])
    for opening, closing in ("()", "[]", "{}", '""', "''"):
        inside = rf"{re.escape(opening)}\s*([^{re.escape(closing)}]*?)\s*{re.escape(closing)}"
        text = re.sub(inside, rf"{opening}\1{closing}", text)
    text = _replaced(text, [("= = = =", "===="), ("= = =", "==="), ("= =", "=="), (" ° ", "°")])
    return _replaced(text, [(" \n", "\n"), ("\n ", "\n"), (" N ", " 1 "), (" 's", "'s")])


def ptb(text: str) -> str:
    """Penn Treebank: contractions close up, the number N becomes 1, <unk> a question mark."""
    text = _replaced(text, [(" 's", "'s"), ("s ' ", "s' "), (" n't", "n't"), (" \n ", "\n"), ("\\/", "/")])
    text = re.sub(" N(?= )", " 1", text)  # of neighbours too: " N N " shares a space
    return _replaced(text, [("$ 1", "$1"), ("# 1", "#1"), ("<unk>", "?")])


def lm1b(text: str) -> str:
    """One Billion Words: contractions, sentence ends, quotes, brackets and currencies close up."""
    text = _replaced(text, [("http : / / ", "http://"), ("https : / / ", "https://")])
    text = re.sub(r" '(\w+)", r"'\1", text)
    for after in (" ", "$"):  # one after the other: a match takes the space that the next would begin with
        text = re.sub(rf" (\w+) \.{after}", rf" \1.{after.strip('$')}", text)
    for mark in "?!":
        text = re.sub(rf" \{mark}$", mark, text.replace(f" {mark} ", f"{mark} "))
    text = _replaced(text, [(" , ", ", "), (" : ", ": "), (" ; ", "; "), (" / ", "/")])
    for opening, closing in ('""', "''", "()", "[]"):
        inside = rf"{re.escape(opening)} ([^{re.escape(opening + closing)}]+) {re.escape(closing)}"
        text = re.sub(inside, rf"{opening}\1{closing}", text)
    return _replaced(text, [("$ ", "$"), ("£ ", "£")])


def lambada(text: str) -> str:
    """LAMBADA in OpenAI's version: straight quotes, trimmed, behind a line end."""
    return "\n" + _replaced(text, [("“", '"'), ("”", '"')]).strip()


def scientific_papers(text: str) -> str:
    """arXiv and PubMed articles, as MDLM reads them: WikiText's rules, then One Billion Words'."""
    return lm1b(wikitext(text))


def as_it_is(text: str) -> str:
    """No rule: the corpus is running text already."""
    return text


def _replaced(text: str, rules: Iterable[tuple[str, str]]) -> str:
    for old, new in rules:
        text = text.replace(old, new)
    return text


RULES = {
    "wikitext": wikitext,
    "ptb": ptb,
    "lm1b": lm1b,
    "lambada": lambada,
    "scientific-papers": scientific_papers,
}
"""By the name of the corpus."""
