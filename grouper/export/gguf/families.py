"""The families that llama.cpp's `deci` architecture holds: Llama's computation, with head counts per layer."""

FAMILIES = ("llama", "mistral", "qwen2")
