"""The one trainer: masked diffusion or autoregressive, on one device, resumable bit for bit.

What differs between runs is a value in `TrainConfig`. All randomness of a step is keyed by (seed, step), so the
state to resume from is weights, optimiser moments, average and step; an interrupted run that goes on equals one
that was never interrupted.
"""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from unmask.checkpoint import MODEL, STATE, TOKENIZER, assign, load, read_tensors, write_tensors
from unmask.corruption import stratified
from unmask.data import Blocks, Tokenizer, batch_indices, batch_length, load_split
from unmask.draws import keyed_generator
from unmask.likelihood import log_likelihood
from unmask.log import Metrics, console, progress
from unmask.train.config import TrainConfig, settle
from unmask.train.optimiser import _adamw, _fused_on
from unmask.train.precision import autocast
from unmask.transformer import Transformer
from unmask.wrappers import Apart


def train(config: TrainConfig, out: Path) -> Path:
    """Train, or go on with, the run in folder `out`; returns it. Ctrl-C ends it after the step it is in, saved.

    Raises ValueError where `out` holds a run with other settings or data, data are missing, or the loss is no longer
    finite; KeyboardInterrupt after Ctrl-C.
    """
    tokenizer = Tokenizer.load(Path(config.data))
    if tokenizer.vocab != config.network.vocab:
        raise ValueError(f"network vocab {config.network.vocab}, but {config.data} has {tokenizer.vocab} tokens")
    run = _Run(config, out, tokenizer)
    if run.step >= config.steps:
        console.print(f"{out}: {config.steps} steps done")
        return out
    try:
        with progress(config.name) as report, _interruptions() as interrupted:
            while run.step < config.steps and not interrupted():
                loss = run.advance()
                if run.step % config.validate_every == 0 or run.step == config.steps:
                    run.validate()
                if run.step % config.save_every == 0 or run.step == config.steps or interrupted():
                    run.save()
                report(run.step, config.steps, f"{loss:.3f} nats/token")
    finally:
        run.metrics.close()
    if run.step < config.steps:
        console.print(f"stopped after step {run.step}; the same command goes on from there")
        raise KeyboardInterrupt
    return out


