"""Decoder families with an entry, and the reasons why others are not supported.

A type without an entry is derived from its class, and proved (grouper/families/derived). An entry is for what that
cannot find: classes that call no kernel, exports as another class, names of models for people.
"""

from functools import partial

from grouper.families.encoders import ENCODERS
from grouper.families.family import DIVIDES, OWN, Family
from grouper.families.storage import Fused, Separate

QKV = Fused("self_attention.query_key_value", "self_attention.dense", per_group=True)
# Families with a norm before attention and one after it.
sandwich = partial(Family, adds="post_attention_layernorm", norm_offset=1.0, head_dim=256)

FAMILIES = {
    family.model_type: family
    for family in (
        Family(
            "llama", "Llama 1-3, Code Llama, Vicuna, Yi, DeepSeek-LLM, SmolLM 1-2, Falcon 3", "Llama", padded="mistral",
        ),
        Family("mistral", "Mistral 7B, Nemo, Small", "Mistral", padded=OWN),
        Family("mixtral", "Mixtral", "Mixtral", padded=OWN),
        Family("qwen2", "Qwen1.5, Qwen2, Qwen2.5", "Qwen2", padded="llama"),
        Family("qwen2_moe", "Qwen1.5-MoE, Qwen2-MoE", "Qwen2Moe", padded=OWN),
        Family("qwen3", "Qwen3", "Qwen3", qk_norm="head", head_dim=128, padded=OWN),
        Family("qwen3_moe", "Qwen3-MoE", "Qwen3Moe", qk_norm="head", padded=OWN),
        Family("gemma", "Gemma 1", "Gemma", norm_offset=1.0, head_dim=256, padded=OWN),
        sandwich("gemma2", "Gemma 2", "Gemma2", padded=DIVIDES),
        sandwich(
            "gemma3_text", "Gemma 3", "Gemma3", qk_norm="head", padded=DIVIDES,
            model_class="Gemma3TextModel", config_class="Gemma3TextConfig",
        ),
        Family("olmo", "OLMo 1", "Olmo", padded=OWN, approximate="clip_qkv"),
        Family("olmo2", "OLMo 2", "Olmo2", norm=(), adds="post_attention_layernorm", qk_norm="all"),
        Family("olmo3", "OLMo 3", "Olmo3", norm=(), adds="post_attention_layernorm", qk_norm="all"),
        Family("olmoe", "OLMoE", "Olmoe", qk_norm="all", approximate="clip_qkv"),
        Family("gpt_oss", "gpt-oss (dequantised)", "GptOss", sinks="self_attn.sinks", head_dim=64, padded=OWN),
        Family("stablelm", "StableLM 2, Zephyr 3B", "StableLm", rotary="partial_rotary_factor"),
        Family("starcoder2", "StarCoder2", "Starcoder2", padded=OWN),
        Family("granite", "Granite 3", "Granite", padded=OWN),
        Family("smollm3", "SmolLM3", "SmolLM3", padded=OWN),
        Family("cohere", "Command R, Aya 23", "Cohere", rope="interleaved", padded=OWN),
        Family(
            "phi", "Phi-1, Phi-1.5, Phi-2", "Phi", storage=Separate(o="self_attn.dense"),
            rotary="partial_rotary_factor", padded=OWN,
        ),
        Family(
            "phi3", "Phi-3, Phi-3.5, Phi-4", "Phi3", storage=Fused("self_attn.qkv_proj", "self_attn.o_proj"),
            rotary="partial_rotary_factor", padded=OWN,
        ),
        Family(
            "gpt_neox", "GPT-NeoX, Pythia, Dolly 2, RedPajama", "GPTNeoX",
            storage=Fused("attention.query_key_value", "attention.dense", per_group=True),
            rotary="rotary_pct", stock=False, as_phi="use_parallel_residual",
        ),
        Family(
            "gptj", "GPT-J", "GPTJ", layer="h.{layer}.",
            storage=Separate.within("attn", "out_proj"), norm=("ln_1",), rope="interleaved",
            rotary="rotary_dim", stock=False, as_phi="always",
        ),
        Family(
            "falcon", "Falcon 1-2, Falcon RW", "Falcon", layer="h.{layer}.", storage=QKV,
            norm=("input_layernorm", "ln_attn"), stock=False, as_phi="parallel_attn",
        ),
        Family(
            "gpt2", "GPT-2, DialoGPT, Cerebras-GPT", "GPT2", layer="h.{layer}.",
            storage=Fused("attn.c_attn", "attn.c_proj"), norm=("ln_1",), transposed=True,
            position="learned", stock=False, head_class="GPT2LMHeadModel",
        ),
        Family(
            "opt", "OPT, Galactica", "OPT", storage=Separate.within("self_attn", "out_proj"),
            norm=("self_attn_layer_norm",), position="learned", stock=False,
        ),
        Family(
            "bloom", "BLOOM, BLOOMZ", "Bloom", layer="h.{layer}.", storage=QKV, position="alibi",
            stock=False,
        ),
        Family(
            "mpt", "MPT", "Mpt", layer="blocks.{layer}.",
            storage=Fused("attn.Wqkv", "attn.out_proj"), norm=("norm_1",),
            position="alibi", stock=False, approximate="clip_qkv",
        ),
        *ENCODERS,
    )
}  # fmt: skip

MLA = "its keys and values are compressed together (MLA): there are no KV heads to group"
SHARED_KV = "some of its layers use other layers' KV heads"
OTHER_HEADS = "its values pass a norm, and its layers of full attention have heads of another size"
LINEAR = "it mixes attention with linear attention or state-space layers, which have no KV cache"
UNLIKE = "its encoder and its decoder may have heads of different numbers and sizes"
REFUSED = {
    **dict.fromkeys(("deepseek_v2", "deepseek_v3", "minicpm3", "kimi_k2", "longcat_flash", "glm4_moe_lite"), MLA),
    **dict.fromkeys(("gemma3n_text", "gemma3n"), SHARED_KV),
    **dict.fromkeys(("gemma4", "gemma4_text"), OTHER_HEADS),
    **dict.fromkeys(
        (
            "mamba", "mamba2", "falcon_mamba", "falcon_h1", "jamba", "bamba", "zamba", "zamba2", "rwkv",
            "recurrent_gemma", "qwen3_next", "qwen3_5",
            "qwen3_5_moe", "lfm2", "granitemoehybrid", "nemotron_h", "minimax", "kimi_linear", "olmo_hybrid",
        ), LINEAR,
    ),
    **dict.fromkeys(("t5gemma", "t5gemma2"), UNLIKE),
    "gpt_bigcode": "it is multi-query already: there is nothing left to group",
}  # fmt: skip
