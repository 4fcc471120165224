"""The one network of this package: a pre-norm Transformer with rotary attention, bidirectional or causal.

Two flavours: "dit" is RADD's (LayerNorm with bias, GELU(tanh) MLP with biases, output bias; arXiv 2406.03736) and
"llama" is SMDM's (RMSNorm, SwiGLU, no biases; arXiv 2410.18514). Neither takes time: what is masked says how far
along the text is.
"""

from unmask.transformer.config import TransformerConfig
from unmask.transformer.layers import GELU, Attention, Block, SwiGLU, embedding, product
from unmask.transformer.network import Cached, Transformer
from unmask.transformer.rotary import rotary_tables, rotate

__all__ = [
    "GELU",
    "Attention",
    "Block",
    "Cached",
    "SwiGLU",
    "Transformer",
    "TransformerConfig",
    "embedding",
    "product",
    "rotary_tables",
    "rotate",
]
