"""A second home of a run's checkpoints, on anything fsspec reaches: s3://…, gs://…, a folder on another disk.

An object store knows no renaming, so a checkpoint's manifest is copied last and deleted first: what has one is whole.
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from unmask.checkpoint import CONFIG, TOKENIZER
from unmask.data.pairs import CHAT_TEMPLATE
from unmask.files import Row, atomic, read_json
from unmask.log import console
from unmask.train.checkpoints import CHECKPOINTS, MANIFEST, checkpoints, verify
from unmask.train.config import refuse_other

METRICS = "metrics.jsonl"


@dataclass(frozen=True)
class Mirror:
    """The folder `home` of an fsspec filesystem."""

    system: Any
    home: PurePosixPath

    @classmethod
    def at(cls, url: str) -> "Mirror":
        """Raises ValueError for an address that no installed filesystem serves."""
        try:
            from fsspec.core import url_to_fs

            system, home = url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise ValueError(f"mirror {url}: {error}") from None
        return cls(system, PurePosixPath(home))

    def told(self) -> Row | None:
        """config.json of the run that is there; None where none is. Raises ValueError where it cannot be read."""
        place = self.home / CONFIG
        with self._reached():
            if not self.system.exists(str(place)):
                return None
            content = self.system.cat_file(str(place))
        try:
            return json.loads(content)
        except ValueError:
            raise ValueError(f"mirror {place}: not JSON: restore or remove it") from None

    def belongs(self, requested: Row) -> None:
        """Raises ValueError where the mirror is another run's than one that asks for this, or cannot be read."""
        if (told := self.told()) is not None:
            refuse_other(f"mirror {self.home}", told, requested)

    def follow(self, run: Path) -> None:
        """Bring the mirror to where the run is: its checkpoints, none that it let go of and nothing that was left half
        there. One of a later step stays: another machine went on from here. Raises what its filesystem raises.
        """
        ours = {folder.name: folder for folder in checkpoints(run)}
        theirs = self._whole()
        for name in (CONFIG, TOKENIZER, CHAT_TEMPLATE, METRICS):
            if (run / name).exists():
                self._put(run / name, self.home / name)
        for name in ours.keys() - theirs:
            place = self.home / CHECKPOINTS / name
            for path in sorted(ours[name].iterdir(), key=lambda path: path.name == MANIFEST):
                self._put(path, place / path.name)
        files = self.system.find(str(self.home / CHECKPOINTS))
        others = {PurePosixPath(path).parent.name for path in files} - ours.keys()
        for name in (name for name in others if name.isdigit() and int(name) < max(map(int, ours), default=0)):
            place = self.home / CHECKPOINTS / name
            if name in theirs:
                self.system.rm_file(str(place / MANIFEST))
            self.system.rm(str(place), recursive=True)

    def there(self) -> set[str]:
        """Names of the checkpoints that are whole. Raises ValueError where that cannot be told."""
        with self._reached():
            return self._whole()

    def _whole(self) -> set[str]:
        found = self.system.glob(str(self.home / CHECKPOINTS / "*" / MANIFEST))
        return {PurePosixPath(path).parent.name for path in found}

    def restore(self, run: Path) -> bool:
        """Fetch all checkpoints, where the run folder has none; whether there were any. What arrives damaged is told of
        and left out.

        Raises ValueError where none arrives as it was sent, or the mirror cannot be read.
        """
        names = sorted(self.there(), key=int)
        if not names or checkpoints(run):
            return False
        with self._reached():
            for name in (CONFIG, TOKENIZER, METRICS, *self._template(self.home)):
                self._get(self.home / name, run / name)
            whole = [name for name in names if self._fetched(run, name)]
        if not whole:
            raise ValueError(f"mirror {self.home}: no checkpoint there is whole: remove it to begin anew")
        for name in whole:  # the newest last: with it the folder is filled
            self._part(run, name).rename(run / CHECKPOINTS / name)
        return True

    def _fetched(self, run: Path, name: str) -> bool:
        """Whether a checkpoint has arrived under a hidden name as it was sent."""
        part, place = self._part(run, name), self.home / CHECKPOINTS / name
        shutil.rmtree(part, ignore_errors=True)
        try:
            self._get(place / MANIFEST, part / MANIFEST)
            files = read_json(part / MANIFEST).get("files")
            for file in (*files, CONFIG, TOKENIZER, *self._template(place)) if isinstance(files, dict) else ():
                if Path(file).name != file:
                    raise ValueError(f"its {MANIFEST} names {file!r}, outside its folder")
                self._get(place / file, part / file)
            verify(part)
        except (ValueError, FileNotFoundError) as error:
            shutil.rmtree(part, ignore_errors=True)
            console.print(f"mirror {place}: left out ({error})", markup=False)
            return False
        return True

    @staticmethod
    def _part(run: Path, name: str) -> Path:
        return run / CHECKPOINTS / f".{name}"

    @contextmanager
    def _reached(self) -> Iterator[None]:
        """Each filesystem has exceptions of its own: raises a ValueError that names the mirror."""
        try:
            yield
        except ValueError:
            raise
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise ValueError(f"mirror {self.home} cannot be read ({reason}): leave out --mirror or try again") from None

    def _template(self, place: PurePosixPath) -> list[str]:
        """That of a run on pairs."""
        return [CHAT_TEMPLATE] if self.system.exists(str(place / CHAT_TEMPLATE)) else []

    def _put(self, source: Path, target: PurePosixPath) -> None:
        self.system.makedirs(str(target.parent), exist_ok=True)
        self.system.put_file(str(source), str(target))

    def _get(self, source: PurePosixPath, target: Path) -> None:
        with self.system.open(str(source), "rb") as file, atomic(target, "wb") as copy:
            shutil.copyfileobj(file, copy, 1 << 22)
