"""What a run is: its settings, its cost, and its config.json."""

import platform
from contextlib import suppress
from dataclasses import MISSING, dataclass, field, fields, replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from unmask.checkpoint import (
    ADAPTERS,
    CONFIG,
    describe,
    device_of,
    load,
    network_kind,
    same_tokenizer,
    starting_from,
)
from unmask.checkpoint.finding import find
from unmask.corruption import stratified
from unmask.data import Packed, Pairs, Tokenizer, load_manifest, sequences
from unmask.data.pairs import is_pairs, load_pairs
from unmask.files import Row, different, read_json, vacant, write_json
from unmask.hub import fetched
from unmask.lora import ALL, Layer
from unmask.lora import count as adapter_count
from unmask.objectives import AnyOrder, NextToken, Objective
from unmask.train.optimiser import Optimiser, muon_flops
from unmask.train.parallel import Parallel
from unmask.train.precision import Precision, best_precision
from unmask.transformer import TransformerConfig

COST = ("tokens", "flops_6nd", "flops_true")


@dataclass(frozen=True)
class TrainConfig:
    """Everything a run is. Raises ValueError where values do not fit together."""

    network: TransformerConfig
    data: str
    """Folder written by `unmask prepare`."""
    init: str | None = None
    """Checkpoint whose weights to begin from; by default they are drawn. `unmask train` takes its sizes, the data must
    have its tokenizer. One that is causal is opened where this network is not (best with `--shifted`)."""
    lora: int = 0
    """Rank of adapters that are trained instead of `init`'s weights, which stay where they are; 0 trains the weights.
    """
    lora_on: tuple[Layer, ...] = ALL
    """The layers of each block that have adapters."""
    objective: Objective = field(default_factory=AnyOrder)
    """AnyOrder's importance is 0 here, as published; 0.5, which `unmask train tiny` takes, learns faster."""
    name: str = "run"
    """What the run is called in tables and reports; its folder is runs/NAME unless --out says otherwise."""
    length: int = 128
    """Tokens a sequence, the begin token not counted."""
    batch: int = 32
    """Sequences a step."""
    short_batches: float = 0.0
    """Share of the steps whose sequences are cut to a length drawn from 1..length (SMDM: 0.01)."""
    documents_apart: bool = False
    """Attention stays within a document; by default it sees all that share a sequence."""
    packed: bool = False
    """Of pairs: as many examples in a sequence as fit, kept apart, each with one end token; by default one, its answer
    followed by end tokens to the end of the sequence."""
    drop_prompt: float = 0.0
    """Of pairs: the share of examples whose prompt is hidden, which standard guidance needs (SMDM: 0.1)."""
    accumulate: int = 1
    """Parts a step is computed in, to save memory."""
    steps: int = 1000
    """Optimiser steps, 0 for the weights of `init` as they are; --tokens, --flops, --true-flops and --minutes are other
    ways to say how long a run is."""
    minutes: float | None = None
    """Stop after so many minutes of this call, saved; the learning rate still follows `steps`."""
    optimiser: Optimiser = field(default_factory=Optimiser)
    ema: float = 0.0
    """Decay of the average of the weights that is kept and used; 0 keeps none. Warmed up as min(decay, (1+n)/(10+n)).
    """
    precision: Precision = "auto"
    """Of matrix products. auto: bfloat16 where a measurement finds it at least 1.5 times faster, else float32."""
    device: str = "auto"
    """cpu, cuda, cuda:1 or mps; auto takes the first GPU there is."""
    seed: int = 0
    """What is random is keyed by it: the same seed gives the same result."""
    validate_every: int = 200
    """Steps between two measurements on held-out text."""
    validation_sequences: int = 64
    """Held-out sequences measured, always the same ones."""
    save_every: int = 500
    """Steps between two checkpoints."""
    keep: int = 2
    """Checkpoints that stay, the last ones; the one that does best on held-out text stays as well."""
    parallel: Parallel = "ddp"
    """Under torchrun: every process holds the weights (ddp), or a part of weights, moments and gradients (fsdp)."""
    recompute: bool = False
    """Compute each block again in the backward pass instead of keeping what it needs: less memory, a third more work.
    """
    compile: bool = False
    """Compile the blocks with torch.compile."""
    mirror: str | None = None
    """Address of a folder that follows the run's, s3://bucket/tiny or any other that fsspec reaches; an empty run
    folder is filled from it."""
    track: Literal["trackio", "wandb", "tensorboard"] | None = None
    """Send metrics to this tracker as well, where it is installed; tensorboard's files lie in the run folder."""

    def __post_init__(self) -> None:
        counts = ("length", "batch", "accumulate", "validation_sequences", "validate_every", "save_every", "keep")
        for name in counts:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)} must be at least 1")
        if self.steps < (self.init is None):
            raise ValueError(f"steps {self.steps} must be at least 1, or 0 of what --init names")
        if self.batch % self.accumulate:
            raise ValueError(f"batch {self.batch} must be a multiple of accumulate {self.accumulate}")
        if not isinstance(self.network, TransformerConfig):
            kind = type(self.network).__name__
            raise ValueError(f"network: a TransformerConfig or a class made of it (examples/network.py), no {kind}")
        if isinstance(self.objective, NextToken) != self.network.causal:
            raise ValueError("a causal network trains with NextToken, a bidirectional one with a denoising objective")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed {self.seed} must be 0 or more and below 2^63")
        if self.documents_apart and self.network.shifted:
            what = "shifted reads a document's first token where the last of the one before it stands"
            raise ValueError(f"documents_apart: {what}, and cannot keep them apart: leave out one of the two")
        if self.minutes is not None and not self.minutes > 0:
            raise ValueError(f"minutes {self.minutes} must be above 0")
        if self.optimiser.muon and self.parallel == "fsdp":
            raise ValueError("muon: its iterations need whole matrices, which fsdp has none of: choose --parallel ddp")
        if self.lora < 0 or not self.lora_on:
            raise ValueError(f"lora {self.lora} on {self.lora_on}: a rank of 0 or more, on one layer at least")
        if not self.lora and tuple(self.lora_on) != ALL:
            raise ValueError("--lora-on: without --lora all weights are trained: give the adapters' rank by --lora")
        if self.lora and (self.init is None or self.ema or self.optimiser.muon):
            what = "names the checkpoint to adapt by --init" if self.init is None else "has no average and no muon"
            raise ValueError(f"lora {self.lora}: a run of adapters {what}")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema {self.ema} must be in [0, 1)")
        if not 0 <= self.drop_prompt < 1:
            raise ValueError(f"drop_prompt {self.drop_prompt} is a share of the examples: give 0 to less than 1")
        if not 0 <= self.short_batches <= 1:
            raise ValueError(f"short_batches {self.short_batches} is a share of the steps: give 0 to 1")

    def sequences(self, tokenizer: Tokenizer) -> tuple[Packed | Pairs, Packed | Pairs]:
        """What to train on, and what is held out. Raises ValueError where the data do not serve this run."""
        how: Row = {"length": self.length, "packed": self.packed, "causal": self.network.causal}
        how |= {"begin": tokenizer.begin, "end": tokenizer.end}
        train, held_out = (sequences(self.data, name, **how) for name in ("train", "validation"))
        if self.drop_prompt and not isinstance(train, Pairs):
            raise ValueError(f"{self.data} holds running text, without prompts to drop: leave out --drop-prompt")
        if isinstance(train, Packed) and (most := train.split.source_tokens.max()) < self.length:
            what = f"{most:,} tokens to train on, less than a sequence of {self.length:,}"
            raise ValueError(f"{self.data}: {what}: prepare more text, or take --length {most} or less")
        return train, held_out

    def initial(self, tokenizer: Tokenizer) -> dict[str, Tensor] | None:
        """The weights to begin from, where `init` names a run. Raises ValueError where they do not fit."""
        if self.init is None:
            return None
        donor = load(self.init, dtype=None if self.lora else torch.float32)
        same_tokenizer(self.init, donor, tokenizer)
        try:
            return starting_from(donor, self.network)
        except ValueError as error:
            raise ValueError(f"init {self.init}: {error}") from None

    def adapters(self) -> int:
        """Parameters of the adapters, where these are what is trained."""
        return adapter_count(self.network, self.lora, self.lora_on) if self.lora else 0

    def cost(self) -> Row:
        """Tokens and training FLOPs of the whole run: 6ND as the papers count, and the true count beside it.

        True: 3 times the forward pass, with attention, and the output layer where it runs, which the answers of pairs
        say; twice where no weights are trained, and 3 times the adapters; and Muon's iterations.
        """
        whole = self.steps * self.batch * self.length
        tokens = round(whole * (1 - self.short_batches * (1 - 1 / self.length) / 2))
        size = self.network.parameters()
        predicted = expected_level(self.objective, self.length) * self.length * self._maskable()
        true = self.network.forward_flops(self.length + 1, predicted) * (2 if self.lora else 3)
        true += 6 * self.adapters() * (self.length + 1)
        true *= tokens / self.length
        true += self.steps * muon_flops(self.network) if self.optimiser.muon else 0
        return {"tokens": tokens, "flops_6nd": 6.0 * size["non_embedding"] * tokens, "flops_true": true}

    def _maskable(self) -> float:
        """Share of the positions that may be masked: all of running text, and of what is not prepared yet."""
        with suppress(ValueError):
            return _share(self.data, self.length, self.packed) if is_pairs(self.data) else 1.0
        return 1.0


