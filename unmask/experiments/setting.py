"""How large an experiment is at each scale: text, network and steps that its runs have in common."""

from dataclasses import dataclass

from unmask.experiments.running import Scale
from unmask.objectives import AnyOrder, NextToken, Objective
from unmask.train import Optimiser, TrainConfig
from unmask.transformer import TransformerConfig

KINDS: dict[str, Objective] = {"MDM": AnyOrder(0.5), "ARM": NextToken()}
"""What most experiments compare."""


@dataclass(frozen=True)
class Setting:
    """`tiny` runs in seconds, `laptop` a few minutes a model on two cores, `gpu` the same on one large GPU."""

    vocab: int
    layers: int
    width: int
    length: int
    batch: int
    steps: int
    rate: float
    """Learning rate; at the laptop scale the best of four for MDM and ARM alike (benchmarks/rates.py)."""
    sequences: int
    """Held-out sequences scored."""
    gradients: int
    """Draws of a gradient."""
    texts: int
    """Samples a policy writes."""
    head_width: int = 32
    neighbours: int = 4
    """Heads of each layer that begin by reading a neighbour."""
    muon: bool = False
    """The blocks' matrices by Muon."""

    @property
    def tokenizer(self) -> str:
        return f"bpe:{self.vocab}"

    def network(self, *, causal: bool) -> TransformerConfig:
        heads = self.width // self.head_width
        return TransformerConfig(self.vocab, self.layers, heads, self.width, causal=causal, neighbours=self.neighbours)

    def config(
        self, data: str, objective: Objective, *, seed: int = 0, name: str = "run", drop_prompt: float = 0.0
    ) -> TrainConfig:
        """A run of this size: cosine, stratified levels."""
        return TrainConfig(
            network=self.network(causal=isinstance(objective, NextToken)),
            data=data,
            objective=objective,
            name=name,
            length=self.length,
            batch=self.batch,
            steps=self.steps,
            optimiser=Optimiser(self.rate, warmup=max(1, self.steps // 20), muon=self.muon),
            seed=seed,
            drop_prompt=drop_prompt,
            validate_every=max(1, self.steps // 8),
            validation_sequences=64,
            save_every=max(1, min(250, self.steps // 2)),
        )


SETTINGS: dict[Scale, Setting] = {
    "tiny": Setting(300, 1, 32, 16, 8, 4, 3e-3, sequences=8, gradients=3, texts=3, head_width=8),
    "laptop": Setting(512, 3, 128, 64, 64, 2000, 3e-3, sequences=512, gradients=64, texts=64),
    "gpu": Setting(8192, 12, 768, 256, 256, 10_000, 6e-4, sequences=1024, gradients=64, texts=256),
}
