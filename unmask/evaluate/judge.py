"""A judge of texts: any causal model, ours or Hugging Face's, that tells how probable it holds them."""

import hashlib
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int

from unmask import ranks
from unmask.checkpoint import CONFIG, MODEL, Model, device_of, load
from unmask.checkpoint.finding import SUFFIXES
from unmask.evaluate.protocols import spans
from unmask.evaluate.scoring import shared
from unmask.files import read_json
from unmask.hub import fetched
from unmask.likelihood import log_likelihood
from unmask.network import Network
from unmask.wrappers import Plain

NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", re.ASCII)  # on the hub


@dataclass(frozen=True, eq=False)
class Judge:
    """A causal network with its tokenizer, and how many tokens it reads at once, begin token apart."""

    name: str
    """A run folder's name with a digest of its weights, or the checkpoint's name."""
    network: Network
    encode: Callable[[str], list[int]]
    decode: Callable[[list[int]], str]
    begin: int
    length: int


@dataclass(frozen=True, eq=False)
class Verdicts:
    """What a judge says of N texts."""

    nats: Float[np.ndarray, " N"]
    tokens: Int[np.ndarray, " N"]
    """The judge's own."""
    entropy: Float[np.ndarray, " N"]
    """Unigram entropy of each text's tokens, in nats: -sum_v f_v log f_v, f_v the share of token v."""


def load_judge(name: str, *, device: str = "auto") -> Judge:
    """The judge in a run folder of ours, in a published checkpoint, or of that name or hf:// address on the hub.

    What `load` does not read, such as GPT-2, is left to transformers. Raises ValueError where there is none, or it is
    not causal: a bound on a text's probability is no judgement.
    """
    path = fetched(name)
    if not path.exists() and (not NAME.fullmatch(name) or path.suffix in (*SUFFIXES, ".json")):
        raise ValueError(f"judge {name}: no such file or folder, nor a name on the hub, which is MODEL or OWNER/MODEL")
    config = path / CONFIG
    if config.is_file() and "network" in read_json(config):
        which = hashlib.blake2b((path / MODEL).read_bytes(), digest_size=4).hexdigest()
        return _ours(name, load(path, device=device), which)
    model = _published(path, device) if path.exists() else None
    return _theirs(name, str(path), device) if model is None else _ours(name, model)


def judge_texts(
    judge: Judge,
    texts: Sequence[str],
    *,
    behind: Sequence[str] | None = None,
    batch: int = 4,
    progress: Callable[[int, int], None] | None = None,
) -> Verdicts:
    """-log p of each text after a begin token, all its tokens scored, by the judge's own tokenizer.

    With `behind`, a prompt a text, -log p of the text given its prompt: the judge reads both in one, and the tokens
    behind those that the two readings share are scored. A text longer than the judge can read is read in windows that
    overlap by half. An empty text has no tokens.
    """
    prompts = behind or [""] * len(texts)
    ids, given = [], []
    for prompt, text in zip(prompts, texts, strict=True):
        ids.append(judge.encode(prompt + text))
        given.append(shared(judge.encode(prompt), ids[-1][:-1]) if text else len(ids[-1]))
    cuts = [
        (i, start, max(first, given[i]))
        for i, row in enumerate(ids)
        for start, first in _windows(len(row), judge.length)
        if len(row) > given[i] and start + judge.length > given[i]
    ]
    nats = torch.zeros(len(texts), dtype=torch.float64)
    if cuts:
        width = min(judge.length, max(len(row) for row in ids))
        x_0 = torch.full((len(cuts), 1 + width), judge.begin)
        maskable = torch.zeros_like(x_0, dtype=torch.bool)
        for at, (i, start, first) in enumerate(cuts):
            content = torch.tensor(ids[i][start : start + width])
            x_0[at, 1 : 1 + len(content)] = content  # what follows it is not seen by a causal network
            maskable[at, 1 + first - start : 1 + len(content)] = True
        estimate = ranks.likelihood(
            lambda rows: log_likelihood(judge.network, x_0[rows], maskable[rows], batch=batch, progress=progress),
            len(cuts),
        )
        nats.index_add_(0, torch.tensor([i for i, _, _ in cuts]), estimate.per_sequence)
    scored = [row[start:] for row, start in zip(ids, given, strict=True)]
    return Verdicts(nats.numpy(), np.array([len(row) for row in scored]), np.array([entropy(row) for row in scored]))


def entropy(tokens: Sequence[int]) -> float:
    """Unigram entropy of one text in nats, at most log(its length); 0 for an empty one."""
    shares = [count / len(tokens) for count in Counter(tokens).values()]
    return -sum(share * math.log(share) for share in shares)


def _windows(count: int, length: int) -> list[tuple[int, int]]:
    return list(spans(0, count, length, max(1, length // 2))) if count else []


def _published(path: Path, device: str) -> Model | None:
    """The model of a checkpoint that `load` reads with its tokenizer. Raises ValueError for a file that it does not."""
    try:
        model = load(path, device=device, dtype=torch.float32)
        model.tokenizer.encode("")  # which is looked for when it is first used
    except ValueError:
        if path.is_file():
            raise
        return None
    return model


def _ours(name: str, model: Model, which: str = "") -> Judge:
    if not model.causal:
        raise ValueError(f"{name}: a judge must be causal, and this is a bidirectional model: give an ARM's run folder")
    title = f"{model.config.get('name', Path(name).name)} {which}" if which else Path(name).name
    tokenizer, length = model.tokenizer, model.length or 1024
    return Judge(title, model, tokenizer.encode, tokenizer.decode, tokenizer.begin, length)


def _theirs(name: str, path: str, device: str) -> Judge:
    try:
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError:
        raise ValueError(
            f"judge {name}: no run folder of ours, and Hugging Face's models need: pip install 'unmask[eval]'"
        ) from None
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(path)
        tokenizer: Any = AutoTokenizer.from_pretrained(path)
    except Exception as error:  # not there, no network, no such architecture: each has its own exception
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ValueError(f"judge {name}: not to be loaded ({reason}): give a folder or a causal model's name") from None
    begin = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if begin is None:
        raise ValueError(f"judge {name}: its tokenizer has neither a begin nor an end token to start from")
    longest = getattr(model.config, "max_position_embeddings", None) or 1024
    vocab = int(model.config.vocab_size)
    network = Plain(model.float().to(device_of(device)).eval().requires_grad_(False), vocab, vocab, causal=True)
    return Judge(
        Path(name).name,
        network,
        lambda text: tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"],
        lambda ids: tokenizer.decode(ids, skip_special_tokens=True),
        begin,
        longest - 1,
    )
