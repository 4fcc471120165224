"""The one trainer: masked diffusion or autoregressive, resumable bit for bit."""

from unmask.train.config import TrainConfig, expected_level
from unmask.train.loop import DivergedError, ready, train
from unmask.train.optimiser import Optimiser
from unmask.train.precision import Precision, autocast

__all__ = ["DivergedError", "Optimiser", "Precision", "TrainConfig", "autocast", "expected_level", "ready", "train"]
