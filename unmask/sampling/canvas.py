"""Canvases from text with blanks."""

import re
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from unmask.draws import LENGTH, keyed_uniforms

LONGEST = 1 << 20  # open tokens of a canvas: a typing error rather than a wish
BLANK = re.compile(r"\{\{\s*(\d{1,99})\s*(?:\.\.\s*(\d{1,99})\s*)?\}\}")


def template(
    text: str,
    encode: Callable[[str], list[int]],
    mask_id: int,
    *,
    begin: Sequence[int] = (),
    seed: int = 0,
    sequence: int = 0,
) -> Int[Tensor, " L"]:
    """The canvas of a text with blanks: `{{8}}` is eight open tokens, `{{2..12}}` a uniformly drawn number of them.

    The text between blanks is encoded piece by piece; `begin` goes in front. Raises ValueError for a blank that asks
    for nothing or whose bounds are reversed.
    """
    canvas, end = list(begin), 0
    rest = BLANK.sub(" ", text)  # braces on both sides of a blank are none of another
    if "{{" in rest or "}}" in rest:
        raise ValueError(f"{text!r}: a blank is {{{{8}}}} for eight tokens or {{{{2..12}}}} for two to twelve")
    if sum(int(blank[2] or blank[1]) for blank in BLANK.finditer(text)) > LONGEST:
        raise ValueError(f"the blanks ask for more than {LONGEST:,} tokens: write less at once")
    lengths = keyed_uniforms(seed, [sequence], (len(BLANK.findall(text)),), LENGTH)[0].tolist()
    for blank, u in zip(BLANK.finditer(text), lengths, strict=True):
        least, most = int(blank[1]), int(blank[2] or blank[1])
        if not 1 <= least <= most:
            raise ValueError(f"blank {blank[0]}: write {{{{8}}}} for eight tokens or {{{{2..12}}}} for two to twelve")
        canvas += encode(text[end : blank.start()]) if blank.start() > end else []
        canvas += [mask_id] * (least + int(u * (most - least + 1)))
        end = blank.end()
    canvas += encode(text[end:]) if end < len(text) else []
    return torch.tensor(canvas, dtype=torch.long)


def behind_end(tokens: Int[Tensor, "B L"], open_: Bool[Tensor, "B L"], end: int) -> Bool[Tensor, "B L"]:
    """The positions of each blank (a run of what was open) that have an end token before them in it."""
    ends = open_ & (tokens == end)
    count = ends.long().cumsum(-1)
    before = count.masked_fill(open_, 0).cummax(-1).values  # end tokens of the blanks further left
    return open_ & (count - ends.long() > before)
