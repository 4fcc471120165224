"""Checkpoints by name: those that come with the package, and hf://owner/repository[@revision][/file] from the hub."""

import re
from pathlib import Path, PurePosixPath

PRETRAINED = Path(__file__).parent / "pretrained"
BUILTIN = ("builtin", "builtin-ar")  # checkpoints that come with the package: an MDM, and its ARM twin
PREFIX = re.compile(r"^hf:/{1,2}")  # a Path takes one of the two slashes away
TOKENIZER = ["tokenizer*", "chat_template.jinja", "vocab.json", "merges.txt", "added_tokens.json"]
WANTED = ["config.json", "model*.safetensors", "model.safetensors.index.json", *TOKENIZER]
OLDER = ["pytorch_model*.bin", "pytorch_model.bin.index.json"]


def fetched(path: str | Path) -> Path:
    """A local path as it is; of one of BUILTIN the folder in this package; of an hf:// address the folder
    or file in the hub's cache, downloaded if need be.

    Raises ValueError for a repository or file that is not there, or cannot be reached.
    """
    if str(path) in BUILTIN:
        return PRETRAINED / path
    if not PREFIX.match(str(path)):
        return Path(path)
    repository, revision, file = parts_of(str(path))
    if file is None:
        folder = _snapshot(repository, revision, WANTED)
        return folder if any(folder.glob("model*.safetensors")) else _snapshot(repository, revision, [*WANTED, *OLDER])
    # a file may be named without its folder where its name is its own
    folder = _snapshot(repository, revision, [file, f"*/{file}"])
    found = [folder / file] if (folder / file).is_file() else sorted(folder.rglob(file))
    if len(found) != 1:
        what = f"in {len(found)} folders: say which" if found else "not in the repository, or not in the hub's cache"
        raise ValueError(f"hf://{repository}/{file}: {what}")
    return found[0]


def fetched_tokenizer(path: str | Path) -> Path:
    """As `fetched`, but of a repository only what belongs to its tokenizer."""
    repository, revision, file = parts_of(str(path)) if PREFIX.match(str(path)) else (None, None, None)
    if repository is None or file is not None:
        return fetched(path)
    return _snapshot(repository, revision, TOKENIZER)


def parts_of(address: str) -> tuple[str, str | None, str | None]:
    """(owner/repository, revision, file) of an hf:// address. Raises ValueError for anything else."""
    named = PurePosixPath(PREFIX.sub("", address)).parts
    owner, name = (*named[:2], "", "")[:2]
    name, _, revision = name.partition("@")
    if not owner or not name or ".." in named:
        raise ValueError(f"{address}: an address on the hub is hf://owner/repository or hf://owner/repository/file")
    return f"{owner}/{name}", revision or None, "/".join(named[2:]) or None


def _snapshot(repository: str, revision: str | None, patterns: list[str]) -> Path:
    from huggingface_hub import errors, snapshot_download

    what = f"hf://{repository}"
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=patterns))
    except errors.GatedRepoError:
        why = "its owner gives it on request: ask on its page, then `hf auth login`"
    except errors.RepositoryNotFoundError:
        why = "no such repository on the hub, or a private one (then `hf auth login`)"
    except errors.RevisionNotFoundError:
        why = f"the repository has no revision {revision!r}"
    except errors.HFValidationError:
        why = "not a name that a repository can have: hf://owner/repository"
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled):
        why = "not in the hub's cache, and no network to fetch it: download it elsewhere, and give the folder"
    except OSError as error:
        why = f"cannot be fetched ({str(error).splitlines()[0]})"
    raise ValueError(f"{what}: {why}")
