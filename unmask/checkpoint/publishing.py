"""Ours to the published layouts, as the folder that the hub wants: weights, configuration, tokenizer, model card."""

import math
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import cast

import jinja2

from unmask.checkpoint.finding import find
from unmask.checkpoint.loading import load
from unmask.checkpoint.model import Later, Model
from unmask.checkpoint.runs import CONFIG, MODEL, TOKENIZER, describe
from unmask.checkpoint.tensors import write_published
from unmask.conditioned import ConditionedConfig
from unmask.data.pairs import CHAT_TEMPLATE, DEFAULT, TOKENIZER_CONFIG, template_of
from unmask.families import FAMILIES, LLAMA, Family, published_config, to_published
from unmask.files import Row, atomic, is_number, read_json, read_lines, vacant, write_json
from unmask.hub import fetched
from unmask.transformer import TransformerConfig

CARD, OURS, HUB = "README.md", "unmask", "hf"
RESULTS = "*.json"

TEMPLATE = """---
library_name: unmask
pipeline_tag: text-generation
tags:
- {{ "autoregressive" if causal else "masked-diffusion" }}
---

# {{ name }}

{{ kind }} with {{ "{:,}".format(parameters.total) }} parameters ({{ "{:,}".format(parameters.non_embedding) }} \
without embedding and output layer), in the layout of {{ layout }}.

## Configuration

| | |
| --- | --- |
{% for key, value in settings %}| {{ key }} | {{ value }} |
{% endfor %}
## Data and budget

| | |
| --- | --- |
{% for key, value in budget %}| {{ key }} | {{ value }} |
{% endfor %}
## Metrics

{% if metrics %}| what | value | kind |
| --- | --- | --- |
{% for row in metrics %}| {{ row | join(" | ") }} |
{% endfor %}{% else %}None were measured, or none were found beside the weights.
{% endif %}
## How to use

{% if own %}Its network is a `{{ own }}`, a class of a script that calls `unmask.cli.main`, here `network.py`: ask its \
author for it.

{% endif %}```bash
{{ "python network.py" if own else "unmask" }} sample --checkpoint {{ address }}\
{% if not tokenizer %} # with a tokenizer of your own: see docs/checkpoints.md{% endif %}
```

```python
import unmask
{% if own %}from network import {{ own }}
{% endif %}
model = unmask.load("{{ address }}")
samples = unmask.sample(model, [model.canvas("{% raw %}{{32}}{% endraw %}")]\
{{ ", unmask.LeftToRight()" if causal else "" }})
print(model.decode(samples.tokens[0]))
```
"""


def convert(source: str | Path, out: str | Path, to: str, **options) -> Path:
    """Write a checkpoint of any kind to folder `out`, in the layout `to`: "unmask", "hf", or a family's name.

    "hf" is Hugging Face's own layout where it has such a network (a causal llama flavour), else ours. `options` are
    those of `load`. Every layout can be loaded again. Raises ValueError where the layout has no such network, or `out`
    holds something else.
    """
    model, out = load(source, **options), Path(out)
    family = _layout(model, to)
    vacant(out)
    metrics, folder = metrics_of(source), find(fetched(source)).folder
    state, sizes = model.network.state_dict(), model.network.config
    tensors = state if family is None else to_published(family, state, sizes)
    kept = {"training", "budget", "machine", "precision", "family", "source", "requested", "parameters", "before"}
    row: Row = {
        "name": model.config.get("name", out.name),
        **{key: value for key, value in model.config.items() if key in kept},
        "network": describe(sizes),
    }
    whole = out.resolve()
    part = whole.with_name(f".{whole.name}.part")  # of which a killed process may have left some
    shutil.rmtree(part, ignore_errors=True)
    try:
        write_published(part / MODEL, tensors)
        tokenizer = _save_tokenizer(model, folder, part)
        card = model_card(model, family, metrics, tokenizer=tokenizer, address=str(out))
        with atomic(part / CARD) as file:
            file.write(card)
        if family is not None:
            dtype = str(next(iter(state.values())).dtype).removeprefix("torch.")
            row = {**_tokens(model, tokenizer), "torch_dtype": dtype, **published_config(family, sizes, model.length)}
        write_json(part / CONFIG, row)
        if whole.exists():
            whole.rmdir()
        part.rename(whole)
    except OSError as error:
        raise ValueError(f"cannot write {out} ({error}): make room there, or choose another folder") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return out


def push(folder: str | Path, repository: str, *, private: bool = False) -> str:
    """Upload a folder that `convert` wrote to the hub, and return its address.

    Raises ValueError for another folder, and for what the hub refuses.
    """
    from huggingface_hub import HfApi, errors

    folder = Path(folder)
    absent = [name for name in (MODEL, CONFIG, CARD) if not (folder / name).is_file()]
    if absent:
        raise ValueError(f"{folder}: no {' and no '.join(absent)} in it: write it with `unmask convert`")
    api = HfApi()
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Upload by unmask")
    except errors.HFValidationError:
        raise ValueError(f"{repository}: not a name on the hub: owner/repository") from None
    except (errors.LocalTokenNotFoundError, errors.HTTPError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"hf://{repository}: not uploaded ({reason}): `hf auth login`, or the network") from None
    return f"hf://{repository}"


