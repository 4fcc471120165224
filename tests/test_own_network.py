"""A network class of one's own (examples/network.py) under the trainer, the checkpoints and the commands."""

import importlib
import os
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pytest
import torch
from settings import prepared_words, small
from torch.utils.flop_counter import FlopCounterMode

import unmask
from unmask.checkpoint import convert, load, network_from
from unmask.cli import main
from unmask.files import read_json, read_lines, write_json
from unmask.lora import ALL, attach
from unmask.network import remembering
from unmask.recipes import RECIPES
from unmask.train import train
from unmask.transformer import Block, Transformer, TransformerConfig

EXAMPLE = Path(__file__).parents[1] / "examples" / "network.py"


@pytest.fixture(scope="module")
def example():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLE.parent)
        yield importlib.import_module("network")
    RECIPES.pop("looking")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return prepared_words(tmp_path_factory.mktemp("words"))


@pytest.fixture
def config(example, data):
    return small(data, network=example.LookingConfig(vocab=258, layers=2, heads=2, width=32), steps=4, save_every=2)


def test_trains_resumes_and_loads(example, config, data, tmp_path):
    """Two steps and two more are four; what comes out is the class with its weights, which have learnt."""
    train(config, tmp_path / "whole")
    train(replace(config, minutes=1e-9), tmp_path / "cut")
    assert len(list((tmp_path / "cut" / "checkpoints").iterdir())) == 1
    train(config, tmp_path / "cut")
    models = [load(tmp_path / name) for name in ("whole", "cut")]
    states = [model.network.state_dict() for model in models]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert isinstance(models[0].network, example.Looking)
    assert models[0].network.config == config.network
    assert float(states[0]["blocks.0.taps"].abs().max()) > 0
    samples = unmask.sample(models[0], [models[0].canvas("{{8}}")], unmask.RandomOrder())
    assert bool((samples.tokens[0] < 258).all())


def test_its_blocks_are_called(example):
    """With one position seen on each side and attention switched off, a prediction depends on three tokens."""
    network = example.LookingConfig(vocab=20, layers=1, heads=2, width=16).build(0).double()
    with torch.no_grad():
        network.blocks[0].taps.fill_(1.0)
        network.blocks[0].attention.project.weight.zero_()
    tokens = torch.arange(9)[None]
    at = torch.tensor([4])
    before = network(tokens, at)
    moved = [i for i in range(9) if not torch.equal(network(tokens.index_fill(1, torch.tensor([i]), 19), at), before)]
    assert moved == [3, 4, 5]


def test_counts_itself(example):
    config = example.LookingConfig(vocab=20, layers=3, heads=2, width=16, reach=2)
    network = config.build()
    assert config.parameters()["total"] == sum(weight.numel() for weight in network.parameters())
    plain = TransformerConfig(vocab=20, layers=3, heads=2, width=16)
    flops = []
    for each in (network, plain.build()):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            each(torch.zeros(1, 8, dtype=torch.long), torch.arange(3))
        flops.append(counter.get_total_flops())
    assert flops[0] - flops[1] == config.forward_flops(8, 3) - plain.forward_flops(8, 3)


@dataclass(frozen=True)
class Own(TransformerConfig):
    """A block of its own kind, and what it counts."""

    kind: str = "Fine"
    extra: int = 32
    """Weights a block beyond those of the package's."""
    more: tuple[int, ...] | None = None

    def build(self, seed: int | None = 0) -> Transformer:
        block = globals()[self.kind]
        return type("Network", (block.network,), {"block": block})(self, seed)

    def parameters(self) -> dict[str, int]:
        return {name: count + self.layers * self.extra for name, count in super().parameters().items()}


class Scaled(Transformer):
    def initialise(self, generator: torch.Generator) -> None:
        super().initialise(generator)
        for name, weight in self.named_parameters():
            if name.endswith("scale"):
                torch.nn.init.ones_(weight)


class Fine(Block):
    """Its input times a weight a channel."""

    network = Scaled

    def __init__(self, config: Own) -> None:
        super().__init__(config)
        self.scale = torch.nn.Parameter(torch.empty(config.width))

    def forward(self, x, *others):
        return super().forward(x * self.scale, *others)


class Frozen(Fine):
    def __init__(self, config: Own) -> None:
        super().__init__(config)
        self.scale.requires_grad_(False)


class Buffered(Fine):
    def __init__(self, config: Own) -> None:
        super().__init__(config)
        self.register_buffer("ones", torch.ones(config.width), persistent=False)


class Unused(Fine):
    def forward(self, x, *others):
        return Block.forward(self, x, *others)


class Broken(Fine):
    def forward(self, x, *others):
        return super().forward(x[..., :3], *others)


class Chance(Transformer):
    def initialise(self, generator: torch.Generator) -> None:
        super().initialise(generator)
        for block in self.blocks:
            torch.nn.init.normal_(block.get_parameter("scale"))


