"""Published checkpoints: whose tensor is which of ours, and whose configuration, as data in both directions.

RADD: arXiv 2406.03736. SEDD: arXiv 2310.16834. MDLM: arXiv 2406.07524. SMDM (its MDMs and ARMs): arXiv 2410.18514.
LLaDA: arXiv 2502.09992. Dream: arXiv 2508.15487. Llama: causal models in Hugging Face's layout
(Llama, Mistral, Qwen 2).
docs/checkpoints.md says what of each was verified against what.
"""

from unmask.families.mapping import (
    Config,
    Family,
    config_of,
    configured,
    copied,
    length_of,
    network_of,
    published_config,
    to_ours,
    to_published,
    with_its_output,
)
from unmask.families.recognise import family_of
from unmask.families.tables import DREAM, FAMILIES, LLADA, LLAMA, MDLM, RADD, SEDD, SMDM

__all__ = [
    "DREAM",
    "FAMILIES",
    "LLADA",
    "LLAMA",
    "MDLM",
    "RADD",
    "SEDD",
    "SMDM",
    "Config",
    "Family",
    "config_of",
    "configured",
    "copied",
    "family_of",
    "length_of",
    "network_of",
    "published_config",
    "to_ours",
    "to_published",
    "with_its_output",
]
