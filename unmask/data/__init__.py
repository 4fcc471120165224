"""Text to tokens to batches: tokenizers, documents, prepared folders, packed blocks and resumable batches."""

from unmask.data.batches import Packed, batch_indices, batch_length, mixture_indices
from unmask.data.making import byte_tokenizer, character_tokenizer, train_bpe
from unmask.data.pairs import Pairs, prepare_pairs, sequences
from unmask.data.planning import Plan, estimate
from unmask.data.preparing import prepare
from unmask.data.sources import Document, documents
from unmask.data.splits import Split, load_manifest, load_split
from unmask.data.tokenizer import Tokenizer

__all__ = [
    "Document",
    "Packed",
    "Pairs",
    "Plan",
    "Split",
    "Tokenizer",
    "batch_indices",
    "batch_length",
    "byte_tokenizer",
    "character_tokenizer",
    "documents",
    "estimate",
    "load_manifest",
    "load_split",
    "mixture_indices",
    "prepare",
    "prepare_pairs",
    "sequences",
    "train_bpe",
]
