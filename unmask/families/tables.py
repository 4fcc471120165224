"""The tables: which tensor and which setting of a published network is which of ours."""

import math
from collections.abc import Mapping

import torch

from unmask.conditioned import ConditionedConfig
from unmask.families.mapping import GROUPED, MASK_ROW, QKV, SAME, STACKED, Config, Family, Line
from unmask.files import Row
from unmask.transformer import TransformerConfig

GPT2 = ("openai-community/gpt2", 50_257)


def _inverse_frequencies(config: TransformerConfig) -> torch.Tensor:
    return 1 / config.rotary_base ** (torch.arange(0, config.head_width, 2).float() / config.head_width)


def _linear(ours: str, theirs: str) -> tuple[Line, Line]:
    """A layer with weight and bias."""
    return Line(f"{ours}.weight", (f"{theirs}.weight",)), Line(f"{ours}.bias", (f"{theirs}.bias",))


DIT_SETTINGS = {
    "vocab": ("tokens",),
    "layers": ("model.n_blocks",),
    "heads": ("model.n_heads",),
    "width": ("model.hidden_size",),
    "dropout": ("model.dropout",),
}
DIT_HEADS = {(12, 768): 12, (24, 1024): 16}

RADD = Family(
    "RADD",
    (
        Line("embedding.weight", ("vocab_embed.embedding",)),
        *_linear("blocks.{i}.norm_1", "blocks.{i}.norm1"),
        Line("blocks.{i}.attention.qkv.weight", ("blocks.{i}.attn_qkv.weight",)),
        Line("blocks.{i}.attention.project.weight", ("blocks.{i}.attn_out.weight",)),
        *_linear("blocks.{i}.norm_2", "blocks.{i}.norm2"),
        *_linear("blocks.{i}.mlp.up", "blocks.{i}.mlp.0"),
        *_linear("blocks.{i}.mlp.down", "blocks.{i}.mlp.2"),
        *_linear("norm", "output_layer.norm_final"),
        Line("output.weight", ("output_layer.linear.weight",), MASK_ROW),
        Line("output.bias", ("output_layer.linear.bias",), MASK_ROW),
    ),
    config={"flavour": "dit", "causal": False},
    fits=lambda c: (
        type(c) is TransformerConfig
        and (c.flavour, c.causal, c.groups, c.mlp_width, c.tied, c.mask, c.shifted, c.qkv_bias)
        == ("dit", False, c.heads, 4 * c.width, False, c.vocab, False, False)
        and (c.norm_eps, c.rotary_base, c.rotary_scaling, c.rotary_dtype) == (1e-5, 10_000, None, "float32")
    ),
    requires="flavour dit, bidirectional, not tied, no grouped queries, an MLP 4 x width, norm_eps 1e-5, mask_id V, "
    "rotary_base 10000 in float32",
    mark="blocks.0.norm1.bias",
    settings=DIT_SETTINGS,
    constants=lambda c: {"model.type": "ddit_wot", "model.mlp_type": "mlp", "noise.type": "loglinear"},
    heads=DIT_HEADS,
    output_rows=1,
    buffers={"rotary_emb.inv_freq": _inverse_frequencies},
    length=("model.length", 1024),
    tokenizer=GPT2,
    url="https://github.com/ML-GSAI/RADD",
)


def _conditioned(prefix: str) -> tuple[Line, ...]:
    pairs = (
        *_linear("level.0", "sigma_map.mlp.0"),
        *_linear("level.2", "sigma_map.mlp.2"),
        Line("embedding.weight", ("vocab_embed.embedding",)),
        Line("blocks.{i}.norm_1.weight", ("blocks.{i}.norm1.weight",)),
        Line("blocks.{i}.attention.qkv.weight", ("blocks.{i}.attn_qkv.weight",)),
        Line("blocks.{i}.attention.project.weight", ("blocks.{i}.attn_out.weight",)),
        Line("blocks.{i}.norm_2.weight", ("blocks.{i}.norm2.weight",)),
        *_linear("blocks.{i}.mlp.up", "blocks.{i}.mlp.0"),
        *_linear("blocks.{i}.mlp.down", "blocks.{i}.mlp.2"),
        *_linear("blocks.{i}.modulation", "blocks.{i}.adaLN_modulation"),
        Line("norm.weight", ("output_layer.norm_final.weight",)),
        *_linear("modulation", "output_layer.adaLN_modulation"),
        Line("output.weight", ("output_layer.linear.weight",), MASK_ROW),
        Line("output.bias", ("output_layer.linear.bias",), MASK_ROW),
    )
    return tuple(Line(ours, tuple(prefix + name for name in theirs), way) for ours, theirs, way in pairs)