@cache
def _share(pairs: str, length: int, packed: bool) -> float:
    return Pairs(load_pairs(pairs, "train"), length, 0, 0, packed).share


@cache
def expected_level(objective: Objective, length: int) -> float:
    """Mean share of the maskable positions that the output layer runs on in training."""
    if isinstance(objective, NextToken):
        return 1.0
    u = stratified(4096, torch.tensor(0.5, dtype=torch.float64))
    maskable = torch.ones(len(u), length, dtype=torch.bool)
    return float(objective.corrupt(maskable, u, torch.zeros_like(maskable, dtype=torch.float64)).level.mean())


# fmt: off
IDENTITY = (
    "network", "objective", "length", "batch", "steps", "optimiser", "ema", "seed", "corpus", "init",
    "lora", "lora_on", "base", "short_batches", "documents_apart", "packed", "drop_prompt",
)
# fmt: on
"""What makes a run the run it is; the rest may change when it goes on."""


def settle(config: TrainConfig, out: Path, adapters: Row | None = None) -> TrainConfig:
    """The configuration with `auto` resolved; precision as config.json holds it, once for the whole life of a run.

    Of a run of `adapters` config.json says what they belong to. Raises ValueError where `out` holds another run, or
    this one in another precision than is asked for.
    """
    device, path = torch.device(device_of(config.device)), out / CONFIG
    claim(out, asked := requested(config, adapters))
    if path.exists():
        return replace(config, device=str(device), precision=read_json(path)["precision"])
    precision = best_precision(device) if config.precision == "auto" else config.precision
    write_json(path, {
        "name": config.name,
        "unmask": version("unmask"),
        "machine": machine(device),
        "precision": precision,
        "network": describe(config.network),
        "parameters": config.network.parameters(),
        "training": {"objective": type(config.objective).__name__, "steps": config.steps},
        "budget": config.cost(),
        **({"before": before} if config.init is not None and (before := spent(config.init)) else {}),
        **({} if adapters is None else {ADAPTERS: adapters}),
        "requested": asked,
    })  # fmt: skip
    return replace(config, device=str(device), precision=precision)


