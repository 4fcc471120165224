"""A second home of a run's checkpoints, on anything fsspec reaches: s3://…, gs://…, a folder on another disk.

An object store knows no renaming, so a checkpoint's manifest is copied last and deleted first: what has one is whole.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from unmask.checkpoint import CONFIG, TOKENIZER
from unmask.data.pairs import CHAT_TEMPLATE
from unmask.files import Row, atomic, read_json
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

    def belongs(self, requested: Row) -> None:
        """Raises ValueError where the mirror is another run's than one that asks for this."""
        place = self.home / CONFIG
        try:
            told = json.loads(self.system.cat_file(str(place)))
        except FileNotFoundError:
            return
        except ValueError:
            raise ValueError(f"mirror {place}: not JSON: restore or remove it") from None
        refuse_other(f"mirror {self.home}", told, requested)

    def follow(self, run: Path) -> None:
        """Bring the mirror to where the run is: its checkpoints, and none that it let go of. One of a later step stays:
        another machine went on from here. Raises OSError where it cannot.
        """
        ours = {folder.name: folder for folder in checkpoints(run)}
        theirs = self.there()
        for name in (CONFIG, TOKENIZER, CHAT_TEMPLATE, METRICS):
            if (run / name).exists():
                self._put(run / name, self.home / name)
        for name in ours.keys() - theirs:
            place = self.home / CHECKPOINTS / name
            for path in sorted(ours[name].iterdir(), key=lambda path: path.name == MANIFEST):
                self._put(path, place / path.name)
        for name in {name for name in theirs - ours.keys() if int(name) < max(map(int, ours), default=0)}:
            place = self.home / CHECKPOINTS / name
            self.system.rm_file(str(place / MANIFEST))
            self.system.rm(str(place), recursive=True)

    def there(self) -> set[str]:
        """Names of the checkpoints that are whole."""
        found = self.system.glob(str(self.home / CHECKPOINTS / "*" / MANIFEST))
        return {PurePosixPath(path).parent.name for path in found}

    def restore(self, run: Path) -> bool:
        """Fetch the newest checkpoint, where the run folder has none; whether there was one.

        Raises ValueError where what arrives is not what was sent.
        """
        names = sorted(self.there(), key=int)
        if not names or checkpoints(run):
            return False
        for name in (CONFIG, TOKENIZER, METRICS, *self._template(self.home)):
            self._get(self.home / name, run / name)
        part, place = run / CHECKPOINTS / f".{names[-1]}", self.home / CHECKPOINTS / names[-1]
        shutil.rmtree(part, ignore_errors=True)
        self._get(place / MANIFEST, part / MANIFEST)
        files = read_json(part / MANIFEST).get("files")
        for name in (*files, CONFIG, TOKENIZER, *self._template(place)) if isinstance(files, dict) else ():
            if Path(name).name != name:
                raise ValueError(f"mirror {self.home}: its {MANIFEST} names {name!r}, outside its folder")
            self._get(place / name, part / name)
        verify(part)
        part.rename(run / CHECKPOINTS / names[-1])
        return True

    def _template(self, place: PurePosixPath) -> list[str]:
        """That of a run on pairs."""
        return [CHAT_TEMPLATE] if self.system.exists(str(place / CHAT_TEMPLATE)) else []

    def _put(self, source: Path, target: PurePosixPath) -> None:
        self.system.makedirs(str(target.parent), exist_ok=True)
        self.system.put_file(str(source), str(target))

    def _get(self, source: PurePosixPath, target: Path) -> None:
        with self.system.open(str(source), "rb") as file, atomic(target, "wb") as copy:
            shutil.copyfileobj(file, copy, 1 << 22)
