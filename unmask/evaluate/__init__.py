"""What a trained model is worth: perplexity with its errors, quality of its texts, and two of either compared."""

from unmask.evaluate.comparing import compare, read_rows
from unmask.evaluate.corpora import CORPORA
from unmask.evaluate.generation import caution, generation, mauve, quality, reference_texts
from unmask.evaluate.heldout import HeldOut, benchmark, prepared, running_text
from unmask.evaluate.judge import Judge, judge_texts, load_judge
from unmask.evaluate.ngram import NGram
from unmask.evaluate.perplexity import baselines, errors, perplexity
from unmask.evaluate.protocols import PACKED, PROTOCOLS, Protocol, Stream, Windows, cut
from unmask.evaluate.writing import write

__all__ = [
    "CORPORA",
    "PACKED",
    "PROTOCOLS",
    "HeldOut",
    "Judge",
    "NGram",
    "Protocol",
    "Stream",
    "Windows",
    "baselines",
    "benchmark",
    "caution",
    "compare",
    "cut",
    "errors",
    "generation",
    "judge_texts",
    "load_judge",
    "mauve",
    "perplexity",
    "prepared",
    "quality",
    "read_rows",
    "reference_texts",
    "running_text",
    "write",
]
