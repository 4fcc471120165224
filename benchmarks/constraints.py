"""Constraints: seconds to build an automaton over a large vocabulary, and what constrained sampling adds to a free one.

    python benchmarks/constraints.py [--threads 1]

The vocabulary is made up in the shape of a real one: every byte, words with and without a space before them, digits
and punctuation, and texts of several bytes a character. The ratio is constrained over free, same network, same plans.
"""

import argparse
import random
import time
from collections.abc import Callable

import torch

from unmask.grammar.regular import choices, regular
from unmask.grammar.schema import schema_pattern
from unmask.sampling import Constraint, LowConfidence, Policy, RandomOrder, Tweedie, sample
from unmask.sampling.automaton import ByteAutomaton, over_tokens
from unmask.transformer import Transformer, TransformerConfig

LAYERS, WIDTH, HEADS, LENGTH, BATCH = 6, 256, 8, 64, 4
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["a", "b", 1, None]}, "maxItems": 3},
        "id": {"type": "string", "pattern": "^[a-f0-9]{4}$"},
    },
    "required": ["name", "id"],
}


def vocabulary(size: int) -> list[bytes | None]:
    coin = random.Random(0)
    pieces = dict.fromkeys(bytes([byte]) for byte in range(256))
    kinds = [
        ("abcdefghijklmnopqrstuvwxyz", 12),
        ("ABCdefghi", 6),
        ("0123456789", 3),
        ('{}[]",:.-_/ \n', 6),
        ("éß中文🐈", 4),
    ]
    while len(pieces) < size - 1:
        letters, longest = coin.choices(kinds, [70, 15, 3, 7, 5])[0]
        word = "".join(coin.choices(letters, k=coin.randint(1, longest)))
        pieces[((" " if coin.random() < 0.5 else "") + word).encode()] = None
    return [*pieces, None]


def build(made: Callable[[], ByteAutomaton], pieces: list[bytes | None]) -> str:
    start = time.perf_counter()
    letters = made()
    middle = time.perf_counter()
    automaton = over_tokens(letters, pieces, end=len(pieces) - 1)
    end = time.perf_counter()
    states, classes = automaton.table.shape
    return f"{middle - start:.2f} s over bytes, {end - middle:.2f} s over tokens, {states} states, {classes} classes"


def seconds(network: Transformer, policy: Policy, constraint: Constraint | None) -> float:
    canvas = torch.full((BATCH, LENGTH), network.mask_id)
    start = time.perf_counter()
    sample(network, canvas, policy, constraint=constraint)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=1)
    torch.set_num_threads(parser.parse_args().threads)
    coin = random.Random(1)
    names = ["".join(coin.choices("abcdefghij", k=coin.randint(3, 12))) for _ in range(1000)]
    constraints: dict[str, Callable[[], ByteAutomaton]] = {
        "a date": lambda: regular(r"\d{4}-[01][0-9]-[0-3][0-9]"),
        "words": lambda: regular(r"(\w+ )*\w+\."),
        "1000 characters": lambda: regular(".{0,1000}"),
        "a JSON object": lambda: regular(schema_pattern(PERSON)),
        "1000 choices": lambda: choices(names),
    }
    for size in (50_257, 128_000):
        pieces = vocabulary(size)
        for name, made in constraints.items():
            print(f"V {size}, {name}: {build(made, pieces)}", flush=True)
    pieces = vocabulary(50_257)
    network = Transformer(TransformerConfig(vocab=len(pieces), layers=LAYERS, heads=HEADS, width=WIDTH)).eval()
    for name in ("words", "a JSON object"):
        constraint = Constraint(over_tokens(constraints[name](), pieces, end=len(pieces) - 1))
        for policy in (RandomOrder(), Tweedie(16), LowConfidence(16)):
            seconds(network, policy, constraint)  # warm up; the sets it meets are kept
            free, bound = seconds(network, policy, None), seconds(network, policy, constraint)
            print(
                f"{name}, {policy!r}: {free:.2f} s free, {bound:.2f} s constrained, ratio {bound / free:.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
