"""The README.md of an exported model."""

from grouper.layout import HeadLayout

ENGINES = {  # what runs each class; bench/engines prints the matrix
    "stock": ["transformers", "vLLM", "llama.cpp"],
    "padded": ["transformers", "vLLM", "llama.cpp"],
    "ragged": ["transformers 5 with trust_remote_code", "vLLM with trust_remote_code"],
}


def model_card(base_model: str, layout: HeadLayout, facts: dict, exported: dict) -> str:
    """Markdown: what was done, what it saves, how to load it."""
    before, after = exported["kv_bytes_per_token"]
    remote = ", trust_remote_code=True" if exported["deploy"] == "ragged" else ""
    counts = "/".join(sorted(set(layout.kv_heads), key=int, reverse=True))
    method = facts.get("method", "hand")
    rows = "\n".join(f"| {i} | {layer.kv_heads} | {', '.join(map(str, layer.k.sizes))} |" for i, layer in enumerate(layout.layers))
    tags = "base_model: " + base_model + "\n" if base_model.count("/") == 1 else ""
    return f"""---
{tags}library_name: transformers
tags:
- grouped-query-attention
- kv-cache
---

# {base_model}, regrouped

{base_model} with {counts} KV heads a layer instead of {layout.original_kv_heads}: {after:,} bytes of KV cache per token
in bfloat16 instead of {before:,} ({layout.kv_ratio:.1%}). Heads were grouped by `{method}` and merged by `{facts["merge"]}`.
Made with Grouper (`pip install kv-grouper`).

```python
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("this folder or repository"{remote})
```

| layer | KV heads | query heads per KV head |
| --- | --- | --- |
{rows}
"""
