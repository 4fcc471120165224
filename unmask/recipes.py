"""Named configurations: each is a function, any field of which can be overridden on the command line.

`data="data/builtin"` names the built-in corpus, which is prepared there when a recipe first needs it.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from unmask.data import Tokenizer, prepare
from unmask.objectives import AnyOrder, NextToken
from unmask.train import Optimiser, TrainConfig
from unmask.transformer import TransformerConfig

BUILTIN, BUILTIN_TOKENIZER = "data/builtin", "bpe:512"


def tiny() -> TrainConfig:
    """A small MDM on the built-in corpus: a few minutes on two CPU cores."""
    return TrainConfig(
        network=TransformerConfig(vocab=512, layers=3, heads=4, width=128),
        data=BUILTIN,
        objective=AnyOrder(importance=0.5),
        name="tiny",
        length=64,
        batch=64,
        steps=2000,
        optimiser=Optimiser(rate=3e-3, warmup=100),
        validate_every=200,
        save_every=250,
    )


def tiny_ar() -> TrainConfig:
    """The causal twin of `tiny`: the same size, data, budget and optimiser."""
    twin = tiny()
    network = replace(twin.network, causal=True)
    return replace(twin, network=network, objective=NextToken(), name="tiny-ar")


RECIPES: dict[str, Callable[[], TrainConfig]] = {"tiny": tiny, "tiny-ar": tiny_ar}


def on_its_data(config: TrainConfig) -> TrainConfig:
    """The configuration with its data's vocabulary; prepares the built-in corpus where it is missing."""
    if config.data == BUILTIN and not Path(BUILTIN).exists():
        prepare("builtin", Path(BUILTIN), tokenizer=BUILTIN_TOKENIZER)
    vocab = Tokenizer.load(Path(config.data)).vocab
    return replace(config, network=replace(config.network, vocab=vocab))
