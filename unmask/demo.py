"""From nothing to a first result: train a small MDM and its causal twin, measure both, watch text emerge, write a
report.
"""

import time
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from unmask.checkpoint import Model, load
from unmask.data import load_manifest, load_split, prepare
from unmask.evaluate import baselines, errors, perplexity, write
from unmask.files import Row, read_json, write_json
from unmask.log import console, progress
from unmask.objectives import AnyOrder, NextToken
from unmask.report import report
from unmask.report.console import unmasking
from unmask.sampling import RandomOrder, Tweedie
from unmask.train import Optimiser, TrainConfig, train
from unmask.transformer import TransformerConfig

PROMPT = "The people of the United States"
INFILL = "We must {{6}} the rights of {{4}} in every State of the Union."


@dataclass(frozen=True)
class Scale:
    """How much the demonstration does; the default takes under five minutes on two CPU cores."""

    vocab: int = 512
    layers: int = 2
    width: int = 128
    length: int = 64
    steps: int = 1000
    sequences: int = 512
    """Held-out sequences scored."""
    draws: int = 16
    tokens: int = 60
    """Tokens of a written sample."""


def demo(out: Path, scale: Scale | None = None, source: str = "builtin") -> Path:
    """Run what is not there yet in folder `out`, and write out/report.html; returns its path."""
    scale = scale or Scale()
    start = time.monotonic()
    data = prepare(source, out / "data", tokenizer=f"bpe:{scale.vocab}")
    manifest = load_manifest(data)
    console.print(f"[bold]1  text to tokens[/]  {manifest['source']}: {_counts(data)}")
    mdm = _config(scale, data, name="mdm", causal=False)
    arm = _config(scale, data, name="arm", causal=True)
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
    rows = _measure(models, scale, data, out)
    console.print(_table(rows))
    console.print("[bold]4  writing[/]")
    _write(models, scale, out)
    page = report([out / "mdm", out / "arm", out], out / "report.html", title="unmask: a first result")
    console.print(f"[bold]5  report[/]  {page}   ({time.monotonic() - start:.0f} s in all)")
    return page


def _config(scale: Scale, data: Path, *, name: str, causal: bool) -> TrainConfig:
    network = TransformerConfig(vocab=scale.vocab, layers=scale.layers, heads=4, width=scale.width, causal=causal)
    config = TrainConfig(
        network=network,
        data=str(data),
        name=name,
        length=scale.length,
        steps=scale.steps,
        batch=64,
        optimiser=Optimiser(rate=4e-3, warmup=30),
        validate_every=max(1, scale.steps // 8),
        validation_sequences=128,
        save_every=250,
        objective=NextToken() if causal else AnyOrder(importance=0.5),
    )
    return config


def _measure(models: dict[str, Model], scale: Scale, data: Path, out: Path) -> list[Row]:
    path = out / "result.json"
    if path.exists():
        return list(read_json(path)["rows"])
    split = load_split(data, "validation")
    model = models["mdm"]
    common = {"corpus": "held-out documents", "length": scale.length, "sequences": scale.sequences}
    rows = baselines(data, vocab=model.vocab, begin=model.tokenizer.begin, **common)
    for name, model in models.items():
        with progress(f"perplexity of {name}") as bar:
            rows.append(perplexity(model, split, name=name, draws=scale.draws, progress=bar, **common))
    write_json(path, {"rows": rows})
    return rows


def _write(models: dict[str, Model], scale: Scale, out: Path) -> None:
    path = out / "samples.json"
    if not path.exists():
        mdm = models["mdm"]
        free = f"{PROMPT} {{{{{scale.tokens}}}}}"
        first = mdm.canvas(free)
        with unmasking(console, first, mdm.mask_id, mdm.tokenizer.pieces) as on_step:
            records = write(
                mdm, [free], RandomOrder(), titles=["MDM, random order, one token at a time"], on_step=on_step
            )
        few = max(1, scale.tokens // 4)
        records += write(mdm, [free], Tweedie(steps=few), titles=[f"MDM, tau-leaping in {few} steps"])
        records += write(mdm, [INFILL], RandomOrder(), titles=["MDM, an infilled sentence"])
        records += write(models["arm"], [free], titles=["ARM, left to right"])
        write_json(path, {"samples": records})
    for record in read_json(path)["samples"]:
        console.print(f"   [dim]{record['title']}: NFE {record['nfe']}, {record['seconds']:.2f} s[/]")
        console.print(f"   {record['text']!r}", markup=False)


def _counts(data: Path) -> str:
    splits = {name: load_split(data, name) for name in ("train", "validation")}
    return ", ".join(f"{len(s.tokens):,} {name} tokens in {len(s.names)} documents" for name, s in splits.items())


def _table(rows: list[Row]) -> Table:
    table = Table("model", "perplexity", "± maskings ± texts", "bits/byte", "kind", "draws")
    for row in rows:
        value, bits = f"{row['perplexity']:.2f}", f"{row['bits_per_byte']:.3f}"
        table.add_row(row["model"], value, errors(row), bits, row["bound"], str(row["draws"]))
    return table
