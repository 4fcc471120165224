"""From nothing to a first result: train a small MDM and its causal twin, measure both, watch text emerge, write a
report.
"""

import hashlib
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.table import Table

from unmask.checkpoint import MODEL, Model, load
from unmask.data import load_manifest, load_split, prepare
from unmask.evaluate import baselines, errors, perplexity, prepared, write
from unmask.files import Row, read_json, write_json
from unmask.log import console, progress
from unmask.objectives import AnyOrder, NextToken
from unmask.rehearsal import Cost
from unmask.report.console import unmasking
from unmask.report.page import report
from unmask.sampling import RandomOrder, Tweedie
from unmask.train import Optimiser, TrainConfig, train
from unmask.train.config import expected_level
from unmask.transformer import TransformerConfig

PROMPT = "The people of the United States"
INFILL = "We must {{6}} the rights of {{4}} in every State of the Union."


@dataclass(frozen=True)
class Scale:
    """How much the demonstration does; the default takes under five minutes on two CPU cores."""

    vocab: int = 512
    """Tokens of the BPE vocabulary learnt from the text."""
    layers: int = 2
    """Layers of both networks."""
    width: int = 128
    """Width of both networks."""
    length: int = 64
    """Tokens a sequence."""
    steps: int = 1000
    """Training steps of each, of 64 sequences."""
    sequences: int = 512
    """Held-out sequences scored."""
    draws: int = 16
    """Maskings a held-out sequence."""
    tokens: int = 60
    """Tokens of a written sample."""

    def __post_init__(self) -> None:
        for name in ("sequences", "tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)} must be at least 1")
        if self.draws < 2 or self.draws % 2:
            raise ValueError(f"draws {self.draws} must be even, and at least 2: their error is that of two halves")


def demo(out: Path, scale: Scale | None = None, source: str = "builtin") -> Path:
    """Run what is not there yet in folder `out`, and write out/report.html; returns its path."""
    scale = scale or Scale()
    start = time.monotonic()
    data = prepare(source, out / "data", tokenizer=f"bpe:{scale.vocab}")
    manifest = load_manifest(data)
    console.print(f"[bold]1  text to tokens[/]  {manifest['source']}: {_counts(data)}")
    vocab = manifest["tokenizer"]["vocab"]  # a short text has fewer merges than asked for
    mdm, arm = (_config(scale, data, vocab, name=name, causal=name == "arm") for name in ("mdm", "arm"))
    console.print(f"[bold]2  training[/]  {mdm.network.parameters()['non_embedding']:,} non-embedding parameters each")
    for config in (mdm, arm):
        cost = config.cost()
        console.print(
            f"   {config.name}: {cost['tokens']:,} tokens, 6ND = {cost['flops_6nd']:.2e} FLOPs, "
            f"true count {cost['flops_true']:.2e}"
        )
        train(config, out / config.name)
    models = {name: load(out / name) for name in ("mdm", "arm")}
    console.print("[bold]3  held-out perplexity[/]")
    made_by = {"scale": asdict(scale), "weights": [_digest(out / name / MODEL) for name in models]}
    rows = _once(out / "result.json", "rows", made_by, lambda: _measure(models, scale, data))
    console.print(_table(rows))
    console.print(_verdict(rows))
    console.print("[bold]4  writing[/]")
    for record in _once(out / "samples.json", "samples", made_by, lambda: _write(models, scale)):
        console.print(f"   [dim]{record['title']}: NFE {record['nfe']}, {record['seconds']:.2f} s[/]")
        console.print(f"   {record['text']!r}", markup=False)
    page = report([out / "mdm", out / "arm", out], out / "report.html", title="unmask: a first result")
    console.print(f"[bold]5  report[/]  {page}   ({time.monotonic() - start:.0f} s in all)")
    return page


