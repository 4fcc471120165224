"""Fine-tuning sets: prompts with answers, chats, questions with chains of thought, texts with blanks.

One idea carries all: a batch is (x_0, maskable, documents) as in pretraining, and only answers are maskable. So the one
trainer trains on it, an MDM and an ARM from the same files.
"""

from unmask.data.pairs.batches import Pairs, sequences
from unmask.data.pairs.encoding import Encoded, encode, prompt_ids
from unmask.data.pairs.layouts import Between, Blanks, Chat, Plain, Reading
from unmask.data.pairs.preparing import (
    PairSet,
    Prepared,
    held_out_places,
    is_pairs,
    load_pairs,
    load_template,
    prepare_pairs,
)
from unmask.data.pairs.rows import Malformed, rows_of
from unmask.data.pairs.templates import (
    CHAT_TEMPLATE,
    DEFAULT,
    TOKENIZER_CONFIG,
    Piece,
    Template,
    named_template,
    read_template,
    template_of,
)

__all__ = [
    "CHAT_TEMPLATE",
    "DEFAULT",
    "TOKENIZER_CONFIG",
    "Between",
    "Blanks",
    "Chat",
    "Encoded",
    "Malformed",
    "PairSet",
    "Pairs",
    "Piece",
    "Plain",
    "Prepared",
    "Reading",
    "Template",
    "encode",
    "held_out_places",
    "is_pairs",
    "load_pairs",
    "load_template",
    "named_template",
    "prepare_pairs",
    "prompt_ids",
    "read_template",
    "rows_of",
    "sequences",
    "template_of",
]
