"""What the runs of an experiment begin as: new weights of the scale's size, or checkpoints that the user names."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from unmask.checkpoint import Model, load, network_from
from unmask.data.pairs import CHAT_TEMPLATE, template_of
from unmask.experiments.running import Cell, Scale
from unmask.experiments.setting import KINDS, Setting
from unmask.files import atomic
from unmask.hub import fetched
from unmask.train import TrainConfig
from unmask.transformer import TransformerConfig

FOLDER = "begun"


@dataclass(frozen=True)
class Beginning:
    """Checkpoints, whose sizes and tokenizer the runs take, and how much they are trained."""

    init: tuple[str, ...] = ()
    """Checkpoints to begin from instead of new weights, at most one of each kind. An MDM begins as the MDM, or else as
    the causal one, opened."""
    steps: int | None = None
    """Steps of each run, instead of the scale's; 0 measures the checkpoints as they are."""
    rate: float | None = None
    """Learning rate, instead of the scale's, which is for new weights."""

    def tokenizer(self, out: Path) -> Path | None:
        """A folder with the checkpoints' tokenizer and chat template, or None where there are none.

        Raises ValueError for two of one kind, of two tokenizers, and for one that no run can begin as.
        """
        if not self.init:
            return None
        models = list(self._models())
        if len({model.tokenizer.inner.to_str() for model in models}) > 1:
            raise ValueError(f"init {' '.join(self.init)}: two tokenizers: name checkpoints of one")
        folder, (chat, *others) = out / FOLDER, [template_of(fetched(name)) for name in self.init]
        if any(other.source != chat.source for other in others):
            raise ValueError(f"init {' '.join(self.init)}: two chat templates: name checkpoints of one")
        folder.mkdir(parents=True, exist_ok=True)
        models[0].tokenizer.save(folder)
        with atomic(folder / CHAT_TEMPLATE) as file:
            file.write(chat.source)
        return folder

    def seeds(self, scale: Scale, most: int) -> range:
        """Seeds of each kind: one at the tiny scale, and where nothing is trained."""
        return range(1 if scale == "tiny" or self.steps == 0 else most)

    def twins(self, scale: Scale, data: str, setting: Setting, most: int) -> list[Cell]:
        """An MDM and an ARM of each seed, as they begin here. Raises ValueError as a call does."""
        configs = {
            (kind, seed): setting.config(data, objective, seed=seed)
            for seed in self.seeds(scale, most)
            for kind, objective in KINDS.items()
        }
        return [
            self(Cell(f"{kind.lower()}-{seed}", config, {"model": kind, "seed": seed}))
            for (kind, seed), config in configs.items()
        ]

    def __call__(self, cell: Cell) -> Cell:
        """The run as it begins here. Raises ValueError for a causal one where no causal checkpoint is named."""
        config = self._begun(cell.config) if self.init else cell.config
        if self.steps is not None:
            often = {"validate_every": max(1, self.steps // 8)}
            often["save_every"] = max(1, min(config.save_every, self.steps // 2))
            optimiser = replace(config.optimiser, warmup=max(1, self.steps // 20))
            config = replace(config, steps=self.steps, optimiser=optimiser, **often)
        if self.rate is not None:
            config = replace(config, optimiser=replace(config.optimiser, rate=self.rate))
        return replace(cell, config=config)

    def _begun(self, config: TrainConfig) -> TrainConfig:
        networks = {name: _donor(name)[0] for name in self.init}
        same = [name for name, network in networks.items() if network.causal == config.network.causal]
        if not same and config.network.causal:
            raise ValueError(f"init {self.init[0]}: a bidirectional model begins no ARM: name an ARM as well")
        name = (same or list(networks))[0]
        kind = replace(config.network, shifted=networks[name].causal and not config.network.causal)
        network = network_from(networks[name], kind)
        length = _donor(name)[1] if self.steps == 0 else None
        return replace(config, network=network, init=name, length=length or config.length)

    def _models(self) -> Iterator[Model]:
        """Raises ValueError for what no run can begin as."""
        kinds = {}
        for name in self.init:
            model = load(name)
            if not isinstance(model.network.config, TransformerConfig):
                raise ValueError(f"init {name}: a network that is told the level begins no other: name another")
            if (other := kinds.setdefault(model.causal, name)) != name:
                raise ValueError(f"init {other} {name}: two of one kind: name one ARM, one MDM, or one of each")
            yield model


@cache
def _donor(name: str) -> tuple[TransformerConfig, int | None]:
    """Sizes of a checkpoint, and the length it was trained on where it says so."""
    model = load(name)
    assert isinstance(model.network.config, TransformerConfig)
    return model.network.config, model.length
