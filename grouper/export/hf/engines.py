"""Engines that run an exported folder, as found by bench/engines/matrix.py and bench/engines/families.py."""

from grouper.export.gguf.families import FAMILIES as IN_GGUF
from grouper.families.architecture import Architecture

REMOTE = "with trust_remote_code"
NOT_IN_TRANSFORMERS_4 = ("qwen2_moe", "olmoe", "stablelm")  # their classes there cannot hold a ragged model
_VLLM = (
    "llama", "mistral", "mixtral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "olmo", "olmo2", "starcoder2",
    "granite", "smollm3", "stablelm", "cohere", "phi", "phi3",
)  # fmt: skip
_PADDED = ("llama", "mistral", "qwen3", "gemma", "starcoder2", "granite", "smollm3")
VLLM = {"stock": (*_VLLM, "gpt_oss"), "padded": (*_PADDED, "gpt_oss"), "ragged": _VLLM}  # model types by export class


def engines_for(architecture: Architecture, export_class: str) -> list[str]:
    family = "phi" if architecture.as_phi else architecture.family.model_type
    remote = f" {REMOTE}" if export_class == "ragged" else ""
    new = architecture.encodes or (export_class == "ragged" and family in NOT_IN_TRANSFORMERS_4)
    transformers = "transformers 5" if new else "transformers"
    if architecture.family.proved or (architecture.encodes and architecture.family.since != "5.0"):
        transformers = f"transformers from {architecture.family.since} on"
    found = [f"{transformers}{remote}"]
    own_attention = export_class == "ragged" and architecture.needs_own_attention
    if family in VLLM[export_class] and not architecture.nested and not own_attention:
        found.append(f"vLLM{remote}")
    if family in IN_GGUF and not architecture.nested:
        found.append("llama.cpp (--format gguf)")
    return found
