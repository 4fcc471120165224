"""`unmask sample`."""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro
from torch import Tensor

from unmask import ranks
from unmask.checkpoint import Model, Told
from unmask.cli.policies import Chosen
from unmask.evaluate import write
from unmask.evaluate.infilling import By, Candidate, between, likely_lengths, templates_of
from unmask.files import Row, writable, write_json
from unmask.grammar import Form
from unmask.log import console, progress, say
from unmask.rehearsal import rehearsed
from unmask.report.console import harmless, unmasking
from unmask.sampling import Constraint, Draw

MOST = 1_000_000  # samples that are held at once


@dataclass(frozen=True)
class Sample:
    """Write text: free, after a prompt, or into the blanks of a template.

    `unmask sample --checkpoint runs/tiny --template "Once {{8}} there was {{2..12}}" tweedie --steps 16`
    """

    checkpoint: Path = Path("builtin")
    """A run folder, a published file or folder, hf://owner/repository[/file], "builtin" or "builtin-ar"."""
    policy: Annotated[Chosen | None, tyro.conf.OmitSubcommandPrefixes] = None
    """Where to write next; by default exact: a random order, one token at a time (left to right for a causal model)."""
    draw: Annotated[Draw, tyro.conf.OmitArgPrefixes] = field(default_factory=Draw)
    prompt: str = ""
    """Text before what is written."""
    suffix: str = ""
    """Text behind what is written."""
    template: str | None = None
    """Text with blanks, {{8}} or {{2..12}}; @FILE reads it from a file, without the end of its last line."""
    templates: Path | None = None
    """A .jsonl with a template each row: {"template": …}, {"text": …}, or {"prompt": …, "suffix": …, "length": …}."""
    likely_lengths: By | None = None
    """Give blanks such as {{2..12}} their likely length instead of drawing it: by the text behind them, the one under
    which that is most probable; by the end token, if the model was fine-tuned to leave blanks early, the median of its
    law, and then no end token is written unless --until-end allows it."""
    length: int = 64
    """Open tokens between prompt and suffix, also of --templates' rows that say none."""
    until_end: bool = False
    """Let the text of a blank be shorter: it ends at the first end token that is written there."""
    guidance: float = 0.0
    """Weight of classifier-free guidance by the given text (unsupervised: it is masked for comparison); twice the NFE.
    """
    ban: tuple[str, ...] = ()
    """Texts of single tokens that must not be written."""
    form: Annotated[Form, tyro.conf.OmitArgPrefixes] = field(default_factory=Form)
    matching: bool = False
    """Write freely until a text fits, so that it follows p(x | fits), instead of drawing what still fits."""
    attempts: int = 1000
    """How often --matching may try for a sample."""
    count: int = 1
    """Samples of each template."""
    seed: int = 0
    """What is random is keyed by it: the same seed gives the same result."""
    batch: int = 16
    """Sequences written at once; changes the time and nothing else."""
    device: str = "auto"
    """cpu, cuda, cuda:1 or mps; auto takes the first GPU there is."""
    told: Annotated[Told, tyro.conf.OmitArgPrefixes] = field(default_factory=Told)
    dry_run: bool = False
    """Say what it would cost, judged by its first seconds, and stop."""
    out: Path | None = None
    """Also write the samples, with when and how surely each token appeared, for `unmask report`."""
    json: bool = False
    """Print records for machines."""

    def run(self) -> None:
        if self.templates is not None and (self.prompt or self.suffix or self.template is not None):
            raise ValueError("--templates says what stands around its blanks: leave out the other texts")
        if not (1 <= self.count <= MOST and self.length >= 1):
            raise ValueError(f"count {self.count} must be 1 to {MOST:,}, length {self.length} at least 1")
        writable(self.out)
        model = self.told.load(self.checkpoint, self.device)
        asked = [self._text()] if self.templates is None else templates_of(self.templates, self.length)
        bias = dict.fromkeys((_single(model, text) for text in self.ban), -math.inf)
        if self.likely_lengths is not None:
            with progress("lengths", "lengths") as bar:
                settled = [
                    likely_lengths(model, text, by=self.likely_lengths, seed=self.seed, progress=bar) for text in asked
                ]
            if not any(found for _, found in settled):
                behind = " with text behind it" if self.likely_lengths == "text" else ""
                raise ValueError(f"--likely-lengths does nothing: no blank is like {{{{2..12}}}}{behind}")
            if self.likely_lengths == "end" and not self.until_end:
                bias[model.tokenizer.end] = -math.inf
            asked = [text for text, _ in settled]
            if self.template is not None:
                console.print(_told_of(*settled[0], self.likely_lengths), markup=False, soft_wrap=True)
        canvases = [model.canvas(text, seed=self.seed) for text in asked]
        self._caution(model, canvases)
        constraint = self._constraint(model, canvases)
        texts = [text for text in asked for _ in range(self.count)]
        how: Row = {
            "draw": self.draw,
            "seed": self.seed,
            "batch": self.batch,
            "guidance": self.guidance,
            "bias": bias,
            "until_end": self.until_end,
            "constraint": constraint,
            "attempts": self.attempts if self.matching else None,
        }
        if self.dry_run:
            if self.matching:
                raise ValueError(
                    "--dry-run: how often --matching tries is only known when it has: leave out one of them"
                )
            work = rehearsed(lambda counted, told: write(counted(model), texts, self.policy, progress=told, **how))
            return work.tell(json=self.json)
        if self.json or len(texts) > 1 or self.matching or not console.is_terminal:
            with progress("writing", "tokens") as bar:
                records = write(model, texts, self.policy, progress=bar, **how)
        else:
            with unmasking(console, canvases[0], model.mask_id, model.tokenizer.pieces) as show:
                records = write(model, texts, self.policy, on_step=show, **how)
        if self.out is not None and ranks.rank() == 0:
            write_json(self.out, {"samples": records})
        shown = harmless if sys.stdout.isatty() else str  # a file or a pipe gets every byte
        for record in records:
            said = f"{shown(record['text'])}\n[NFE {record['nfe']}; law: {record['exact_for']}]"
            say(record if self.json else said)

    def _caution(self, model: Model, canvases: Sequence[Tensor]) -> None:
        """Raises ValueError for what would do nothing, or what the model cannot do."""
        if self.guidance and model.causal:
            raise ValueError("--guidance masks the text that is given, which a causal model cannot read: leave it out")
        for number, canvas in enumerate(canvases, 1):
            where, open_ = f"{self.templates}, text {number}: " if self.templates else "", canvas == model.mask_id
            if not open_.any():
                raise ValueError(where + "nothing to write: a blank is {{8}}, or {{2..12}} for a length between")
            if self.guidance and not (~open_ & (canvas != model.tokenizer.begin)).any():
                given = "give a --prompt, --suffix or --template" if not where else "give some around its blank"
                raise ValueError(f"{where}--guidance is by the text that is given: {given}")
        if self.attempts != Sample.attempts and not self.matching:
            raise ValueError("--attempts does nothing without --matching: leave it out")
        trained, longest = model.length, max(map(len, canvases)) - 1
        if trained and longest > trained:
            console.print(f"{longest:,} tokens: the model was trained on {trained:,}, and is worse beyond")

    def _constraint(self, model: Model, canvases: Sequence[Tensor]) -> Constraint | None:
        # end tokens fill the rest where nothing follows, and where nothing stands before a space may be lost
        edges = {(int(canvas[-1]) == model.mask_id, int(canvas[1]) == model.mask_id) for canvas in canvases}
        if len(edges) > 1 and self.form.given():
            raise ValueError(
                f"{self.templates}: some texts begin or end with a blank and some do not, and what fits "
                "is not the same for both: put them into files of their own"
            )
        if self.matching and not self.form.given():
            raise ValueError("--matching needs something to match: give --regex, --schema or --choices")
        end, opens = edges.pop()
        return self.form.constraint(model.tokenizer, end=end, opens=opens)

    def _text(self) -> str:
        """The template that the options say."""
        if self.template is None:
            return between(self.prompt, self.suffix, self.length)
        if self.length != Sample.length:
            raise ValueError("--length does nothing beside --template, whose blanks say theirs: leave it out")
        if self.prompt or self.suffix:
            raise ValueError("--template already says what stands around its blanks: leave out --prompt and --suffix")
        if not self.template.startswith("@"):
            return self.template
        path = Path(self.template[1:])
        if not path.is_file():
            raise ValueError(f"--template @{path}: no such file")
        try:
            return path.read_text(encoding="utf-8").removesuffix("\n")
        except UnicodeDecodeError:
            raise ValueError(f"--template @{path}: not UTF-8; save it as UTF-8") from None


def _told_of(text: str, found: Sequence[Sequence[Candidate]], by: By) -> str:
    """The lengths that were chosen, and the likeliest of each range: others may be as likely."""
    told = []
    for candidates in found:
        best = sorted(candidates, key=lambda each: each.nats)[:3]
        shown = (f"{n} {nats:.2f}{f' ± {stderr:.2f}' if stderr else ''}" for n, nats, stderr in best)
        told.append(f"{{{{{candidates[0].length}..{candidates[-1].length}}}}}: {', '.join(shown)}")
    how = "the median; likeliest, in nats, of" if by == "end" else "likeliest, in nats, of"
    return f"{text} ({how} {'; '.join(told)})"


def _single(model: Model, text: str) -> int:
    ids = model.tokenizer.encode(text)
    if len(ids) != 1:
        pieces = model.tokenizer.pieces(ids)
        raise ValueError(f"--ban {text!r}: only a single token can be banned, not {' '.join(map(repr, pieces))}")
    return ids[0]