def cost(scale: Scale, rate: float) -> Cost:
    """What it would take at `rate` FLOPs a second: two trainings, and the scoring of both, beside which the rest is
    little.
    """
    mdm, arm = (_config(scale, Path(), scale.vocab, name=name, causal=name == "arm") for name in ("mdm", "arm"))
    trained = [config.cost()["flops_true"] for config in (mdm, arm)]
    rows = [scale.sequences * scale.draws, scale.sequences]
    shares = [expected_level(config.objective, scale.length) for config in (mdm, arm)]
    scored = [
        n * config.network.forward_flops(scale.length + 1, share * scale.length)
        for n, config, share in zip(rows, (mdm, arm), shares, strict=True)
    ]
    flops = sum(trained) + sum(scored)
    return Cost(2 * scale.steps * mdm.batch + sum(rows), flops, flops / rate)


def _config(scale: Scale, data: Path, vocab: int, *, name: str, causal: bool) -> TrainConfig:
    network = TransformerConfig(
        vocab=vocab, layers=scale.layers, heads=4, width=scale.width, causal=causal, neighbours=4
    )
    config = TrainConfig(
        network=network,
        data=str(data),
        name=name,
        length=scale.length,
        steps=scale.steps,
        batch=64,
        optimiser=Optimiser(rate=3e-3, warmup=100),
        validate_every=max(1, scale.steps // 8),
        validation_sequences=128,
        save_every=250,
        objective=NextToken() if causal else AnyOrder(importance=0.5),
    )
    return config


def _once(path: Path, key: str, made_by: Row, make: Callable[[], list[Row]]) -> list[Row]:
    """What a result file holds, made now unless it was made by the same models at the same scale."""
    if path.exists() and read_json(path).get("made_by") == made_by:
        return read_json(path)[key]
    write_json(path, {key: make(), "made_by": made_by})
    return read_json(path)[key]


def _measure(models: dict[str, Model], scale: Scale, data: Path) -> list[Row]:
    first, options = models["mdm"], {"length": scale.length, "sequences": scale.sequences}
    held_out = prepared(data, first.tokenizer, corpus="held-out documents", **options)
    rows = baselines(held_out, first.vocab)
    for name, model in models.items():
        with progress(f"perplexity of {name}", "evaluations") as bar:
            rows.append(perplexity(model, held_out, name=name, draws=scale.draws, progress=bar))
    return rows


def _verdict(rows: list[Row]) -> str:
    """Whether each model beats the unigram law by more than four standard errors of its maskings."""
    unigram = next(row for row in rows if row["model"] == "unigram")
    models = [row for row in rows if not row.get("yardstick")]
    beaten = [row["nats"] + 4 * row["stderr_mc"] < unigram["nats"] for row in models]
    names = " and ".join(row["model"] for row, better in zip(models, beaten, strict=True) if better)
    return f"   {names or 'neither model'} {'beat' if all(beaten) else 'beats'} the unigram law by more than 4 errors"


def _write(models: dict[str, Model], scale: Scale) -> list[Row]:
    mdm, few = models["mdm"], max(1, scale.tokens // 4)
    free = f"{PROMPT} {{{{{scale.tokens}}}}}"
    with unmasking(console, mdm.canvas(free), mdm.mask_id, mdm.tokenizer.pieces) as on_step:
        title = "MDM, random order, one token at a time"
        records = write(mdm, [free], RandomOrder(), titles=[title], on_step=on_step)
    records += write(mdm, [free], Tweedie(steps=few), titles=[f"MDM, tau-leaping in {few} steps"])
    records += write(mdm, [INFILL], RandomOrder(), titles=["MDM, an infilled sentence"])
    records += write(models["arm"], [free], titles=["ARM, left to right"])
    return records


def _digest(path: Path) -> str:
    return hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()


def _counts(data: Path) -> str:
    splits = {name: load_split(data, name) for name in ("train", "validation")}
    return ", ".join(f"{len(s.tokens):,} {name} tokens in {len(s.names)} documents" for name, s in splits.items())


def _table(rows: list[Row]) -> Table:
    table = Table("model", "perplexity", "± maskings ± texts", "bits/byte", "kind", "draws")
    for row in rows:
        value, bits = f"{row['perplexity']:.2f}", f"{row['bits_per_byte']:.3f}"
        table.add_row(row["model"], value, errors(row), bits, row["bound"], str(row["draws"]))
    return table