def _end_of_noise(row: Row) -> Row:
    """The schedule's largest sigma: log-linear ends at 1e-3 of the tokens, geometric at its sigma_max."""
    noise = row.get("noise") or {}
    return {"sigma_max": float(noise.get("sigma_max", 20.0))} if noise.get("type") == "geometric" else {}


def _noise_of(config: Config) -> Row:
    if not isinstance(config, ConditionedConfig) or math.isclose(config.sigma_max, -math.log(1e-3)):
        return {"noise.type": "loglinear", "noise.sigma_min": 1e-4, "noise.sigma_max": 20}
    return {"noise.type": "geometric", "noise.sigma_min": 1e-4, "noise.sigma_max": config.sigma_max}


def _sedd(row: Row) -> Row:
    graph = (row.get("graph") or {}).get("type", "absorb")
    if graph != "absorb":
        raise ValueError(f"SEDD with graph.type {graph!r} is no masked diffusion: only absorb has a mask")
    scaled = (row.get("model") or {}).get("scale_by_sigma", True)
    return {"reading": "scaled score" if scaled else "score"} | _end_of_noise(row)


SEDD = Family(
    "SEDD",
    _conditioned(""),
    config={"reading": "scaled score"},
    fits=lambda c: isinstance(c, ConditionedConfig) and c.reading != "law" and c.timed,
    requires="a score network that is told the level",
    mark="sigma_map.mlp.0.weight",
    settings=DIT_SETTINGS | {"condition": ("model.cond_dim",)},
    more=_sedd,
    constants=lambda c: {
        "model.type": "ddit",
        "model.scale_by_sigma": isinstance(c, ConditionedConfig) and c.reading == "scaled score",
        "graph.type": "absorb",
        **_noise_of(c),
    },
    heads=DIT_HEADS,
    output_rows=1,
    buffers={"rotary_emb.inv_freq": _inverse_frequencies},
    length=("model.length", 1024),
    tokenizer=GPT2,
    url="https://github.com/louaaron/Score-Entropy-Discrete-Diffusion",
)


def _mdlm(row: Row) -> Row:
    """vocab_size counts the mask; a configuration that does not speak of time leaves it out.

    d3pm's network predicts the mask too: what is read is its law given that a token is written.
    """
    kind = row.get("parameterization", "subs")
    if kind not in ("subs", "sedd", "d3pm"):
        raise ValueError(f"MDLM with parameterization {kind!r}: only subs, sedd and d3pm are read")
    more: Row = {"timed": row.get("time_conditioning") or False, **_end_of_noise(row)}
    if kind == "sedd":
        more |= {"reading": "scaled score" if (row.get("model") or {}).get("scale_by_sigma", True) else "score"}
        more["timed"] = True
    if "vocab_size" in row:
        more["vocab"] = row["vocab_size"] - 1
    return more


MDLM = Family(
    "MDLM",
    _conditioned("backbone."),
    config={"reading": "law", "timed": False},
    fits=lambda c: isinstance(c, ConditionedConfig) and c.reading == "law",
    requires="a network with adaptive LayerNorm that predicts laws",
    mark="backbone.sigma_map.mlp.0.weight",
    settings={
        "layers": ("n_blocks", "model.n_blocks"),
        "heads": ("n_heads", "model.n_heads"),
        "width": ("hidden_dim", "model.hidden_size"),
        "condition": ("cond_dim", "model.cond_dim"),
        "dropout": ("dropout", "model.dropout"),
    },
    more=_mdlm,
    constants=lambda c: {
        "model_type": "mdlm",
        "vocab_size": c.vocab + 1,
        "time_conditioning": isinstance(c, ConditionedConfig) and c.timed,
        **_noise_of(c),
    },
    length=("model_length", 1024),
    kinds=("mdlm",),
    heads=DIT_HEADS,
    output_rows=1,
    buffers={"backbone.rotary_emb.inv_freq": _inverse_frequencies},
    tokenizer=GPT2,
    url="https://github.com/kuleshov-group/mdlm",
)

