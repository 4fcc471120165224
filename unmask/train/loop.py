"""The one trainer: masked diffusion or autoregressive, on one device or many, resumable bit for bit.

What differs between runs is a value in `TrainConfig`. All randomness of a step is keyed by (seed, step) and belongs to
the rows of the whole batch, of which each process takes every W-th: so the state to resume from is weights,
optimiser moments, average and step, and a run goes on as if nothing had happened, in as many processes as there are.
"""

import math
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from unmask import ranks
from unmask.checkpoint import CONFIG, TOKENIZER, described, device_of
from unmask.corruption import stratified
from unmask.data import Packed, Pairs, Tokenizer, batch_indices, batch_length
from unmask.data.pairs import CHAT_TEMPLATE, is_pairs, load_template
from unmask.draws import keyed_generator
from unmask.files import Row, alone, atomic, read_json
from unmask.likelihood import Estimate, log_likelihood
from unmask.log import Board, Metrics, Tracker, console, progress, tracking
from unmask.train import checkpoints
from unmask.train.config import TrainConfig, claim, requested, settle
from unmask.train.mirror import Mirror
from unmask.train.own import require_sound
from unmask.train.parallel import clip, gathered_whole, sharded, summed
from unmask.train.precision import Later, autocast
from unmask.train.state import State, Weights
from unmask.transformer import TransformerConfig
from unmask.wrappers import Apart

OVERTIME = 1 << 16  # beside the numbers of signals


class DivergedError(ValueError):
    """Training came to a loss that is no number."""


def train(config: TrainConfig, out: Path, *, begun: Callable[[], None] | None = None) -> Path:
    """Train, or go on with, the run in folder `out`; returns it. Ctrl-C or SIGTERM end it after the step it is in,
    saved. `begun` is called when nothing is in the way, before the first step.

    Raises ValueError where `out` is being trained by another process or holds a run with other settings or data, data
    are missing or shorter than a sequence, or the loss is no longer finite; OSError where the disk is full or another
    process of the job is gone; KeyboardInterrupt after Ctrl-C, SystemExit after SIGTERM.
    """
    with ranks.joined(), ranks.lost():
        start = ready(config, out)
        with ExitStack() as held:
            ranks.agreed(lambda: held.enter_context(alone(out / ".lock", f"{out}: already being trained")))
            run = _Run(config, out, start)
            if begun is not None:
                begun()
            return _train(run, out)


class Start(NamedTuple):
    """What a run begins with."""

    tokenizer: Tokenizer
    initial: Weights | None
    adapters: Row | None
    train: Packed | Pairs
    held_out: Packed | Pairs
    mirror: Mirror | None


def ready(config: TrainConfig, out: Path) -> Start:
    """What the run in folder `out` would begin with. Writes nothing; raises ValueError for what training refuses."""
    if config.track is not None:
        tracking(config.track)
    device_of(config.device)
    tokenizer = Tokenizer.load(Path(config.data))
    spare = config.network.vocab - tokenizer.vocab  # rows that published networks have beyond their tokenizer's
    if spare < 0 or (spare and config.init is None):
        raise ValueError(f"network vocab {config.network.vocab}, but {config.data} has {tokenizer.vocab} tokens")
    if config.batch % (config.accumulate * ranks.world()):
        parts = f"{ranks.world()} processes x accumulate {config.accumulate}"
        fit = [n for n in range(1, config.accumulate) if config.batch % (n * ranks.world()) == 0]
        remedy = f"take --accumulate {fit[-1]}" if fit else f"take a --batch that {ranks.world()} divides"
        raise ValueError(f"batch {config.batch} must be a multiple of {parts}: {remedy}")
    sharded(config.parallel)
    mirror = Mirror.at(config.mirror) if config.mirror else None
    saved = checkpoints.checkpoints(out) or (mirror is not None and ranks.agreed(lambda: bool(mirror.there())))
    resumed = saved and not config.lora  # what it began as may be gone
    initial = None if resumed else config.initial(tokenizer)
    adapters = described(str(config.init), initial, config.lora) if config.lora and initial is not None else None
    sides = config.sequences(tokenizer)
    if type(config.network) is not TransformerConfig:
        require_sound(config)
    asked = requested(config, adapters)
    ranks.agreed(lambda: claim(out, asked))
    if mirror is not None:
        ranks.agreed(lambda: mirror.belongs(asked))
    return Start(tokenizer, initial, adapters, *sides, mirror)


def _train(run: "_Run", out: Path) -> Path:
    config = run.config
    if run.step >= config.steps:
        if run.saved is None:  # no steps were asked for
            run.validate()
            run.save()
        console.print(f"{out}: {config.steps} steps done")
        run.close()
        return out
    stopped = 0
    try:
        with progress(config.name, "tokens", config.batch * config.length) as report, _asked_to_stop() as signum:
            while run.step < config.steps and not stopped:
                run.advance()
                saves = run.step % config.save_every == 0 or run.step == config.steps
                if saves or run.step % config.validate_every == 0:
                    run.validate()
                if saves:
                    run.save()
                held_out = f", {run.measured[1]:.3f} held out" if run.measured else ""
                report(run.step, config.steps, f"{run.loss:.3f} nats/token{held_out}")
                stopped = ranks.largest(signum() or run.overtime())
            run.save()
    finally:
        run.close()
    if stopped == OVERTIME:
        console.print(f"{config.minutes:g} minutes are over after step {run.step}; the same command goes on from there")
    elif run.step < config.steps:
        console.print(f"stopped after step {run.step}; the same command goes on from there")
        raise KeyboardInterrupt if stopped == signal.SIGINT else SystemExit(128 + stopped)
    return out