@contextmanager
def _interruptions() -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C was pressed: asked between steps, so that none is left half done. A second one ends at once."""
    pressed = False
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return

    def press(signum: int, frame: object) -> None:
        nonlocal pressed
        pressed = True
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, press)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, before)


class _Run:
    """The state of a run between two steps."""

    def __init__(self, config: TrainConfig, out: Path, tokenizer: Tokenizer) -> None:
        weights = _initial(config, tokenizer) if config.init and not (out / STATE).exists() else {}
        self.out, self.config = out, settle(config, out)
        if not (out / TOKENIZER).exists():
            tokenizer.save(out / TOKENIZER)
        self.device = torch.device(self.config.device)
        begin = tokenizer.begin
        self.train = Blocks(load_split(Path(config.data), "train"), config.length, begin)
        self.held_out = Blocks(load_split(Path(config.data), "validation"), config.length, begin)
        self.network = Transformer(config.network, seed=config.seed).to(self.device)
        self.average = Transformer(config.network, seed=config.seed).to(self.device) if config.ema else None
        for network in filter(None, (self.network, self.average)) if weights else ():
            network.load_state_dict(weights)
        self.optimiser = _adamw(self.network, config.optimiser)
        self.step = self._resume() if (out / STATE).exists() else 0
        self.metrics = Metrics(out / "metrics.jsonl", self.step)
        rows = [row for row in self.metrics.rows if row["kind"] == "train"]
        self.before = rows[-1]["seconds"] if rows else 0.0
        self.start = time.monotonic()
        self.cost = {name: value / config.steps for name, value in config.cost().items()}

    def advance(self) -> float:
        """One optimiser step; returns its loss in nats a token."""
        config, step = self.config, self.step
        generator = keyed_generator(config.seed, step)
        indices = self.train.batch(config.batch, seed=config.seed, step=step)
        width = 1 + batch_length(config.length, config.short_batches, seed=config.seed, step=step)
        x_0, maskable = (part[:, :width] for part in self.train.take(indices)[:2])
        segments = self.train.segments(indices)[:, :width] if config.documents_apart else None
        u = stratified(config.batch, torch.rand((), generator=generator, dtype=torch.float64))
        tokens = int(maskable.sum())
        rate = config.optimiser.at(step, config.steps)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        total = torch.zeros((), device=self.device)
        self.network.train()
        for part in range(config.accumulate):
            mine = slice(part, None, config.accumulate)  # every part spans the strata
            with autocast(self.device, config.precision), self._dropout(part):
                network = self.network if segments is None else Apart(self.network, segments[mine])
                nats = config.objective(network, x_0[mine], maskable[mine], u[mine], generator)
            loss = nats.sum() / tokens
            loss.backward()
            total += loss.detach()
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), config.optimiser.clip or math.inf)
        value = float(total)
        if not math.isfinite(value) or not math.isfinite(float(norm)):
            last = f"last good state: {self.out / STATE}" if (self.out / STATE).exists() else "nothing was saved yet"
            raise ValueError(f"step {step}: loss {value}, gradient norm {float(norm)}: lower optimiser.rate; {last}")
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.step += 1
        self._average()
        self._row("train", loss=value, lr=rate, grad_norm=float(norm))
        return value

    @contextmanager
    def _dropout(self, part: int) -> Iterator[None]:
        """Dropout's randomness, keyed by the step; torch's global generator is given back as it was."""
        if not self.config.network.dropout:
            yield
            return
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(keyed_generator(self.config.seed, self.step, part, 1).initial_seed())
            yield

    def validate(self) -> None:
        """Held-out nats a token, the same sequences and maskings every time."""
        count = min(len(self.held_out), self.config.validation_sequences)
        chosen = batch_indices(len(self.held_out), count, seed=0, step=0)
        x_0, maskable, documents = self.held_out.take(chosen)
        network = self.average or self.network
        network.eval()
        if self.config.documents_apart:
            network = Apart(network, self.held_out.segments(chosen))
        with autocast(self.device, self.config.precision):
            estimate = log_likelihood(network, x_0, maskable, draws=8, documents=documents)
        tokens = estimate.tokens
        value, error = estimate.nats / tokens, estimate.stderr_mc / tokens
        self._row("validation", nats_per_token=value, stderr=error, bound=estimate.bound)

    def save(self) -> None:
        """The weights to use, then the state to resume from; each appears whole."""
        write_tensors(self.out / MODEL, (self.average or self.network).state_dict())
        tensors = {f"network.{name}": value for name, value in self.network.state_dict().items()}
        if self.average is not None:
            tensors |= {f"average.{name}": value for name, value in self.average.state_dict().items()}
        for name, parameter in self.network.named_parameters():
            moments = self.optimiser.state[parameter]
            tensors |= {f"{key}.{name}": moments[key] for key in ("exp_avg", "exp_avg_sq", "step")}
        write_tensors(self.out / STATE, tensors, {"step": str(self.step)})

    def _resume(self) -> int:
        path = self.out / STATE
        tensors, metadata = read_tensors(path)
        take: Callable[[str], dict[str, Tensor]] = partial(_prefixed, tensors)
        for prefix, network in (("network.", self.network), ("average.", self.average)):
            if network is not None:
                # a copy: the file is memory-mapped, and weights are written to
                assign(network, {name: value.to(self.device, copy=True) for name, value in take(prefix).items()}, path)
        self.optimiser = _adamw(self.network, self.config.optimiser)
        moments = {key: take(f"{key}.") for key in ("exp_avg", "exp_avg_sq", "step")}
        for name, parameter in self.network.named_parameters():
            self.optimiser.state[parameter] = {
                key: values[name].to("cpu" if key == "step" and not _fused_on(self.device) else self.device, copy=True)
                for key, values in moments.items()
            }
        return int(metadata["step"])

    def _average(self) -> None:
        if self.average is None:
            return
        decay = min(self.config.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for mean, value in zip(self.average.parameters(), self.network.parameters(), strict=True):
                mean.lerp_(value, 1 - decay)

    def _row(self, kind: str, **values: object) -> None:
        spent = {name: value * self.step for name, value in self.cost.items()}
        seconds = self.before + time.monotonic() - self.start
        position = {"step": self.step, "tokens": int(spent["tokens"]), "flops": spent["flops_true"]}
        self.metrics.write({"kind": kind, **position, "seconds": seconds, **values})


def _initial(config: TrainConfig, tokenizer: Tokenizer) -> dict[str, Tensor]:
    donor = load(str(config.init))
    if donor.network.config != config.network or donor.tokenizer.inner.to_str() != tokenizer.inner.to_str():
        raise ValueError(
            f"init {config.init}: another network or tokenizer than this run's: take its sizes and its data's"
        )
    return donor.network.state_dict()


def _prefixed(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