# fmt: off
SMDM_SIZES = {
    6: (6, 4, 256), 19: (8, 6, 384), 34: (8, 8, 512), 48: (9, 9, 576), 66: (10, 10, 640), 75: (16, 8, 640),
    85: (13, 10, 640), 113: (12, 12, 768), 142: (15, 12, 768), 170: (18, 12, 768), 180: (14, 14, 896),
    206: (16, 14, 896), 231: (18, 14, 896), 268: (16, 16, 1024), 302: (18, 16, 1024), 336: (20, 16, 1024),
    472: (18, 10, 1280), 551: (21, 10, 1280), 571: (18, 11, 1408), 629: (24, 10, 1280), 666: (21, 11, 1408),
    717: (19, 12, 1536), 761: (24, 11, 1408), 831: (22, 12, 1536), 944: (25, 12, 1536), 1028: (20, 14, 1792),
    1233: (24, 14, 1792), 1476: (22, 16, 2048), 1678: (25, 16, 2048), 2121: (28, 17, 2176),
}
# fmt: on
"""SMDM's sizes: millions of non-embedding parameters: layers, heads, width. The MLP is 4 x wide, but for 75's 1600."""

SMDM = Family(
    "SMDM",
    (
        Line("embedding.weight", ("transformer.wte.weight",)),
        Line("blocks.{i}.norm_1.weight", ("transformer.h.{i}.norm_1.weight",)),
        Line("blocks.{i}.attention.qkv.weight", ("transformer.h.{i}.attn.attn.weight",), GROUPED),
        Line("blocks.{i}.attention.project.weight", ("transformer.h.{i}.attn.proj.weight",)),
        Line("blocks.{i}.norm_2.weight", ("transformer.h.{i}.norm_2.weight",)),
        Line(
            "blocks.{i}.mlp.gate_up.weight",
            ("transformer.h.{i}.mlp.swiglu.w1.weight", "transformer.h.{i}.mlp.swiglu.w2.weight"),
            STACKED,
        ),
        Line("blocks.{i}.mlp.down.weight", ("transformer.h.{i}.mlp.swiglu.w3.weight",)),
        Line("norm.weight", ("transformer.ln_f.weight",)),
        Line("output.weight", ("lm_head.weight",)),
    ),
    config={"flavour": "llama", "rotary_dtype": "bfloat16"},
    fits=lambda c: (
        type(c) is TransformerConfig
        and (c.flavour, c.rotary_base, c.rotary_scaling, c.norm_eps, c.tied, c.mask, c.shifted, c.qkv_bias)
        == ("llama", 10_000, None, 1e-5, False, c.vocab, False, False)
    ),
    requires="flavour llama, not tied, rotary_base 10000 unscaled, norm_eps 1e-5, mask_id V, no biases",
    mark="transformer.h.0.attn.attn.weight",
    settings={
        "layers": ("n_layer",),
        "heads": ("n_head",),
        "kv_heads": ("n_query_groups",),
        "width": ("n_embd",),
        "mlp": ("intermediate_size",),
        "rotary_dtype": ("unmask.rotary_dtype",),  # their code has no choice: said for ours alone
    },
    constants=lambda c: {"name": "unmask", "padded_vocab_size": c.vocab, "norm_eps": 1e-5, "bias": False},
    heads={(layers, width): heads for layers, heads, width in SMDM_SIZES.values()},
    length=("block_size", 2048),
    tokenizer=("TinyLlama/TinyLlama_v1.1", 32_000),
    url="https://github.com/ML-GSAI/SMDM",
)


def _must(name: str, row: Row, wanted: Mapping[str, tuple[object, ...]]) -> None:
    """Raises ValueError where a setting is there and is none of these."""
    wrong = {key: row[key] for key, values in wanted.items() if row.get(key) is not None and row[key] not in values}
    if wrong:
        told = ", ".join(f"{key} {value!r}" for key, value in wrong.items())
        raise ValueError(f"{name} with {told} is another network than this package has")


def _llada(row: Row) -> Row:
    wanted = {
        "block_type": ("llama",),
        "layer_norm_type": ("rms",),
        "activation_type": ("silu",),
        "rope": (True,),
        "alibi": (False,),
        "include_bias": (False,),
        "include_qkv_bias": (False,),
        "attention_layer_norm": (False,),
        "scale_logits": (False,),
        "input_emb_norm": (False,),
    }
    _must("LLaDA", row, wanted)
    more: Row = {"mlp": row["mlp_hidden_size"]} if row.get("mlp_hidden_size") else {}
    return more


