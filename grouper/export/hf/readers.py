"""Compatibility of config.json with older readers."""


def readable_by_all(config: dict, dtype: str) -> dict:
    """Configuration with additional fields for older readers, which ignore rope_parameters and would decode with the
    wrong RoPE base."""
    config = {k: v for k, v in config.items() if k not in ("_name_or_path", "torch_dtype", "dtype")}
    rope = config.get("rope_parameters") or {}
    if "full_attention" in rope:  # one for each type of layer
        sliding = rope.get("sliding_attention") or {}
        if "rope_theta" in sliding:
            config.setdefault("rope_local_base_freq", sliding["rope_theta"])
        rope = rope["full_attention"]
    if "rope_theta" in rope:
        config.setdefault("rope_theta", rope["rope_theta"])
        if "partial_rotary_factor" in rope:
            neox = config.get("model_type", "").endswith("gpt_neox")
            config.setdefault("rotary_pct" if neox else "partial_rotary_factor", rope["partial_rotary_factor"])
            if neox:
                config.setdefault("rotary_emb_base", rope["rope_theta"])
        scaling = {k: v for k, v in rope.items() if k not in ("rope_theta", "partial_rotary_factor")}
        if scaling.get("rope_type", "default") != "default":
            config.setdefault("rope_scaling", scaling)
    if config.get("model_type", "").endswith("qwen3_moe") and "num_local_experts" in config:
        config.setdefault("num_experts", config["num_local_experts"])
    if isinstance(config.get("text_config"), dict):
        config["text_config"] = readable_by_all(config["text_config"], dtype)
    return {**config, "dtype": dtype, "torch_dtype": dtype}
