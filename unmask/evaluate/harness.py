"""A run folder as lm-evaluation-harness wants a model, and the harness's tasks run on it.

Importing this module registers the model as "unmask"; later versions of the harness find it by themselves, through
the entry point `lm_eval.models`. Needs the extra `eval`.
"""

import copy
import hashlib
import itertools
import json
import logging
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from difflib import get_close_matches
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import lm_eval
import lm_eval.tasks
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM, CachingLM, hash_args
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs

from unmask.checkpoint import Model, load
from unmask.evaluate.continuing import Prompt, continuations
from unmask.evaluate.scoring import Answer, EstimatorName, Score, Scorer, encode_pairs, number_of, windows
from unmask.evaluate.tasks import TASKS, local_file, local_rows
from unmask.files import Row
from unmask.likelihood import precision_of
from unmask.sampling import Draw

CHUNK = 256  # prompts continued before their texts are put into the cache
BOOTSTRAP = 1000  # resamples for the errors of metrics that are no means (perplexity); the harness's default is 100,000


class Note(NamedTuple):
    """What the harness does not ask for, of one request."""

    stderr: float
    """Of its log-likelihood, from the maskings."""
    cut: bool
    """Whether its context was cut, or its text in parts."""
    estimator: str
    bound: str


@register_model("unmask")
class Harness(LM):
    """One model, one way to score every answer (see Scorer), results that depend on the seed and not on the batch.

    `length` tokens (by default what the model was trained on) are seen behind the begin token: longer contexts lose
    their left end, and `noted` says which. `tokens` is the size of a network call; the harness's batch sizes, in
    rows, are ignored. Raises ValueError where the length is not known.
    """

    def __init__(
        self,
        checkpoint: str | Path | Model,
        *,
        estimator: EstimatorName = "bound",
        draws: int = 128,
        seed: int = 0,
        length: int | None = None,
        tokens: int = 8192,
        device: str = "auto",
        dtype: str = "float32",
        guidance: float = 0.0,
        progress: Callable[[int, int], None] | None = None,
        batch_size: object = None,
        max_batch_size: object = None,
    ) -> None:
        super().__init__()
        loaded = isinstance(checkpoint, Model)
        self.model = checkpoint if loaded else load(checkpoint, device=device, dtype=getattr(torch, dtype))
        length = self.model.length if length is None else length
        if length is None:
            name = self.model.config.get("name", "model")
            raise ValueError(f"{name}: its config does not say what length it was trained on: give the length")
        self.length = int(length)
        if self.length < 1:
            raise ValueError(f"length {self.length} must be at least 1")
        self.scorer = Scorer(self.model, estimator, draws, seed, tokens, guidance)
        self.progress = progress
        self._notes: dict[str, Note] = {}

    def of(self, model: Model, progress: Callable[[int, int], None]) -> "Harness":
        """The same around a model that is wrapped, telling its progress."""
        other = copy.copy(self)
        other.model, other.progress, other._notes = model, progress, {}
        other.scorer = replace(self.scorer, network=model)
        return other

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """(log p(continuation | context) in nats, whether greedy decoding writes it) of each request.

        Requests of one document share their maskings.
        """
        pairs = encode_pairs(self.model.tokenizer, [request.arguments for request in requests])
        parts = [windows(context, answer, self.length) for context, answer in pairs]
        cuts = [len(some) > 1 or sum(map(len, pair)) > self.length for some, pair in zip(parts, pairs, strict=True)]
        return self._scored("loglikelihood", requests, parts, cuts)

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """log p of each whole text, in blocks of `length` tokens, each behind a begin token: the protocol of
        `unmask evaluate perplexity`.
        """
        texts = self.model.tokenizer.encode_batch([request.args[0] for request in requests])
        starts = [range(0, max(len(text), 1), self.length) for text in texts]
        parts = [
            [([], text[start : start + self.length]) for start in some]
            for some, text in zip(starts, texts, strict=True)
        ]
        results = self._scored("loglikelihood_rolling", requests, parts, [len(some) > 1 for some in parts])
        return [log_p for log_p, _ in results]

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """The continuation of each context, up to its stop sequences; greedy unless the request samples."""
        prompts = [self._prompt(request) for request in requests]
        order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i].tokens))
        texts = [""] * len(prompts)
        for start in range(0, len(order), CHUNK):
            part = order[start : start + CHUNK]
            scorer = self.scorer
            written = continuations(
                self.model,
                [prompts[i] for i in part],
                length=self.length,
                seed=scorer.seed,
                tokens=scorer.tokens,
                guidance=scorer.guidance,
            )
            for i, text in zip(part, written, strict=True):
                texts[i] = text
                self.cache_hook.add_partial("generate_until", requests[i].args, text)
            self._tell(start + len(part), len(order))
        return texts

    def noted(self, kind: str, args: tuple) -> Note | None:
        """What was noted of a request that was answered here or in the cache."""
        key = hash_args(f"{kind} note", args)
        stored = self.cache_hook.dbdict
        return self._notes.get(key) or (None if stored is None else stored.get(key))

    def fingerprint(self) -> str:
        """What the answers depend on (network, tokenizer, estimator, seed, …), in 16 letters; not the batch."""
        scorer, network = self.scorer, self.model.network.config
        settings = (network, self.length, scorer.estimator, scorer.draws, scorer.seed, scorer.guidance)
        digest = hashlib.blake2b(repr(settings).encode(), digest_size=8)
        digest.update(self.model.tokenizer.inner.to_str().encode())
        for weights in self.model.parameters():
            digest.update(weights.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def _scored(
        self,
        kind: str,
        requests: list[Instance],
        parts: Sequence[Sequence[tuple[list[int], list[int]]]],
        cuts: Sequence[bool],
    ) -> list[tuple[float, bool]]:
        """The chain rule over the (given, scored) parts of each request; kept as soon as its last part is done."""
        begin = self.model.tokenizer.begin
        work = [
            (i, Answer([begin, *given, *answer], len(answer), number_of(_document(requests[i]), j)))
            for i, some in enumerate(parts)
            for j, (given, answer) in enumerate(some)
        ]
        scores: list[list[Score]] = [[] for _ in requests]
        results, done = [(0.0, True)] * len(requests), 0
        sizes = [len(answer.tokens) for _, answer in work]
        for some, scored in self.scorer([answer for _, answer in work]):
            for i, score in zip((work[j][0] for j in some), scored, strict=True):
                scores[i].append(score)
                if len(scores[i]) == len(parts[i]):
                    results[i] = sum(each.log_p for each in scores[i]), all(each.greedy for each in scores[i])
                    stderr = math.hypot(*(each.stderr for each in scores[i]))
                    note = Note(stderr, cuts[i], score.estimator, score.bound)
                    self._keep(kind, requests[i].args, results[i] if kind == "loglikelihood" else results[i][0], note)
            self._tell(done := done + sum(sizes[j] for j in some), sum(sizes))
        return results

    def _prompt(self, request: Instance) -> Prompt:
        context, settings = request.args
        wanted: Row = dict(normalize_gen_kwargs(settings))
        most, stops, sampled = wanted.pop("max_gen_toks"), wanted.pop("until"), wanted.pop("do_sample")
        temperature, top_k, top_p = (wanted.pop(name, None) for name in ("temperature", "top_k", "top_p"))
        draw = Draw(1.0 if temperature is None else temperature, top_k, top_p) if sampled else Draw(0.0)
        if wanted:
            raise ValueError(f"{request.task_name}: generation setting {sorted(wanted)} is not known here")
        return Prompt(self.model.tokenizer.encode(context), stops, most, draw, number_of(_document(request)))

    def _keep(self, kind: str, args: tuple, result: object, note: Note) -> None:
        """Into the cache at once, so that a run that is killed goes on from here; the note first."""
        key = f"{kind} note"
        self._notes[hash_args(key, args)] = note
        self.cache_hook.add_partial(key, args, note)
        self.cache_hook.add_partial(kind, args, result)

    def _tell(self, done: int, total: int) -> None:
        if self.progress is not None:
            self.progress(done, total)


def _document(request: Instance) -> object:
    """What names the document a request is about."""
    return request.args[0] if request.doc_id is None else (request.task_name, request.doc_id)


def evaluate_tasks(
    harness: Harness,
    names: Sequence[str] | None = None,
    *,
    local: Path | None = None,
    limit: int | None = None,
    shots: int = 0,
    cache: Path | None = None,
) -> list[Row]:
    """Run tasks of lm-evaluation-harness: a row a task and metric, with the errors of its questions and its maskings.

    The default is SMDM's eight. `local` is a folder of local files in place of the hub (see `local_rows`), where the
    default is those of the eight that are there. `limit` takes the first questions of
    each task only. `cache` is a folder of answers already given: a run that was killed goes on from them. Raises
    ValueError for a task or a file that is not there.
    """
    if shots < 0 or (limit is not None and limit < 1):
        raise ValueError(f"shots {shots}, limit {limit}: shots are 0 or more, a limit at least 1")
    if shots and local is not None:
        raise ValueError("local files hold one split, and examples come from another: leave out --local or --shots")
    if names is None:
        names = [name for name in TASKS if local is None or local_file(name, local) is not None]
    if not names:
        raise ValueError(f"{local}: no file of a known task; put NAME.jsonl there, for one of {', '.join(TASKS)}")
    with _quiet():
        tasks, sources = _loaded(names, local, limit)
        for task in tasks.values():
            task.set_config(key="num_fewshot", value=shots)
            task.set_fewshot_seed(seed=harness.scorer.seed)
        lm = harness if cache is None else CachingLM(harness, str(cache / f"{harness.fingerprint()}.db"))
        results = lm_eval.evaluate(lm=lm, task_dict={"tasks": tasks}, limit=limit, bootstrap_iters=BOOTSTRAP)
    return [
        row for name, task in tasks.items() for row in _rows(harness, name, task, results, sources.get(name), shots)
    ]


def check_tasks(names: Sequence[str], local: Path | None) -> None:
    """Read the tasks' questions. Raises ValueError where they cannot be had, from local files or from the hub."""
    with _quiet():
        _loaded(names, local)


def _loaded(names: Sequence[str], local: Path | None, limit: int | None = None) -> tuple[dict[str, Any], dict]:
    """Tasks by name, of whose local questions the first `limit` were read once, and the files of those that are local.

    Raises ValueError where they cannot be had.
    """
    try:
        tasks, sources = _load(names, local)
        for name, source in sources.items():
            for number, row in enumerate(itertools.islice(tasks[name].eval_docs, limit), 1):
                _ask(tasks[name], row, f"{source}, row {number}: no question of {name}")
    except ValueError:
        raise
    except Exception as error:  # no network, no data set: each library has its own exception
        where, remedy = ("the hub", ": give --local FOLDER") if local is None else (local, "")
        raise ValueError(f"the tasks' questions cannot be had from {where} ({_reason(error)}){remedy}") from None
    return tasks, sources


def _ask(task: Any, row: Row, otherwise: str) -> None:
    """Whether a row is a question. Raises ValueError, which says `otherwise`, where it is none."""
    try:
        task.doc_to_text(row)
        answer = task.doc_to_target(row)
        if task.OUTPUT_TYPE == "multiple_choice":
            choices = task.doc_to_choice(row)
            if not all(isinstance(choice, str) for choice in choices):
                raise TypeError("a choice that is no text")
            if isinstance(answer, int) and not 0 <= answer < len(choices):
                raise IndexError(f"answer {answer} of {len(choices)} choices")
    except Exception as error:  # of the templates' library, or of a task's own functions
        raise ValueError(f"{otherwise} ({_reason(error)})") from None


def _reason(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def _load(names: Sequence[str], local: Path | None) -> tuple[dict[str, Any], dict[str, Path]]:
    """Tasks by name, and the files of those that are local."""
    root = Path(lm_eval.tasks.__path__[0])
    # indexing all of the harness's 14,000 tasks takes some 6 seconds, these folders none
    if set(names) <= TASKS.keys():
        folders: list[str | Path] = [root / TASKS[name].folder for name in names]
        manager = lm_eval.tasks.TaskManager(include_path=folders, include_defaults=False)
    else:
        manager = lm_eval.tasks.TaskManager()
    unknown = [name for name in names if name not in manager.all_tasks]
    if unknown:
        close = get_close_matches(unknown[0], manager.all_tasks, n=1)
        meant = f"did you mean {close[0]}?" if close else "see `lm-eval ls tasks`"
        raise ValueError(f"lm-evaluation-harness {version('lm_eval')} has no task {unknown[0]!r}; {meant}")
    if local is None:
        return manager.load(list(names))["tasks"], {}
    sources, specs = {}, []
    for name in names:
        rows, changes, sources[name] = local_rows(name, local)
        data = {"test": datasets.Dataset.from_list(rows)}
        splits = {"training_split": None, "validation_split": None, "fewshot_split": None, "test_split": "test"}
        # a function and not the data: the harness copies and prints what a description holds
        specs.append({"task": name, **splits, **changes, "custom_dataset": lambda data=data, **_: data})
    return manager.load([{"group": "local", "task": specs}])["tasks"], sources


def _rows(harness: Harness, name: str, task: Any, results: Any, source: Path | None, shots: int) -> Iterator[Row]:
    kind = "loglikelihood" if task.OUTPUT_TYPE == "multiple_choice" else task.OUTPUT_TYPE
    asked = {json.dumps(args): args for sample in results["samples"][name] for args in sample["arguments"]}
    notes = [note for args in asked.values() if (note := harness.noted(kind, tuple(args))) is not None]
    note = notes[0] if notes else Note(0.0, False, "none", "none")
    found = results["results"][name]
    for key, value in found.items():
        metric, _, filter_ = key.partition(",")
        if not filter_ or metric.endswith("_stderr"):
            continue
        stderr = found.get(f"{metric}_stderr,{filter_}")
        asked_so = [sample for sample in results["samples"][name] if sample.get("filter", filter_) == filter_]
        each = {sample["doc_id"]: sample[metric] for sample in asked_so if metric in sample}
        yield {
            "experiment": "tasks",
            "model": str(harness.model.config.get("name", "model")),
            "task": name,
            "metric": metric if filter_ == "none" else f"{metric}, {filter_}",
            "value": float(value),
            "stderr": float(stderr) if isinstance(stderr, float) else None,
            "values": {"score": [float(each[i]) for i in sorted(each) if isinstance(each[i], int | float)]},
            "stderr_mc": sum(note.stderr for note in notes) / len(notes) if notes else None,
            "documents": results["n-samples"][name]["effective"],
            "requests": len(asked),
            "cut": sum(note.cut for note in notes),
            "estimator": note.estimator,
            "bound": note.bound,
            "draws": 0 if note.bound == "exact" else harness.scorer.draws,
            "guidance": harness.scorer.guidance,
            "precision": precision_of(harness.model),
            "seed": harness.scorer.seed,
            "protocol": f"lm-eval {version('lm_eval')}, version {results['versions'][name]}, {shots} shots, length "
            f"{harness.length}",
            "source": str(task.config.dataset_path) if source is None else source.name,
        }


@contextmanager
def _quiet() -> Iterator[None]:
    """The harness's warnings and prints do not get between ours, and it forks no processes for its bootstrap."""
    logger = logging.getLogger("lm_eval")
    level, bars = logger.level, datasets.are_progress_bars_disabled()
    logger.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    os.environ.setdefault("DISABLE_MULTIPROC", "1")
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        logger.setLevel(level)
        if not bars:
            datasets.enable_progress_bars()
