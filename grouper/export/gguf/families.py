"""Families that llama.cpp's `deci` architecture can represent: Llama's computation, with head counts per layer."""

FAMILIES = ("llama", "mistral", "qwen2")
