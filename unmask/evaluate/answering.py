"""`unmask evaluate answers`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from unmask import ranks
from unmask.checkpoint import Model, Told
from unmask.data.pairs import Template, is_pairs, load_template, named_template, read_template, template_of
from unmask.data.splits import MANIFEST
from unmask.evaluate.answers import Asking, answer_file, cost, exact_match, questions_of
from unmask.evaluate.comparing import without_values
from unmask.evaluate.grading import Endpoint, grade_file
from unmask.files import Row, writable, write_json
from unmask.grammar import Form
from unmask.hub import fetched
from unmask.log import progress, say
from unmask.sampling import AdaptivePolicy, Blocks, Draw, Planned, Remasking
from unmask.units import unseen


@dataclass(frozen=True)
class EvaluateAnswers:
    """Answers to a set of questions, their exact match with the references, and a judge's grades.

    `unmask evaluate answers --checkpoint runs/gsm8k --questions gsm8k/test.jsonl --out answers.jsonl confidence`
    """

    checkpoint: Path
    """A run folder, a published file or folder, hf://owner/repository[/file], "builtin" or "builtin-ar"."""
    questions: str
    """MT-Bench's question.jsonl, GSM8K's test.jsonl, or any file with prompts and answers (docs/finetuning.md)."""
    out: Path
    """Answers, a line each, in FastChat's format; a file that was cut off goes on."""
    policy: Annotated[Planned | AdaptivePolicy | Remasking | Blocks | None, tyro.conf.OmitSubcommandPrefixes] = None
    """Where to write next; by default exact: a random order, one token at a time (left to right for a causal model)."""
    draw: Annotated[Draw, tyro.conf.OmitArgPrefixes] = field(default_factory=Draw)
    length: int | None = None
    """Tokens of an answer at most; by default all that the block leaves behind the prompt."""
    block: int | None = None
    """Tokens of prompt and answer together; by default what the checkpoint was trained with."""
    guidance: float = 0.0
    """Weight of classifier-free guidance by the prompt; twice the NFE."""
    passes: int = 1
    """2: first a chain, then, given it, the answer, for a model fine-tuned with `unmask prepare --passes 2`."""
    final: int = 16
    """Tokens of the second pass's answer at most."""
    form: Annotated[Form, tyro.conf.OmitArgPrefixes] = field(default_factory=Form)
    told: Annotated[Told, tyro.conf.OmitArgPrefixes] = field(default_factory=Told)
    template: Path | None = None
    """A Jinja chat template; by default that of the data the checkpoint was trained on, its own, or a plain one."""
    first: int | None = None
    """Only so many questions."""
    judge: str | None = None
    """Address of an OpenAI-compatible endpoint, such as http://localhost:8000/v1; its key is OPENAI_API_KEY's."""
    judge_model: str = "gpt-4"
    """The judge's name at that endpoint."""
    seed: int = 0
    """What is random is keyed by it: the same seed gives the same result."""
    batch: int = 16
    """Answers written at once; changes the time and nothing else."""
    device: str = "auto"
    """cpu, cuda, cuda:1 or mps; auto takes the first GPU there is."""
    dry_run: bool = False
    """Say what it would cost, judged by its first seconds, and stop."""
    result: Path | None = None
    """Write the rows as a result file, for `unmask report`."""
    json: bool = False
    """Print rows for machines."""

    def run(self) -> None:
        if self.first is not None and self.first < 1:
            raise ValueError(f"first {self.first} must be at least 1")
        if self.judge is None and self.judge_model != EvaluateAnswers.judge_model:
            raise ValueError("--judge-model does nothing without --judge: leave it out")
        if self.passes == 1 and self.final != EvaluateAnswers.final:
            raise ValueError("--final does nothing without --passes 2: leave it out")
        judge = None if self.judge is None else Endpoint(self.judge, self.judge_model)
        grades = self.out.with_name(f"{self.out.stem}.judgments.jsonl")
        if self.result is not None and self.result.resolve() in {path.resolve() for path in (self.out, grades)}:
            raise ValueError(f"--result {self.result} would replace the answers or judgments: choose another file")
        for path in (self.out, self.result):
            writable(path)
        questions = questions_of(self.questions)[: self.first]
        bare = sum(question.reference is None for question in questions)
        if bare and judge is None and self.result is not None:
            what = f"{bare} of {len(questions)} questions have no reference for their last answer"
            raise ValueError(
                f"--result {self.result}: {what}, and nothing is measured: leave it out, or name a --judge"
            )
        model = self.told.load(self.checkpoint, self.device)
        block = (model.length or 128) if self.block is None else self.block
        name = str(model.config.get("name", self.checkpoint.name))
        asking = Asking(
            policy=self.policy,
            draw=self.draw,
            length=self.length,
            block=block,
            guidance=self.guidance,
            passes=self.passes,
            final=self.final,
            seed=self.seed,
            batch=self.batch,
            template=self._template(model),
            form=self.form,
        )
        if self.dry_run:
            return cost(model, questions, asking).tell(json=self.json)
        with progress("answering", "answers") as bar:
            records = answer_file(model, questions, asking, self.out, name=name, progress=bar)
        rows: list[Row] = []
        if not bare and judge is None:
            rows.append(exact_match(questions, records, name))
        if judge is not None:
            with progress("grading", "answers") as bar:
                rows.append(ranks.agreed(lambda: grade_file(questions, records, judge, grades, bar)))
        how: Row = {"source": Path(self.questions).name, "policy": repr(asking.policy_for(model))}
        how |= {"draw": str(self.draw), "block": block, "length": self.length, "guidance": self.guidance}
        how |= {"passes": self.passes, "seed": self.seed, **self.form.given()}
        rows = [{**row, **how} for row in rows]
        if self.result is not None and ranks.rank() == 0:
            write_json(self.result, {"rows": rows})
        for row in rows:
            say(without_values(row) if self.json else _line(row))
        if not rows:
            say(f"{len(records)} answers in {self.out}; {bare} have no reference, so none is compared")

    def _template(self, model: Model) -> Template:
        data = model.config.get("requested", {}).get("data")
        if self.template is not None:
            return named_template(read_template(self.template), model.tokenizer)
        if data and (Path(data) / MANIFEST).is_file() and is_pairs(data):
            return load_template(data, model.tokenizer)
        return named_template(template_of(fetched(self.checkpoint)).source, model.tokenizer)


def _line(row: Row) -> str:
    if row["experiment"] == "grades":
        error = "" if row["stderr"] is None else f" ±{row['stderr']:.2f}"
        value = f"grade {row['score']:.2f}{error} by {row['judge']}, {row['turns']} turns"
        return f"{row['model']}: {value}" + (f", {row['without_grade']} without" if row["without_grade"] else "")
    cost = f"NFE {row['nfe']:.1f}, {row['seconds_per_answer']:.2f} s an answer"
    cut = f", {row['prompts_cut']} prompts cut to fit" if row["prompts_cut"] else ""
    share, error, count = row["exact_match"], row["stderr"], row["questions"]
    if error is None:
        bound = f"{1 - unseen(count):.1%} or more" if share else f"{unseen(count):.1%} or less"
        return f"{row['model']}: exact match {share:.1%} of {count} (by the rule of three {bound}), {cost}{cut}"
    return f"{row['model']}: exact match {share:.1%} ±{error:.1%} of {count}, {cost}{cut}"