class Random(Fine):
    network = Chance


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"extra": 31}, r"Own.parameters\(\) tells .* but its network has"),
        ({"kind": "Frozen"}, "blocks.0.scale is a buffer, frozen, or"),
        ({"kind": "Buffered"}, "blocks.0.ones is a buffer, frozen, or"),
        ({"kind": "Unused"}, "blocks.0.scale gets no gradient"),
        ({"kind": "Broken"}, r"Own, tried on a few tokens: RuntimeError at test_own_network.py:\d+: "),
        ({"kind": "Random"}, "the same seed draws blocks.0.scale anew"),
        ({"more": [1]}, "Own: more is read as another from config.json"),
        ({"more": TransformerConfig(vocab=2)}, 'Own: "network": more .* is of the wrong kind'),
    ],
)
def test_what_could_not_be_resumed_or_loaded_is_refused(config, tmp_path, settings, message):
    """Before anything is written."""
    network = Own(vocab=258, layers=2, heads=2, width=32)
    with pytest.raises(ValueError, match=message):
        train(replace(config, network=replace(network, **settings)), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    state = torch.get_rng_state()
    train(replace(config, network=network, steps=1), tmp_path / "fine")
    assert torch.equal(torch.get_rng_state(), state)


def test_what_cannot_keep_documents_apart_is_refused(config, tmp_path):
    with pytest.raises(ValueError, match="leave out --documents-apart"):
        train(replace(config, documents_apart=True), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_adapters_are_put_where_they_are_used(config, tmp_path):
    """On the package's own layers: a layer of the same name elsewhere would not know of its adapter."""
    train(replace(config, steps=1), tmp_path / "whole")
    train(replace(config, init=str(tmp_path / "whole"), lora=2), tmp_path / "run")
    model = load(tmp_path / "run")
    assert model.network.config == config.network
    network = Fine(Own(vocab=20, layers=1, heads=2, width=32)), TransformerConfig(20, 1, 2, 32).build(None)
    network[0].up = torch.nn.Linear(32, 32)
    network[1].blocks = torch.nn.ModuleList([network[0]])
    attach(network[1], 2, ALL, 0)
    assert "adapter" not in network[0].up._modules
    assert "adapter" in network[0].mlp.down._modules


def test_without_the_class_there_is_one_line(config, tmp_path):
    train(replace(config, steps=1), tmp_path / "run")
    told = read_json(tmp_path / "run" / "config.json")
    assert told["network"]["type"] == "LookingConfig"
    write_json(tmp_path / "run" / "config.json", {**told, "network": {**told["network"], "type": "Nowhere"}})
    with pytest.raises(ValueError, match="a 'Nowhere', a class that is not of this package: run a script that has"):
        load(tmp_path / "run")


def test_begins_as_its_own_kind_alone(example):
    plain = TransformerConfig(vocab=20, layers=1, heads=2, width=16)
    mine = example.LookingConfig(vocab=20, layers=1, heads=2, width=16, reach=3)
    assert network_from(mine, replace(mine, reach=1)) == mine
    assert network_from(mine, plain) == mine, "what it begins as says the network"
    with pytest.raises(ValueError, match="a network of TransformerConfig begins none of LookingConfig"):
        network_from(plain, mine)


def test_is_no_published_network(example, config, tmp_path):
    """Its weights would fit a family's table but for the taps, and its law would not."""
    train(replace(config, steps=1), tmp_path / "run")
    for name in ("smdm", "llama", "radd"):
        with pytest.raises(ValueError, match="has no such network"):
            convert(tmp_path / "run", tmp_path / name, name)


def test_a_causal_one_remembers_nothing_unless_it_says_so():
    class Mine(Transformer):
        pass

    class AbleFine(Scaled):
        block = Fine

        def cached(self, slots, length):
            return unmask.transformer.Cached(self, slots, length)

    config = TransformerConfig(vocab=20, layers=1, heads=2, width=16, causal=True)
    network = Mine(config)
    assert remembering(network, 1, 8) is network
    tokens, at = torch.arange(8)[None] + 2, torch.tensor([7])
    for own in (Transformer(config), AbleFine(Own(**asdict(config)))):
        if isinstance(own, AbleFine):
            torch.nn.init.constant_(own.blocks[0].get_parameter("scale"), 3.0)
        view = remembering(own, 1, 8)
        assert isinstance(view, unmask.transformer.Cached)
        with torch.no_grad():
            for end in range(2, 9):
                found = view(tokens[:, :end], torch.tensor([end - 1]), rows=torch.tensor([0]))
            assert torch.allclose(found, own(tokens, at), atol=1e-5)


def test_a_schedule_as_the_docs_have_it(data, tmp_path):
    """Its rate is the line's, and an option of the command still overrides its own."""
    text = (EXAMPLE.parents[1] / "docs" / "training.md").read_text(encoding="utf-8")
    code = text.partition("## A loss, a schedule")[2].partition("```python\n")[2].partition("```")[0]
    exec(code, {"__name__": "mine"})
    asked = ["train", "linear", "--data", str(data), "--steps", "4", "--batch", "4", "--warmup", "1", "--rate", "0.004"]
    main([*asked, "--out", str(tmp_path / "run")])
    rates = [row["lr"] for row in read_lines(tmp_path / "run" / "metrics.jsonl") if row["kind"] == "train"]
    assert rates == pytest.approx([0.004, 0.003, 0.002, 0.001])
    del RECIPES["linear"]


def script(*words: str, processes: int = 1) -> subprocess.CompletedProcess[str]:
    """The example as its text says, in so many processes."""
    many = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *(many if processes > 1 else []), str(EXAMPLE), *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)


def test_the_script_is_the_command(data, tmp_path):
    """Trained by two processes, which speak as one, and sampled; its own option is a size of the network."""
    run = str(tmp_path / "run")
    asked = ["train", "looking", "--data", str(data), "--steps", "2", "--batch", "4", "--reach", "2", "--out", run]
    done = script(*asked, processes=2)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("6ND = ") == 1
    assert read_json(Path(run) / "config.json")["network"]["reach"] == 2
    assert script("sample", "--checkpoint", run, "--length", "5").returncode == 0
    refused = script("train", "looking", "--data", str(data), "--init", run, "--reach", "1")
    assert refused.returncode == 2
    assert "--reach: a run with --init has the sizes of its checkpoint" in refused.stderr
