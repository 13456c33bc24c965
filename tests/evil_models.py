"""Models whose files name code of their own, which writes a file when it runs, and an answer to everything asked."""

import io
import json
from pathlib import Path

import pytest

CODE = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

Path({mark!r}).write_text(__name__)

class Config(LlamaConfig): pass
class Model(LlamaForCausalLM): pass
class Tokenizer(PreTrainedTokenizerFast): pass
def generate(model, **given): pass
"""
EVIL = {
    "AutoConfig": "evil.Config", "AutoModel": "evil.Model", "AutoModelForCausalLM": "evil.Model",
    "AutoTokenizer": ["evil.Tokenizer", "evil.Tokenizer"], "AutoProcessor": "evil.Tokenizer",
    "AutoImageProcessor": "evil.Tokenizer", "AutoFeatureExtractor": "evil.Tokenizer",
}  # fmt: skip
NAMED = {"auto_map": EVIL, "custom_pipelines": {"text-generation": {"impl": "evil.Model", "pt": []}}}
NAMED_SO = {**NAMED, "custom_generate": "evil", "trust_remote_code": True}
CONFIGURATIONS = (
    "config.json", "tokenizer_config.json", "generation_config.json", "preprocessor_config.json",
    "processor_config.json", "1_Pooling/config.json",
)  # fmt: skip


def add_code(folder: Path, **changed: dict) -> Path:
    """Let every configuration in the folder name code that lies beside it. changed: further fields of
    tokenizer_config.json (tokenizer) or config.json (config). Returns the file that this code would write."""
    mark = folder.parent / f"{folder.name}-ran"
    for place in ("evil.py", "modeling_ragged.py", "custom_generate/generate.py", "1_Pooling/evil.py"):
        (folder / place).parent.mkdir(exist_ok=True)
        (folder / place).write_text(CODE.format(mark=str(mark)))
    for file in CONFIGURATIONS:
        path = folder / file
        data = json.loads(path.read_text()) if path.is_file() else {}
        more = changed.get(file.partition("_")[0].removesuffix(".json"), {})
        path.write_text(json.dumps({**data, **NAMED_SO, **more}))
    return mark


@pytest.fixture
def answers(monkeypatch):
    """Standard input that says yes. `answers.tell()` is 0 as long as nobody asked."""
    stream = io.StringIO("y\n" * 20)
    monkeypatch.setattr("sys.stdin", stream)
    return stream
