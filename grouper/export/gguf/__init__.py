"""Export to GGUF, a single file for llama.cpp."""
