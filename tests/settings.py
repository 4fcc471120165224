"""A tiny run for the trainer's tests: counting in words, read as bytes."""

from dataclasses import replace
from pathlib import Path

from unmask.data import prepare
from unmask.objectives import AnyOrder, NextToken
from unmask.train import Optimiser, TrainConfig
from unmask.transformer import TransformerConfig

WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]


def prepared_words(folder: Path) -> Path:
    """A prepared folder of eight documents."""
    texts = folder / "text"
    texts.mkdir()
    for i in range(8):
        lines = [" ".join(WORDS[(i + j + k) % 10] for k in range(8)) for j in range(30)]
        (texts / f"{i}.txt").write_text("\n".join(lines), encoding="utf-8")
    return prepare(str(texts), folder / "data", tokenizer="bytes", validation=0.2)


def small(data: Path, **changes) -> TrainConfig:
    """A run of 20 steps; any field may be changed, and `causal`, `dropout` and `layers` of its network."""
    causal = changes.pop("causal", False)
    sizes = {"layers": changes.pop("layers", 1), "dropout": changes.pop("dropout", 0.1)}
    network = TransformerConfig(vocab=258, heads=2, width=32, causal=causal, **sizes)
    config = TrainConfig(
        network=network,
        data=str(data),
        objective=NextToken() if causal else AnyOrder(),
        length=32,
        batch=8,
        steps=20,
        optimiser=Optimiser(rate=1e-2, warmup=5),
        precision="float32",
        device="cpu",
        validate_every=10,
        validation_sequences=8,
        save_every=10,
    )
    return replace(config, **changes)