LLADA = Family(
    "LLaDA",
    (
        Line("embedding.weight", ("model.transformer.wte.weight",)),
        Line("blocks.{i}.norm_1.weight", ("model.transformer.blocks.{i}.attn_norm.weight",)),
        Line(
            "blocks.{i}.attention.qkv.weight",
            tuple(f"model.transformer.blocks.{{i}}.{kind}_proj.weight" for kind in "qkv"),
            QKV,
        ),
        Line("blocks.{i}.attention.project.weight", ("model.transformer.blocks.{i}.attn_out.weight",)),
        Line("blocks.{i}.norm_2.weight", ("model.transformer.blocks.{i}.ff_norm.weight",)),
        Line(
            "blocks.{i}.mlp.gate_up.weight",
            ("model.transformer.blocks.{i}.ff_proj.weight", "model.transformer.blocks.{i}.up_proj.weight"),
            STACKED,
        ),
        Line("blocks.{i}.mlp.down.weight", ("model.transformer.blocks.{i}.ff_out.weight",)),
        Line("norm.weight", ("model.transformer.ln_f.weight",)),
        Line("output.weight", ("model.transformer.ff_out.weight",)),
    ),
    config={"flavour": "llama", "causal": False, "mask_id": 126_336, "rotary_base": 5e5},
    fits=lambda c: (
        type(c) is TransformerConfig
        and (c.flavour, c.causal, c.rotary_scaling, c.rotary_dtype, c.shifted, c.qkv_bias, c.mask < c.vocab)
        == ("llama", False, None, "float32", False, False, True)
    ),
    requires="flavour llama, bidirectional, a mask within the vocabulary, no biases, an unscaled rotary_base",
    mark="model.transformer.blocks.0.attn_out.weight",
    settings={
        "layers": ("n_layers",),
        "heads": ("n_heads",),
        "kv_heads": ("n_kv_heads",),
        "width": ("d_model",),
        "mlp": ("mlp_hidden_size",),
        "mask_id": ("mask_token_id",),
        "norm_eps": ("rms_norm_eps",),
        "rotary_base": ("rope_theta",),
        "tied": ("weight_tying",),
    },
    more=_llada,
    constants=lambda c: {
        "model_type": "llada",
        "vocab_size": c.vocab,
        "embedding_size": c.vocab,
        "block_type": "llama",
        "layer_norm_type": "rms",
        "activation_type": "silu",
        "rope": True,
        "rope_full_precision": True,
        "include_bias": False,
        "include_qkv_bias": False,
    },
    kinds=("llada",),
    length=("max_sequence_length", 4096),
    heads={(32, 4096): 32},
    url="https://github.com/ML-GSAI/LLaDA",
)


def _rope(name: str, row: Row) -> Row:
    """Base and scaling of the rotary angles, as older and newer configurations have them, where they do."""
    rope = row.get("rope_parameters") or row.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    base = rope.get("rope_theta", row.get("rope_theta"))
    more: Row = {} if base is None else {"rotary_base": base}
    if kind == "llama3":
        names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
        return {**more, "rotary_scaling": tuple(float(rope[each]) for each in names)}
    if kind == "linear":
        return {**more, "rotary_scaling": (float(rope["factor"]),)}
    if kind not in ("default", None):
        raise ValueError(f"{name} with rotary scaling {kind!r}: only llama3 and linear are known")
    return more