@contextmanager
def _asked_to_stop() -> Iterator[Callable[[], int]]:
    """The signal that asked the run to stop, or 0: asked between steps, so that none is left half done.

    Ctrl-C a second time ends at once, but not under torchrun, which passes on what the terminal has sent already.
    """
    got = 0
    if threading.current_thread() is not threading.main_thread():
        yield lambda: 0
        return

    def press(signum: int, frame: object) -> None:
        nonlocal got
        got = signum
        if "TORCHELASTIC_RUN_ID" not in os.environ:
            signal.signal(signal.SIGINT, before[signal.SIGINT])

    before = {signum: signal.signal(signum, press) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: got
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


class _Run:
    """A run between two steps."""

    def __init__(self, config: TrainConfig, out: Path, start: Start) -> None:
        tokenizer, initial, adapters, self.train, self.held_out, self.mirror = start
        ranks.agreed(lambda: self.mirror is not None and self.mirror.restore(out))  # into an empty folder
        begun = ranks.agreed(lambda: checkpoints.newest(out) is not None)
        ranks.agreed(lambda: _prepare(config, out, tokenizer, adapters))
        self.out, self.config = out, settle(config, out, adapters)
        self.device = torch.device(self.config.device)
        for name, side in (("train", self.train), ("validation", self.held_out)):
            if isinstance(side, Pairs) and side.left_out:
                what = (
                    f"{side.left_out:,} of {len(side.pairs.lengths):,} {name} examples are longer than {config.length}"
                )
                most = f"--length {int(side.pairs.lengths.max())} takes them all"
                console.print(f"{what} tokens and left out: {most}", soft_wrap=True)
        self.absent = tokenizer.begin if config.network.causal else config.network.mask
        self.state = State(self.config, self.device, initial)
        self.step = self.state.restore(checkpoints.checkpoints(out)[0]) if begun else 0
        self.saved = self.step if begun else None
        self.measured: tuple[int, float] | None = None
        self.loss = math.nan
        self.pending: deque[tuple[int, float, Later]] = deque()
        self.metrics = Metrics(out / "metrics.jsonl", self.step) if ranks.rank() == 0 else None
        self.tracker = self._tracker() if ranks.rank() == 0 else None
        self.before = self.metrics.last["seconds"] if self.metrics and self.metrics.last else 0.0
        self.start = time.monotonic()
        budget = read_json(out / CONFIG)["budget"]  # of a run that goes on, as it was counted when it began
        self.cost = {name: value / max(1, config.steps) for name, value in budget.items()}

    def overtime(self) -> int:
        """OVERTIME when the minutes of this call are over, else 0."""
        minutes = self.config.minutes
        return OVERTIME if minutes is not None and time.monotonic() - self.start > 60 * minutes else 0

    @property
    def rows(self) -> int:
        """Sequences that each process has in the network at once."""
        return self.config.batch // (self.config.accumulate * ranks.world())

    @property
    def apart(self) -> bool:
        return self.config.documents_apart or self.train.apart

    def advance(self) -> None:
        """One optimiser step."""
        config, step, state = self.config, self.step, self.state
        generator = keyed_generator(config.seed, step)
        mine = ranks.share(config.batch)
        indices = self.train.batch(config.batch, seed=config.seed, step=step)[mine]
        width = 1 + batch_length(config.length, config.short_batches, seed=config.seed, step=step)
        x_0, maskable = (part[:, :width] for part in self.train.take(indices)[:2])
        segments = self.train.segments(indices)[:, : width + 1] if self.apart else None
        if isinstance(self.train, Pairs) and config.drop_prompt:
            drop = {"share": config.drop_prompt, "absent": self.absent, "seed": config.seed, "step": step}
            x_0 = self.train.without_prompts(x_0, maskable, indices, **drop)
        u = stratified(config.batch, torch.rand((), generator=generator, dtype=torch.float64))[mine]
        noise = torch.rand((config.batch, width), generator=generator, dtype=torch.float64)[mine]
        tokens = max(1, *ranks.total(int(maskable.sum())))  # a short batch may hold prompts alone
        rate = config.optimiser.at(step, config.steps)
        loss = torch.zeros((), device=self.device)
        state.network.train()
        for part in range(config.accumulate):
            rows = slice(part, None, config.accumulate)  # every part spans the strata
            with summed(state.call, part == config.accumulate - 1):
                with autocast(self.device, config.precision), self._dropout(part):
                    network = state.call if segments is None else Apart(state.call, segments[rows])
                    nats = config.objective(network, x_0[rows], maskable[rows], u[rows], noise[rows])
                share = nats.sum() / tokens
                (share * ranks.world()).backward()  # gradients are averaged over processes
                loss += share.detach()
        norm = clip(state.network, config.optimiser.clip)
        state.advance(step, rate)
        self.step += 1
        self.pending.append((self.step, rate, Later(torch.stack([ranks.summed(loss), norm.to(loss)]))))
        self._tell(behind=0 if self.device.type == "cpu" else 1)

    def _tell(self, behind: int = 0) -> None:
        """Read the losses of all steps but the last few, whose numbers a GPU is still at. Raises DivergedError for one
        that is not finite.
        """
        while len(self.pending) > behind:
            step, rate, later = self.pending.popleft()
            self.loss, norm = later.values()
            if not math.isfinite(self.loss) or not math.isfinite(norm):
                good = next(iter(checkpoints.checkpoints(self.out)), "not there, none was saved yet")
                raise DivergedError(
                    f"step {step - 1}: loss {self.loss}, gradient norm {norm} at a rate of {rate:.3g}: lower "
                    f"--rate in a new run; the last good checkpoint, which its --init may name, is {good}"
                )
            self._row("train", step, loss=self.loss, lr=rate, grad_norm=norm)

    @contextmanager
    def _dropout(self, part: int) -> Iterator[None]:
        """Dropout's randomness, keyed by the step and the part of the batch; torch's global generator is given back
        as it was.
        """
        if not self.config.network.dropout:
            yield
            return
        part = ranks.rank() + ranks.world() * part
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(keyed_generator(self.config.seed, self.step, part, 1).initial_seed())
            yield

    def validate(self) -> None:
        """Held-out nats a token, the same sequences and maskings every time: differences between steps are paired.

        Two errors: of the maskings, and of the texts, by document.
        """
        self._tell()
        count = min(len(self.held_out), self.config.validation_sequences)
        chosen = batch_indices(len(self.held_out), count, seed=0, step=0)
        x_0, maskable, documents = self.held_out.take(chosen)
        network = self.state.average or self.state.network
        segments = self.held_out.segments(chosen) if self.apart else None

        def score(rows: Tensor) -> Estimate:
            reader = network if segments is None else Apart(network, segments[rows])
            numbers = rows.tolist()
            return log_likelihood(reader, x_0[rows], maskable[rows], draws=DRAWS, sequences=numbers, batch=self.rows)

        with autocast(self.device, self.config.precision), gathered_whole(network):
            estimate = ranks.likelihood(score, count, documents)
        value, *errors = (x / estimate.tokens for x in (estimate.nats, estimate.stderr_mc, estimate.stderr_data))
        self.measured = self.step, value
        said = {"nats_per_token": value, "stderr": errors[0], "stderr_texts": errors[1], "bound": estimate.bound}
        self._row("validation", self.step, **said)

    def save(self) -> None:
        """A checkpoint of this step, unless there is one."""
        self._tell()
        if self.saved == self.step:
            return
        nats = self.measured[1] if self.measured and self.measured[0] == self.step else None
        checkpoints.save(self.out, self.step, self.state.write, keep=self.config.keep, nats=nats)
        self.saved = self.step
        if self.mirror is not None and ranks.rank() == 0:
            self._mirror(self.mirror)

    def _mirror(self, mirror: Mirror) -> None:
        """What is safe here already need not stop for what is wrong elsewhere."""
        try:
            mirror.follow(self.out)
        except Exception as error:  # each filesystem has its own
            console.print(f"mirror {self.config.mirror}: {error}: tried again at the next checkpoint", markup=False)

    def _tracker(self) -> Board | Tracker | None:
        if self.config.track is None:
            return None
        if self.config.track == "tensorboard":
            return Board(self.out, self.step)
        return Tracker(self.config.track, self.config.name, read_json(self.out / CONFIG)["requested"])

    def close(self) -> None:
        for told in filter(None, (self.metrics, self.tracker)):
            told.close()

    def _row(self, kind: str, step: int, **values: object) -> None:
        if self.metrics is None:
            return
        spent = {name: value * step for name, value in self.cost.items()}
        seconds = self.before + time.monotonic() - self.start
        position = {"step": step, "tokens": int(spent["tokens"]), "flops": spent["flops_true"]}
        row = {"kind": kind, **position, "seconds": seconds, **values}
        for told in filter(None, (self.metrics, self.tracker)):
            told.write(row)


DRAWS = 8  # at as many rows, 2 maskings of 4 times the sequences err 4 times as much (benchmarks/validation.py)


def _prepare(config: TrainConfig, out: Path, tokenizer: Tokenizer, adapters: Row | None) -> None:
    """The run folder with its settings, tokenizer and chat template."""
    settle(config, out, adapters)
    if not (out / TOKENIZER).exists():
        tokenizer.save(out / TOKENIZER)
    if is_pairs(config.data) and not (out / CHAT_TEMPLATE).exists():
        with atomic(out / CHAT_TEMPLATE) as file:
            file.write(load_template(config.data, tokenizer).source)