def model_card(
    model: Model, family: Family | None, metrics: list[tuple[str, str, str]], *, tokenizer: bool, address: str
) -> str:
    """The page that the hub shows: configuration, data and budget, metrics with their errors, how to use it."""
    row, sizes = model.config, model.network.config
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=False)
    kind = "An autoregressive model" if model.causal else "A masked diffusion model"
    if isinstance(sizes, ConditionedConfig):
        kind += " that is told the level of masking"
    requested, budget, before = (row.get(key) or {} for key in ("requested", "budget", "before"))
    corpus = requested.get("corpus") or {}
    facts = {
        "corpus": corpus.get("source"),
        "objective": (row.get("training") or {}).get("objective"),
        "steps": (row.get("training") or {}).get("steps"),
        "tokens": _count(budget.get("tokens")),
        "FLOPs, 6ND": _power(budget.get("flops_6nd")),
        "FLOPs, true count": _power(budget.get("flops_true")),
        "begun as": requested.get("init"),
        "tokens before": _count(before.get("tokens")),
        "FLOPs before, 6ND": _power(before.get("flops_6nd")),
        "FLOPs before, true count": _power(before.get("flops_true")),
        "length": requested.get("length"),
        "precision": row.get("precision"),
        "converted from": row.get("source"),
    }
    settings = cast(Row, describe(sizes))
    return environment.from_string(TEMPLATE).render(
        name=row.get("name", "model"),
        kind=kind,
        causal=model.causal,
        parameters=sizes.parameters(),
        layout=f"[{family.name}]({family.url})" if family else "unmask",
        settings=[(key, value) for key, value in settings.items() if value is not None],
        budget=[(key, value) for key, value in facts.items() if value is not None] or [("", "not recorded")],
        metrics=metrics,
        tokenizer=tokenizer,
        address=address,
        own=None if type(sizes) in (TransformerConfig, ConditionedConfig) else type(sizes).__name__,
    )


def metrics_of(source: str | Path) -> list[tuple[str, str, str]]:
    """(what, value ± standard errors, kind of bound) of the results and metrics that lie beside a run's weights."""
    folder = Path(source)
    if not folder.is_dir():
        return []
    return [*_results(folder), *_validation(folder)]


def _results(folder: Path) -> Iterator[tuple[str, str, str]]:
    for path in sorted(folder.glob(RESULTS)):
        rows: object = None
        with suppress(ValueError):  # what is no result may lie there too
            rows = read_json(path).get("rows") if path.name not in (CONFIG, TOKENIZER) else None
        for row in rows if isinstance(rows, list) else []:
            if not isinstance(row, dict) or row.get("yardstick"):
                continue
            if not is_number(row.get("perplexity")) or not is_number(row.get("tokens")) or not row["tokens"]:
                continue
            slope = row["perplexity"] / row["tokens"]
            said = [f"{row['perplexity']:.2f}"]
            for name, of in (("stderr_mc", "maskings"), ("stderr_data", "texts")):
                if is_number(row.get(name)):
                    said.append(f"± {slope * row[name]:.2f} ({of})")
            what = f"perplexity, {row.get('corpus')} {row.get('split')}, protocol {row.get('protocol')}"
            yield what, " ".join(said), str(row.get("bound"))


def _validation(folder: Path) -> Iterator[tuple[str, str, str]]:
    path = folder / "metrics.jsonl"
    rows = [row for row in read_lines(path) if row.get("kind") == "validation"] if path.is_file() else []
    for row in rows[-1:]:
        value, error = row.get("nats_per_token"), row.get("stderr")
        if is_number(value) and is_number(error):
            what = f"validation nats/token after {row.get('step')} steps"
            yield what, f"{value:.4f} ± {error:.4f} (maskings)", str(row.get("bound"))


def _layout(model: Model, to: str) -> Family | None:
    if to == HUB:
        return LLAMA if LLAMA.fits(model.network.config) else None
    if to == OURS:
        return None
    family = next((each for each in FAMILIES if each.name.lower() == to.lower()), None)
    if family is None:
        known = ", ".join(each.name.lower() for each in FAMILIES)
        raise ValueError(f"layout {to!r} is unknown: {OURS}, {HUB}, {known}")
    return family


def _save_tokenizer(model: Model, folder: Path, out: Path) -> bool:
    """The tokenizer beside the weights, where there is one to be had, with its settings as transformers reads them and
    the chat template that came with it.
    """
    try:
        model.tokenizer.save(out / TOKENIZER)
    except ValueError:
        if not isinstance(model.tokenizer, Later):
            raise
        return False
    names = model.tokenizer.inner.id_to_token
    settings: Row = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": names(model.tokenizer.begin),
        "eos_token": names(model.tokenizer.end),
        "clean_up_tokenization_spaces": False,  # a decoded text keeps its spaces
    }
    write_json(out / TOKENIZER_CONFIG, settings)
    chat = template_of(folder).source
    if chat != DEFAULT or (folder / CHAT_TEMPLATE).is_file():
        with atomic(out / CHAT_TEMPLATE) as file:
            file.write(chat)
    return True


def _tokens(model: Model, tokenizer: bool) -> Row:
    return {"bos_token_id": model.tokenizer.begin, "eos_token_id": model.tokenizer.end} if tokenizer else {}


def _count(value: object) -> str | None:
    return f"{value:,.0f}" if isinstance(value, int | float) else None


def _power(value: object) -> str | None:
    return f"{value:.3g}" if isinstance(value, int | float) and math.isfinite(value) else None
