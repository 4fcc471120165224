"""`unmask train`."""

import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, make_dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import tyro

from unmask import ranks
from unmask.checkpoint import CONFIG, load, network_config, network_from, same_tokenizer
from unmask.cli.parsing import nearest
from unmask.cli.recipes import rate_here, row
from unmask.data import Tokenizer
from unmask.data.pairs import is_pairs
from unmask.files import Row, read_json
from unmask.log import console, say
from unmask.recipes import RECIPES, on_its_data
from unmask.report.read import Run, find
from unmask.report.runs import progress_of
from unmask.train import TrainConfig, ready, train
from unmask.train.budget import memory, saved, state, steps_for
from unmask.train.mirror import Mirror
from unmask.transformer import TransformerConfig
from unmask.units import duration, finite

SHOWN = ("tiny", "tiny-ar", "radd-small", "radd-medium", "smdm-113", "ar-113")
BUDGETS = ("--steps", "--tokens", "--flops", "--true-flops", "--minutes")


@dataclass(frozen=True)
class Options:
    """What else `unmask train` is told. Of steps, tokens, FLOPs, true FLOPs and minutes at most one is given."""

    out: Path | None = None
    """Run folder (default runs/NAME)."""
    tokens: float | None = None
    """Train for so many tokens, instead of --steps."""
    flops: float | None = None
    """... for so many FLOPs as the papers count them: 6ND, N without embedding and output layer."""
    true_flops: float | None = None
    """... for so many FLOPs with attention, and the output layer where it runs."""
    dry_run: bool = False
    """Say what it would cost, and stop."""
    json: bool = False
    """Print records for machines."""


def command(words: Sequence[str]) -> type:
    """The dataclass of `unmask train` with the recipe that the words name, or with one of each kind.

    Raises ValueError for words that name none, for two budgets, and for what does not belong to a recipe's options.
    """
    if words and not words[0].startswith("-") and words[0] not in RECIPES:
        raise ValueError(f"unmask train does not know {words[0]!r}{nearest(words[0], RECIPES)} (see unmask recipes)")
    flags = [word.partition("=")[0].replace("_", "-") for word in words]
    if len(given := [flag for flag in BUDGETS if flag in flags]) > 1:
        raise ValueError(f"{' and '.join(given)}: a run has one budget; give one of {', '.join(BUDGETS)}")
    if "--vocab" in flags:
        raise ValueError("--vocab: the vocabulary is that of the data; choose it by `unmask prepare --tokenizer`")
    if {"--causal", "--no-causal"} & set(flags):
        raise ValueError("--causal: the causal twin of a recipe is one of its own: tiny-ar, ar-113")
    networks = [TransformerConfig, *(type(RECIPES[word]().network) for word in words[:1] if word in RECIPES)]
    known = {f"--{each.name.replace('_', '-')}" for kind in networks for each in fields(kind)}
    sizes = [flag for flag in flags if flag.replace("--no-", "--") in known - {"--dropout", "--shifted"}]
    if sizes and "--init" in flags:
        raise ValueError(f"{', '.join(sizes)}: a run with --init has the sizes of its checkpoint: leave them out")
    names = dict.fromkeys([*SHOWN, *(word for word in words if word in RECIPES)])
    recipe = tyro.extras.subcommand_type_from_defaults(
        {name: RECIPES[name]() for name in names}, {name: text_of(name) for name in names}
    )
    kind = Annotated[recipe, tyro.conf.OmitSubcommandPrefixes, tyro.conf.OmitArgPrefixes]
    options = Annotated[Options, tyro.conf.OmitArgPrefixes]
    parts: list[Any] = [("recipe", kind), ("options", options, field(default_factory=Options))]
    return make_dataclass("Train", parts, bases=(Train,), frozen=True, namespace={"__doc__": Train.__doc__})


def text_of(name: str) -> str:
    """The docstring of a recipe."""
    recipe: Any = RECIPES[name]
    return getattr(recipe, "func", recipe).__doc__


