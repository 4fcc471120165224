"""The papers' claims, rerun: one file a claim, and how an experiment runs, is fitted and shown."""

from unmask.experiments.caching import Caching
from unmask.experiments.finetuning import Finetuning
from unmask.experiments.guidance import Guidance
from unmask.experiments.losses import Losses
from unmask.experiments.reverse import Reverse
from unmask.experiments.running import Scale, experiment, name_of
from unmask.experiments.scaling import Scaling
from unmask.experiments.starting import Starting
from unmask.experiments.temporal import Temporal
from unmask.experiments.tradeoff import Tradeoff
from unmask.experiments.understanding import Understanding

Experiment = (
    Losses | Caching | Scaling | Reverse | Temporal | Guidance | Tradeoff | Finetuning | Understanding | Starting
)

__all__ = [
    "Caching",
    "Experiment",
    "Finetuning",
    "Guidance",
    "Losses",
    "Reverse",
    "Scale",
    "Scaling",
    "Starting",
    "Temporal",
    "Tradeoff",
    "Understanding",
    "experiment",
    "name_of",
]
