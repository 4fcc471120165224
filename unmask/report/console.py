"""A text that fills in before the reader's eyes, on a terminal."""

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from rich.console import Console
from rich.live import Live
from rich.text import Text
from torch import Tensor

from unmask.sampling import Step

HOLE = "·"
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # a model's text must not steer the terminal


def harmless(text: str) -> str:
    """A model's text for a terminal, which it cannot steer."""
    return CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


@contextmanager
def unmasking(
    console: Console,
    canvas: Tensor,
    mask_id: int,
    pieces: Callable[[list[int]], list[str]],
    *,
    seconds: float = 4.0,
) -> Iterator[Callable[[Step], None] | None]:
    """An `on_step` that redraws the first canvas after each call, stretched to about `seconds`; None off a terminal."""
    if not console.is_terminal:
        yield None
        return
    tokens = canvas.clone()
    fresh = torch.zeros_like(tokens, dtype=torch.bool)
    pause = seconds / max(1, int((tokens == mask_id).sum()))

    def frame() -> Text:
        """The canvas as it stands: newest tokens bright, holes as dots."""
        text = Text()
        shown = pieces([token if token != mask_id else 0 for token in tokens.tolist()])
        for piece, token, new in zip(shown, tokens.tolist(), fresh.tolist(), strict=True):
            if token == mask_id:
                text.append(f" {HOLE}", style="dim")
            else:
                text.append(harmless(piece), style="bold green" if new else "")
        return text

    with Live(frame(), console=console, auto_refresh=False) as live:

        def on_step(step: Step) -> None:
            mine = step.sequence == 0
            if not bool(mine.any()):
                return
            tokens[step.position[mine]] = step.token[mine]
            fresh.zero_()
            fresh[step.position[mine]] = True
            live.update(frame(), refresh=True)
            time.sleep(pause * int(mine.sum()))

        yield on_step
        fresh.zero_()
        live.update(frame(), refresh=True)
