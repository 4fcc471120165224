"""`make test-kill`: `prepare` is killed (SIGKILL) at random moments, and its folder ends as one that never was.

Whatever the moment, the folder is not there or whole; at the end it equals an uninterrupted one byte for byte. Commits
and shards are small, so that kills fall into all that it does: reading, learning a vocabulary, tokenising, committing,
closing a shard, renaming.
"""

import argparse
import gzip
import json
import os
import random
import shutil
import tempfile
import time
from collections import Counter
from functools import partial
from pathlib import Path

from kill import life
from texts import POEM

from unmask.data import preparing, writing


def sources(folder: Path, rng: random.Random) -> list[str]:
    """A folder of files and a compressed file of records, in words drawn at random."""
    words = POEM.split()
    (folder / "files").mkdir()
    for i in range(150):
        text = " ".join(rng.choice(words) for _ in range(rng.randrange(1, 900)))
        (folder / "files" / f"{i:03}.txt").write_text(text, encoding="utf-8")
    rows = [{"text": f"{i} " + " ".join(rng.choice(words) for _ in range(200))} for i in range(150)]
    (folder / "rows.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode(), mtime=0))
    return [str(folder / "files"), str(folder / "rows.jsonl.gz")]


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def where(partial_: Path) -> str:
    """How far a killed call had come."""
    if not partial_.exists():
        return "nothing begun"
    if not (partial_ / "tokenizer.json").exists():
        return "no vocabulary yet"
    if (partial_ / "manifest.json").exists():
        return "all but its name"
    return "amid the tokens" if (partial_ / writing.STATE).exists() else "no commit yet"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    writing.SECONDS, writing.BATCH = 0.005, 1 << 12
    writing.SHARD = preparing.SHARD = 20_000
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        work = partial(preparing.prepare, sources(folder, rng), tokenizer="bpe:400", validation=0.2, weights=(1.0, 2.0))
        begun = time.monotonic()
        assert not life(partial(work, folder / "whole"), None)
        whole, longest = everything(folder / "whole"), 0.7 * (time.monotonic() - begun)
        assert len(whole) > 15, "several shards a side"
        kills, finished, places, out = 0, 0, Counter(), folder / "out"
        while kills < options.kills:
            killed = life(partial(work, out), rng.uniform(0, longest))
            kills += killed
            if out.exists():  # it appears whole, or not at all
                found = everything(out)
                other = [name for name in whole.keys() | found.keys() if whole.get(name) != found.get(name)]
                assert not other, f"after {kills} kills these differ: {other}"
                finished += 1
                shutil.rmtree(out)
            elif killed:
                places[where(folder / ".out.partial")] += 1
            else:
                raise AssertionError("a call that ended well left no folder")
        assert not life(partial(work, out), None)
        assert everything(out) == whole
        assert {path.name for path in folder.iterdir()} == {"files", "rows.jsonl.gz", "whole", "out"}
        said = ", ".join(f"{count} {place}" for place, count in places.most_common())
        print(f"{kills} kills in {time.monotonic() - begun:.0f} s ({said}); {finished + 1} folders, {len(whole)} files")


if __name__ == "__main__":
    main()
