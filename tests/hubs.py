"""The hub's cache on disk, for tests without network."""

from pathlib import Path

import pytest


def as_cache(home: Path, repository: str, folder: Path) -> None:
    """A folder laid out as the hub's cache lays it out."""
    place = home / ("models--" + repository.replace("/", "--"))
    revision = "0123456789abcdef0123456789abcdef01234567"
    snapshot = place / "snapshots" / revision
    snapshot.mkdir(parents=True)
    (place / "blobs").mkdir()
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(revision)
    for number, file in enumerate(sorted(each for each in folder.rglob("*") if each.is_file())):
        blob = place / "blobs" / f"{number:064x}"
        blob.write_bytes(file.read_bytes())
        link = snapshot / file.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blob)


def offline_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub, and no network."""
    import huggingface_hub.constants

    home = tmp_path / "hub"
    home.mkdir()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(home))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return home
