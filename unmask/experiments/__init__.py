"""The papers' claims, rerun: one file a claim, and how an experiment runs, is fitted and shown."""

from unmask.experiments.caching import Caching
from unmask.experiments.losses import Losses
from unmask.experiments.reverse import Reverse
from unmask.experiments.running import Scale, experiment, name_of
from unmask.experiments.scaling import Scaling
from unmask.experiments.temporal import Temporal

Experiment = Losses | Caching | Scaling | Reverse | Temporal

__all__ = ["Caching", "Experiment", "Losses", "Reverse", "Scale", "Scaling", "Temporal", "experiment", "name_of"]