@dataclass(frozen=True)
class Train:
    """Train a recipe.

    `unmask recipes` lists all. Any field can be overridden: `unmask train tiny --batch 64 --steps 5000`, or the
    objective: `unmask train tiny lambda-dce`. Ctrl-C saves; the same command goes on from there.
    """

    recipe: TrainConfig
    options: Options

    def run(self) -> None:
        ranks.agreed(lambda: on_its_data(self.recipe) and None)  # one process prepares what is missing
        options = self.options
        out = options.out or Path("runs") / self.recipe.name
        config = begun(on_its_data(self.recipe), out)
        budget = {"tokens": options.tokens, "flops": options.flops, "true_flops": options.true_flops}
        if any(value is not None for value in budget.values()):
            config = replace(config, steps=steps_for(config, **budget))
        if options.dry_run:
            ready(config, out)
            tell(config)
            console.print(told_of_machine(config, ranks.world()))
            record = row(config, rate_here(config.device))
            console.print(f"about {duration(record['seconds'])} on this machine")
            return say(record) if options.json else None
        train(config, out, begun=lambda: tell(config))
        if ranks.rank():
            return None
        done = find([out]).runs[0]
        if options.json:
            return say({"run": str(out), **asdict(progress_of(done))})
        if (held_out := _came_to(done)) is not None:
            console.print(held_out)
        plain = type(config.network) is TransformerConfig
        us = "unmask" if plain else f"python {sys.argv[0]}"  # the script that has its class
        after = f"{us} sample --checkpoint {out}"
        if is_pairs(config.data):
            asks = f"{us} evaluate answers --checkpoint {out} --questions FILE --out answers.jsonl"
            after += f" --template TEXT, or {asks}"
        console.print(f"next: {after}", soft_wrap=True)
        return None


def _came_to(run: Run) -> str | None:
    """The last held-out loss, with both its errors together; None where none was measured."""
    last = run.validation[-1] if run.validation else {}
    if (nats := finite(last.get("nats_per_token"))) is None:
        return None
    error = math.hypot(*(finite(last.get(name)) or 0.0 for name in ("stderr", "stderr_texts")))
    return f"held out, step {last['step']:,}: {nats:.3f} ± {error:.3f} nats/token ({last.get('bound')})"


def begun(config: TrainConfig, out: Path) -> TrainConfig:
    """With the network of what it begins as, whatever the recipe's; of what it goes on from, where `out` is there."""
    if config.init is None:
        return config
    if (told := going_on(config, out)) is not None and not config.lora:  # what it began as may be gone
        theirs = network_config(told, out / CONFIG)
    else:
        donor = load(config.init)
        same_tokenizer(config.init, donor, Tokenizer.load(Path(config.data)))
        theirs = donor.network.config
    try:
        return replace(config, network=network_from(theirs, config.network))
    except ValueError as error:
        raise ValueError(f"init {config.init}: {error}") from None


def going_on(config: TrainConfig, out: Path) -> Row | None:
    """config.json of the run that is in `out`, or in its mirror; None where there is none."""
    if (out / CONFIG).exists():
        return read_json(out / CONFIG)
    return None if config.mirror is None else ranks.agreed(Mirror.at(config.mirror).told)


def tell(config: TrainConfig) -> None:
    """The size of a run."""
    cost, size = config.cost(), config.network.parameters()
    console.print(
        f"{size['non_embedding']:,} non-embedding parameters, {config.steps:,} steps, {cost['tokens']:,} tokens, "
        f"6ND = {cost['flops_6nd']:.2e} FLOPs, true count {cost['flops_true']:.2e}"
    )
    if config.lora:
        console.print(told_of_adapters(config))


def told_of_adapters(config: TrainConfig) -> str:
    """What is trained, and the memory that it takes beside training the weights."""
    plain = replace(config, lora=0, lora_on=TrainConfig.lora_on)
    with_them, without = (memory(each)["state"] / 2**30 for each in (config, plain))
    return (
        f"{config.adapters():,} parameters of adapters of rank {config.lora} are trained: weights, gradients and "
        f"moments of {with_them:,.2f} GiB in float32, instead of {without:,.2f}"
    )


def told_of_machine(config: TrainConfig, processes: int) -> str:
    """How a step is shared, what a process keeps of the run, and what a checkpoint takes."""
    part = config.batch // (processes * config.accumulate)
    shared = f"{processes} process{'es' * (processes > 1)} x {part} x accumulate {config.accumulate}"
    kept = {name: size for name, size in state(config).items() if size}
    under: dict[str, int] = {"ddp": 1, "fsdp": processes} if processes > 1 else {}
    whole = " + ".join(f"{name} {_mib(size)}" for name, size in kept.items())
    return (
        f"{config.batch:,} sequences a step = {shared}\n"
        f"{whole} = {_mib(sum(kept.values()))} in float32"
        + "".join(f", {_mib(sum(kept.values()) / parts)} a process under {name}" for name, parts in under.items())
        + f"\na checkpoint: {_mib(saved(config))}"
    )


def _mib(size: float) -> str:
    return f"{size / 2**20:,.1f} MiB"
