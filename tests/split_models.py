"""Tensor-parallel ranks as a program: `python split_models.py TOKENS FOLDER...` under the launcher's variables writes
FOLDER/split.pt, the logits of a model that transformers splits over the ranks."""

import sys
from pathlib import Path

import torch
from torch import distributed
from transformers import AutoModelForCausalLM


def main(tokens: Path, *folders: str) -> None:
    distributed.init_process_group("gloo")
    for folder in folders:
        model = AutoModelForCausalLM.from_pretrained(
            folder, tp_plan="auto", dtype=torch.float32, trust_remote_code=False
        ).eval()
        own = model.get_parameter("model.layers.0.self_attn.q_proj.weight").to_local()
        assert len(own) * distributed.get_world_size() == model.config.num_attention_heads * model.config.head_dim
        with torch.inference_mode():
            logits = model(torch.load(tokens)).logits
        if distributed.get_rank() == 0:
            torch.save(logits, Path(folder) / "split.pt")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
