"""Named configurations: each is a function, any field of which can be overridden on the command line.

`data="data/builtin"` names the built-in corpus, which is prepared there when a recipe first needs it. The papers'
corpora are too large for that: `SOURCES` says what to prepare. The vocabulary always comes from the data.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from unmask.data import Tokenizer, prepare
from unmask.data.splits import MANIFEST
from unmask.families.tables import SMDM_SIZES
from unmask.objectives import AnyOrder, LambdaDCE, NextToken
from unmask.train import Optimiser, TrainConfig
from unmask.train.budget import steps_for
from unmask.transformer import TransformerConfig


class Source(NamedTuple):
    """Text and tokenizer of a prepared folder."""

    text: str
    tokenizer: str


BUILTIN, OPENWEBTEXT, SLIMPAJAMA = "data/builtin", "data/openwebtext", "data/slimpajama"
SOURCES = {
    BUILTIN: Source("builtin", "bpe:512"),
    OPENWEBTEXT: Source("hf://Skylion007/openwebtext", "hf://openai-community/gpt2"),
    SLIMPAJAMA: Source("hf://cerebras/SlimPajama-627B", "hf://meta-llama/Llama-2-7b-hf"),
}


def tiny() -> TrainConfig:
    """A small MDM on the built-in corpus: a few minutes on two CPU cores."""
    return TrainConfig(
        network=TransformerConfig(vocab=512, layers=3, heads=4, width=128, neighbours=4),
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
    return _causal(tiny(), "tiny-ar")


def radd_small() -> TrainConfig:
    """RADD small (arXiv 2406.03736): 12 layers, width 768, OpenWebText, any-order loss.

    The other three losses are `… radd-small time-dse`, `time-dce` and `lambda-dce`. 400 thousand steps, as the
    released weights were trained; the released configuration says a million. Compared with that code (ML-GSAI/RADD,
    92a23fb): batch, rate, warm-up to a constant rate, betas, clipping and average are the same; its weight decay is 0,
    where 0.03 is the paper's and ours leaves out norms and biases; it leaves out both ends of t (1e-3) where ours are
    unbiased, draws each k by itself, trains in float16, and has no begin token.
    """
    return _radd("radd-small", TransformerConfig(50_257, 12, 12, 768, flavour="dit", dropout=0.02))


def radd_medium() -> TrainConfig:
    """RADD medium: 24 layers, width 1024 and dropout as in the released configuration; the rest as `radd-small`.

    How many steps the paper's medium models were trained for could not be checked: 400 thousand is taken from small.
    """
    return _radd("radd-medium", TransformerConfig(50_257, 24, 16, 1024, flavour="dit", dropout=0.02))


def _radd(name: str, network: TransformerConfig) -> TrainConfig:
    return TrainConfig(
        network=network,
        data=OPENWEBTEXT,
        objective=AnyOrder(),
        name=name,
        length=1024,
        batch=512,
        accumulate=64,
        steps=400_000,
        optimiser=Optimiser(rate=3e-4, final=1.0, warmup=2500, betas=(0.9, 0.999), weight_decay=0.03),
        ema=0.9999,
        validate_every=5000,
        save_every=5000,
    )


LARGEST_BUDGET = 1e20  # FLOPs, 6ND: the last of the scaling law's


def smdm(size: int = 113) -> TrainConfig:
    """An MDM of SMDM's family (arXiv 2410.18514), SlimPajama, λ-DCE, for 1e20 FLOPs (6ND): the largest of its budgets.

    Sizes, batch, betas, weight decay, clipping, steps and warm-up (a hundredth, at least 100) are those of the released
    trainer (ML-GSAI/SMDM, pretrain/train_mdm.py, read in a public copy); so is the rate, 2e-4 to 2e-5, where the paper
    says 4e-4 to 4e-5. It decays norms too; its level is uniform and clipped at 1e-3, which biases the loss; ours is
    λ = u^2, reweighted. That trainer cuts no batch (`--short-batches 0`); a second one, train_mdm_rl.py, cuts a share
    of them to a random length, one part of a step at a time: here a hundredth, whole steps.
    """
    if size not in SMDM_SIZES:
        raise ValueError(f"SMDM has no size {size}: there is {', '.join(map(str, SMDM_SIZES))}")
    layers, heads, width = SMDM_SIZES[size]
    config = TrainConfig(
        network=TransformerConfig(32_000, layers, heads, width, mlp=1600 if size == 75 else None),
        data=SLIMPAJAMA,
        objective=LambdaDCE(),
        name=f"smdm-{size}",
        length=2048,
        batch=256,
        short_batches=0.01,
        accumulate=64,
        optimiser=Optimiser(rate=2e-4),
        validate_every=1000,
        save_every=1000,
    )
    steps = steps_for(config, flops=LARGEST_BUDGET)
    return replace(config, steps=steps, optimiser=replace(config.optimiser, warmup=max(100, steps // 100)))


def ar(size: int = 113) -> TrainConfig:
    """The causal twin of SMDM's MDM: the same size, data, optimiser and steps, every batch at full length."""
    return replace(_causal(smdm(size), f"ar-{size}"), short_batches=0.0)


def _causal(config: TrainConfig, name: str) -> TrainConfig:
    return replace(config, network=replace(config.network, causal=True), objective=NextToken(), name=name)


RECIPES: dict[str, Callable[[], TrainConfig]] = {
    "tiny": tiny,
    "tiny-ar": tiny_ar,
    "radd-small": radd_small,
    "radd-medium": radd_medium,
    **{f"smdm-{size}": partial(smdm, size) for size in SMDM_SIZES},
    **{f"ar-{size}": partial(ar, size) for size in SMDM_SIZES},
}


def on_its_data(config: TrainConfig) -> TrainConfig:
    """The configuration with its data's vocabulary; prepares the built-in corpus where it is missing.

    Raises ValueError, with the command that prepares them, where a paper's data are missing.
    """
    if not Path(config.data).exists() and config.data in SOURCES:
        source = SOURCES[config.data]
        if config.data != BUILTIN:
            command = f"unmask prepare --source {source.text} --tokenizer {source.tokenizer} --out {config.data}"
            raise ValueError(f"{config.data}: not there yet; prepare it: {command}, or name another by --data")
        prepare(source.text, Path(config.data), tokenizer=source.tokenizer)
    if not (Path(config.data) / MANIFEST).is_file():
        there = Path(config.data).exists()
        source, out = (config.data, "data/mine") if there else ("YOUR_TEXT", config.data)
        remedy = f"unmask prepare --source {source} --out {out}" + (f", then --data {out}" if there else "")
        raise ValueError(f"{config.data}: no prepared folder: {remedy}")
    vocab = Tokenizer.load(Path(config.data)).vocab
    return replace(config, network=replace(config.network, vocab=vocab))
