"""Which numbers matrix products are computed in."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from unmask.cpu import best_of_turns

Precision = Literal["auto", "float32", "bfloat16"]


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """Matrix products in bfloat16 where `precision` says so; nothing else changes."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


class Later:
    """Numbers on a device, read when they are there: asking for them at once would leave a GPU without work."""

    def __init__(self, numbers: Tensor) -> None:
        self.ready = torch.cuda.Event() if numbers.device.type == "cuda" else None
        self.numbers = numbers.to("cpu", non_blocking=self.ready is not None)
        if self.ready is not None:
            self.ready.record(torch.cuda.current_stream(numbers.device))

    def values(self) -> list[float]:
        if self.ready is not None:
            self.ready.synchronize()
        return self.numbers.tolist()


def best_precision(device: torch.device) -> Precision:
    """bfloat16 where a matrix product in it is at least 1.5 times faster, forward and backward, else float32."""

    def products(dtype: torch.dtype) -> Callable[[], None]:
        a, b = (torch.ones(512, 512, device=device, dtype=dtype) for _ in range(2))

        def both() -> None:
            a @ b, a.T @ b
            _synchronise(device)

        return both

    plain, half = best_of_turns(products(torch.float32), products(torch.bfloat16))
    return "bfloat16" if plain > 1.5 * half else "float32"


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
