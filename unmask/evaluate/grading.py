"""Grades of answers by a strong model behind any OpenAI-compatible endpoint, in FastChat's judgment format."""

import http.client
import json
import math
import os
import re
import statistics
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from unmask.evaluate.answers import Question
from unmask.files import Row, atomic, read_lines

RATING = re.compile(r"\[\[\s*(\d+(?:\.\d+)?)\s*\]\]")
RULES = (
    "You grade an assistant's answer to a user. Judge how helpful, relevant, correct, deep and clear it is. Explain "
    "your grade in a few sentences, then end with a whole number from 1 (useless) to 10 (could not be better) in "
    "double square brackets, for example [[5]]."
)
PROMPT = "unmask-v1"  # the name of RULES: FastChat's own prompt is another
KEY = "OPENAI_API_KEY"


@dataclass(frozen=True)
class Endpoint:
    """Where a judge answers: POST url/chat/completions. The key, if any, is read from the environment.

    Raises ValueError for what is no address.
    """

    url: str
    model: str
    seconds: float = 120.0
    """After which a request counts as failed."""
    attempts: int = 3
    wait: float = 2.0
    """Seconds before the second attempt, twice that before the third, and so on."""

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise ValueError(f"judge {self.url!r} is no address: give one such as http://localhost:8000/v1")

    def __call__(self, messages: Sequence[Row]) -> str:
        """What the judge says, nothing where it refuses (a completion without content). Raises ValueError where it does
        not answer, or not in the format.
        """
        body = json.dumps({"model": self.model, "messages": list(messages), "temperature": 0}).encode()
        headers = {"Content-Type": "application/json"}
        if os.environ.get(KEY):
            headers["Authorization"] = f"Bearer {os.environ[KEY]}"
        where = f"{self.url.rstrip('/')}/chat/completions"
        for attempt in range(self.attempts):
            try:
                request = urllib.request.Request(where, body, headers)
                with urllib.request.urlopen(request, timeout=self.seconds) as answer:
                    said = json.load(answer)["choices"][0]["message"]["content"]
                    if not isinstance(said, str | None):
                        raise ValueError(said)
                    return said or ""
            except urllib.error.HTTPError as error:
                reason, passing = f"{error.code} {error.reason}", error.code == 429 or error.code >= 500
            except http.client.InvalidURL as error:
                reason, passing = str(error), False
            except (urllib.error.URLError, TimeoutError, ConnectionError, http.client.HTTPException) as error:
                reason, passing = str(getattr(error, "reason", error)), True
            except (ValueError, KeyError, IndexError, TypeError):
                reason, passing = "no chat completion in its answer", False
            if not passing or attempt + 1 == self.attempts:
                break
            time.sleep(self.wait * 2**attempt)
        raise ValueError(f"the judge at {where} fails ({reason}): check its address, its model's name and {KEY}")


def messages_for(question: Question, turns: Sequence[str], turn: int) -> list[Row]:
    """What the judge is asked about one turn: the talk up to it, with the reference answer where there is one."""
    parts = [f"[System]\n{question.system}"] if question.system else []
    for i in range(turn + 1):
        parts.append(f"[User]\n{question.turns[i]}")
        if i < len(question.references):
            parts.append(f"[Reference answer]\n{question.references[i]}")
        parts.append(f"[Assistant]\n{turns[i]}")
    last = "Grade the assistant's last answer." if turn else "Grade the assistant's answer."
    return [{"role": "system", "content": RULES}, {"role": "user", "content": "\n\n".join([*parts, last])}]


def grade_file(
    questions: Sequence[Question],
    records: Sequence[Row],
    endpoint: Endpoint,
    out: Path,
    progress: Callable[[int, int], None] | None = None,
) -> Row:
    """Write a .jsonl of judgments, a line a turn, and return their mean; goes on where it was cut off.

    A judgment without a grade is kept with score -1, as FastChat does, counted apart, and asked for again by the next
    call, as is one of another question, reference or answer. The error is over questions, each the mean of its turns:
    turns of one talk are graded alike. Raises ValueError where no judgment has a grade.
    """
    work = [
        (question, record, turn)
        for question, record in zip(questions, records, strict=True)
        for turn in range(len(record["choices"][0]["turns"]))
    ]
    done = {}
    for number, row in enumerate(read_lines(out) if out.exists() else [], 1):
        if not {"question_id", "turn", "judge", "score"} <= row.keys():
            raise ValueError(f"{out}, line {number}: no judgment; choose another name for the answers")
        if row["score"] >= 0:
            done[_key(row)] = row
    with atomic(out) as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in done.values())
    found = []
    with out.open("a", encoding="utf-8") as file:
        for count, (question, record, turn) in enumerate(work, 1):
            messages = messages_for(question, record["choices"][0]["turns"], turn)
            key = (str(question.id), turn + 1, messages[1]["content"], endpoint.model)
            if key not in done:
                done[key] = _judged(question, record, turn, endpoint, messages)
                file.write(json.dumps(done[key], ensure_ascii=False) + "\n")
                file.flush()
            found.append(done[key])
            if progress is not None:
                progress(count, len(work))
    graded: dict[str, list[float]] = {}
    for row in found:
        if row["score"] >= 0:
            graded.setdefault(str(row["question_id"]), []).append(row["score"])
    scores = [statistics.fmean(each) for each in graded.values()]
    if not scores:
        said = next((row["judgment"] for row in found if row["judgment"]), "nothing")
        raise ValueError(f"{endpoint.model} gives no grade in {len(found)} judgments (it says {said!r:.60}): see {out}")
    error = statistics.stdev(scores) / math.sqrt(len(scores)) if len(set(scores)) > 1 else None
    return {
        "experiment": "grades",
        "judge": endpoint.model,
        "prompt": PROMPT,
        "model": records[0].get("model_id", "model"),
        "score": statistics.fmean(scores),
        "stderr": error,
        "turns": len(found),
        "without_grade": len(found) - sum(map(len, graded.values())),
        "values": {"score": [row["score"] for row in found]},
    }


def _judged(question: Question, record: Row, turn: int, endpoint: Endpoint, messages: Sequence[Row]) -> Row:
    said = endpoint(messages)
    ratings = [float(rating) for rating in RATING.findall(said)]
    return {
        "question_id": question.id,
        "answer_id": record["answer_id"],
        "model": record.get("model_id", "model"),
        "judge": [endpoint.model, PROMPT],
        "user_prompt": messages[1]["content"],
        "judgment": said,
        "score": ratings[-1] if ratings and 1 <= ratings[-1] <= 10 else -1,
        "turn": turn + 1,
        "tstamp": time.time(),
    }


def _key(row: Row) -> tuple[str, int, str, str]:
    return str(row["question_id"]), row["turn"], row.get("user_prompt", ""), row["judge"][0]
