"""Greedy tokens by transformers: python run_transformers.py FOLDER "1 2 3" COUNT; ATTENTION names its attention"""

import os
import sys

import torch
from transformers import AutoModelForCausalLM

folder, prompt, count = sys.argv[1], [int(t) for t in sys.argv[2].split()], int(sys.argv[3])
attention = {"attn_implementation": os.environ["ATTENTION"]} if "ATTENTION" in os.environ else {}
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=True, **attention).eval()
tokens = torch.tensor([prompt])
with torch.inference_mode():
    out = model.generate(
        tokens,
        attention_mask=torch.ones_like(tokens),
        max_new_tokens=count,
        min_new_tokens=count,
        do_sample=False,
        pad_token_id=0,
    )
print("TOKENS", *out[0, len(prompt) :].tolist())