def _hugging_face(row: Row) -> Row:
    name = str(row.get("model_type", "Llama"))
    _must(name, row, {"hidden_act": ("silu",), "mlp_bias": (False,), "partial_rotary_factor": (1, 1.0)})
    heads, width = row.get("num_attention_heads"), row.get("hidden_size")
    if heads and width and row.get("head_dim") not in (None, width // heads):
        raise ValueError(
            f"{name} with head_dim {row['head_dim']}: only {width // heads} = hidden_size / heads is known"
        )
    window, length = row.get("sliding_window"), row.get("max_position_embeddings")
    if row.get("use_sliding_window", name == "mistral") and window is not None and (length or math.inf) > window:
        told = f'give --config FILE (config=) with "max_position_embeddings": {window}'
        raise ValueError(f"{name} with sliding_window {window}, which this package has not: to stay inside it, {told}")
    return _rope(name, row)


def _rope_of(config: Config) -> Row:
    """The newer spelling beside the older one: transformers reads either."""
    assert isinstance(config, TransformerConfig)
    rope: Row = {"rope_theta": config.rotary_base}
    match config.rotary_scaling:
        case (factor,):
            return {**rope, "rope_scaling": {"rope_type": "linear", "factor": factor}}
        case (factor, low, high, length):
            scaling = {"rope_type": "llama3", "factor": factor, "low_freq_factor": low, "high_freq_factor": high}
            return {**rope, "rope_scaling": {**scaling, "original_max_position_embeddings": int(length)}}
    return {**rope, "rope_scaling": None}


def _kind_of(config: Config) -> Row:
    biased = isinstance(config, TransformerConfig) and config.qkv_bias
    kind, cls = ("qwen2", "Qwen2ForCausalLM") if biased else ("llama", "LlamaForCausalLM")
    return {"model_type": kind, "architectures": [cls], "vocab_size": config.vocab, "hidden_act": "silu"}


HF_LINES = (
    Line("embedding.weight", ("model.embed_tokens.weight",)),
    Line("blocks.{i}.norm_1.weight", ("model.layers.{i}.input_layernorm.weight",)),
    *(
        Line(
            f"blocks.{{i}}.attention.qkv.{part}",
            tuple(f"model.layers.{{i}}.self_attn.{kind}_proj.{part}" for kind in "qkv"),
            QKV,
        )
        for part in ("weight", "bias")
    ),
    Line("blocks.{i}.attention.project.weight", ("model.layers.{i}.self_attn.o_proj.weight",)),
    Line("blocks.{i}.norm_2.weight", ("model.layers.{i}.post_attention_layernorm.weight",)),
    Line(
        "blocks.{i}.mlp.gate_up.weight",
        ("model.layers.{i}.mlp.gate_proj.weight", "model.layers.{i}.mlp.up_proj.weight"),
        STACKED,
    ),
    Line("blocks.{i}.mlp.down.weight", ("model.layers.{i}.mlp.down_proj.weight",)),
    Line("norm.weight", ("model.norm.weight",), SAME),
    Line("output.weight", ("lm_head.weight",)),
)
HF_SETTINGS = {
    "layers": ("num_hidden_layers",),
    "heads": ("num_attention_heads",),
    "kv_heads": ("num_key_value_heads",),
    "width": ("hidden_size",),
    "mlp": ("intermediate_size",),
    "norm_eps": ("rms_norm_eps",),
    "tied": ("tie_word_embeddings",),
}

LLAMA = Family(
    "Llama",
    HF_LINES,
    config={"flavour": "llama", "causal": True, "norm_eps": 1e-6},
    fits=lambda c: type(c) is TransformerConfig and (c.flavour, c.causal, c.rotary_dtype) == ("llama", True, "float32"),
    requires="flavour llama, causal, rotary tables in float32",
    mark="model.layers.0.self_attn.q_proj.weight",
    settings=HF_SETTINGS,
    more=_hugging_face,
    constants=lambda c: {**_kind_of(c), **_rope_of(c)},
    kinds=("llama", "mistral", "qwen2"),
    url="https://github.com/huggingface/transformers",
)

DREAM = Family(
    "Dream",
    HF_LINES,
    config={"flavour": "llama", "causal": False, "shifted": True, "mask_id": 151_666, "norm_eps": 1e-6}
    | {"rotary_base": 1e6},
    fits=lambda c: (
        type(c) is TransformerConfig
        and (c.flavour, c.causal, c.shifted, c.rotary_dtype, c.mask < c.vocab)
        == ("llama", False, True, "float32", True)
    ),
    requires="flavour llama, bidirectional, shifted, a mask within the vocabulary, rotary tables in float32",
    tokenizer=("Qwen/Qwen2.5-7B", 152_064),
    mark="model.layers.0.self_attn.q_proj.bias",
    settings=HF_SETTINGS | {"mask_id": ("mask_token_id",)},
    more=_hugging_face,
    constants=lambda c: {**_rope_of(c), "model_type": "Dream", "vocab_size": c.vocab, "hidden_act": "silu"},
    kinds=("Dream", "dream"),
    url="https://github.com/DreamLM/Dream",
)

FAMILIES = (RADD, MDLM, SEDD, SMDM, LLADA, LLAMA, DREAM)