def requested(config: TrainConfig, adapters: Row | None = None) -> Row:
    """What is asked for, with what the data and the base of `adapters` are known by."""
    manifest = load_manifest(config.data)
    corpus: Row = {"source": manifest["request"]["source"], "tokenizer": manifest["tokenizer"]["blake2b"]}
    splits = {name: split.get("blake2b") for name, split in manifest["splits"].items()}
    corpus |= {"splits": splits} if all(splits.values()) else {}  # which older pairs do not say
    return {**asdict_of(config), "corpus": corpus, "base": (adapters or {}).get("fingerprint")}


def claim(out: Path, requested: Row) -> None:
    """Raises ValueError where folder `out` holds another run than one that asks for this, or this one in another
    precision, or what is no run.
    """
    if (out / CONFIG).exists():
        there = read_json(out / CONFIG)
        refuse_other(str(out), there, requested)
        if requested["precision"] not in ("auto", stored := there["precision"]):
            what = f"precision {stored} there, {requested['precision']} here"
            raise ValueError(
                f"{out}: holds a run with other settings ({what}): choose another or leave out --precision"
            )
    else:
        vacant(out, hidden=True)  # a lock, or the half of a file that a killed process left


def refuse_other(where: str, stored: Row, requested: Row) -> None:
    """Raises ValueError where a config.json is another run's than one that asks for this."""
    old, new = _completed(stored.get("requested") or {}), _completed(requested)
    if isinstance(old.get("corpus"), dict) and isinstance(new.get("corpus"), dict):  # by what both are known by
        old["corpus"], new["corpus"] = {**new["corpus"], **old["corpus"]}, {**old["corpus"], **new["corpus"]}
    names = [name for name in IDENTITY if old.get(name) != new.get(name)]
    if names:
        found = different(*({name: each.get(name) for name in names} for each in (old, new)))
        what = ", ".join(
            f"{name} {first or 'none'} there, {second or 'none'} here" for name, first, second in found[:3]
        )
        what += ", …" if found[3:] else ""
        longer = "; to train it for longer, let another begin as it, by --init and --out: the weights go on, moments, "
        longer += "average, learning rate and the order of the data begin anew"
        remedy = "choose another or remove it" + (longer if names == ["steps"] else "")
        raise ValueError(f"{where}: holds a run with other settings ({what}): {remedy}")


def spent(checkpoint: str) -> Row:
    """What a checkpoint's training took so far, with that of what it began as; nothing where it does not say."""
    known = find(fetched(checkpoint)).config
    parts = [part for part in (known.get("budget"), known.get("before")) if part]
    return {key: sum(part[key] for part in parts) for key in COST} if parts else {}


def _completed(requested: Row) -> Row:
    """With the defaults of options that it is older than."""
    whole = {**_defaults(TrainConfig), **requested}
    for name, kind_of in (("network", network_kind), ("optimiser", lambda _: Optimiser)):
        if isinstance(whole.get(name), dict):
            whole[name] = {**_defaults(kind_of(whole[name]) or TransformerConfig), **whole[name]}
    return whole


def _defaults(kind: type) -> Row:
    return {field.name: describe(field.default) for field in fields(kind) if field.default is not MISSING}


def asdict_of(config: TrainConfig) -> Row:
    """The configuration as JSON data, tuples as lists."""
    described = describe(config)
    assert isinstance(described, dict)
    return described


def machine(device: torch.device) -> str:
    """Kind of machine, for the record."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    return f"{platform.machine()} {device.type}, {name}, torch {torch.__version__}, Python {platform.python_version()}"
