"""Exact match of answers: as numbers, however they are written, or as texts."""

import re
from fractions import Fraction

MARKS = re.compile(r"####|\\boxed\{|\banswer\s*(?:is\b\s*[:=]?|[:=])", re.IGNORECASE)
CLAUSE = re.compile(r"[.;]?(?:\s*\n|\s+(?=[^\W\d])|\s*$)")  # what ends the sum that an answer may be given as
NUMBER = re.compile(
    r"(?<![\w.])([-−–]?)[$€£]?([-−]?)"
    r"(?:(\d+)\s+(?=\d+/\d))?"
    r"(\d{1,3}(?:,\d{3})+(?![\d,])|\d{1,3}(?:['’ \u00a0\u202f]\d{3})+(?!\d)|\d+)?(\.\d+)?"
    r"(?:[eE]([-+]?\d{1,3})(?!\w))?(?:/(\d+))?(?!\d)"
)
"""An optional sign and currency, a whole part before a fraction, digits with or without groups of three, a decimal
part, an exponent or a denominator."""
LONGEST = 1000  # characters of a number: Python refuses to read more than 4,300 digits
TEX = ((re.compile(r"\\[dt]?frac\s*\{\s*(\d+)\s*\}\s*\{\s*(\d+)\s*\}"), r" \1/\2"), (re.compile(r"\\([$%])"), r"\1"),
       (re.compile(r"\\!|(?<!\w)_+|_+(?!\w)"), ""), (re.compile(r"\{,\}"), ","))  # fmt: skip
SIGN = re.compile(r"([=:(\[{#]\s*)([-−–])\s+(?=[$€£]?\.?\d)")  # with a blank behind it, where nothing stands before


def final_number(text: str) -> Fraction | None:
    """The number that an answer ends on; None where it has none.

    The first one behind the last mark (####, \\boxed{, "answer is", "answer:"), or of a sum there what it comes to, or
    where there is none behind it the last of the text. "$1,234.50", "1234.5", "1.2345e3" and "2469/2" are one number;
    "12,34" is 12 and 34, since no group has two digits; a word with digits in it, such as B2, is none.
    """
    marks = list(MARKS.finditer(text))
    behind: list[Fraction] = []
    if marks:
        last = f"#{text[marks[-1].end() :].lstrip()}"  # nothing stands before a sign there
        behind = numbers(last)
        clause = CLAUSE.split(last, maxsplit=1)[0]
        if "=" in clause and (sums := numbers(clause.rpartition("=")[2])):
            behind = sums
    every = behind[:1] or numbers(text)
    return every[-1] if every else None


def numbers(text: str) -> list[Fraction]:
    """All numbers of a text, in order. A denominator of zero, and 1,000 digits, make none."""
    for pattern, plain in TEX:
        text = pattern.sub(plain, text)
    found = []
    for match in NUMBER.finditer(SIGN.sub(r"\1\2", text)):
        before, inside, ones, whole, part, power, below = match.groups()
        if (whole is None and part is None) or len(match[0]) > LONGEST:
            continue
        if below is not None and int(below) == 0:
            continue
        digits = re.sub(r"\D", "", whole or "0") + (part or "")
        value = Fraction(digits) * Fraction(10) ** int(power or 0) / int(below or 1) + int(ones or 0)
        found.append(-value if before or inside else value)
    return found


def same(answer: str, reference: str, *, as_text: bool = False) -> bool:
    """Whether an answer is the reference: by the final number where the reference is one or ends in `#### number`,
    else, or `as_text`, letter by letter, but for case, blanks and a final stop.
    """
    wanted = None if as_text else final_number(reference)
    if wanted is not None and ("####" in reference or (len(numbers(reference)) == 1 and not _letters(reference))):
        return final_number(answer) == wanted
    return _plain(answer) == _plain(reference)


def _letters(text: str) -> bool:
    return any(letter.isalpha() for letter in text)


def _plain(text: str) -> str:
    return " ".join(text.split()).rstrip(".").casefold()
