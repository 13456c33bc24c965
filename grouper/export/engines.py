"""Which engines run an export: what bench/engines/matrix.py and bench/engines/families.py found, nothing more."""

from grouper.export.gguf import write as gguf
from grouper.export.hf import ragged
from grouper.model.architecture import Architecture

REMOTE = "with trust_remote_code"
NOT_IN_TRANSFORMERS_4 = ("qwen2_moe", "olmoe", "stablelm")  # their classes there leave no room for a ragged model
_VLLM = (
    "llama", "mistral", "mixtral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "olmo", "olmo2", "starcoder2", "granite", "smollm3",
    "stablelm", "cohere", "phi", "phi3",
)  # fmt: skip
VLLM = {
    "stock": _VLLM,
    "padded": ("llama", "mistral", "qwen3", "gemma", "starcoder2", "granite", "smollm3"),
    "ragged": _VLLM,
}  # by class


def engines(architecture: Architecture, deploy: str) -> list[str]:
    """deploy: the class of the export, or "gguf"."""
    if deploy == "gguf":
        return ["llama.cpp"]
    family = "phi" if architecture.as_phi else architecture.family.model_type
    remote = f" {REMOTE}" if deploy == "ragged" else ""
    found = [f"transformers{remote}"]
    if deploy == "ragged" and family in NOT_IN_TRANSFORMERS_4:
        found = [f"transformers 5{remote}"]
    if (
        family in VLLM[deploy]
        and not architecture.nested
        and not (deploy == "ragged" and ragged.is_plain(architecture))
    ):
        found.append(f"vLLM{remote}")
    if family in gguf.FAMILIES and not architecture.nested:
        found.append("llama.cpp (--format gguf)")
    return found


def loader(architecture: Architecture) -> str:
    """The class of transformers that loads it."""
    return "AutoModelForImageTextToText" if architecture.nested else "AutoModelForCausalLM"
