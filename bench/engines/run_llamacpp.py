"""Greedy tokens by llama.cpp: python run_llamacpp.py FOLDER "1 2 3" COUNT [TEXT]; with TEXT, also the ids that its
tokenizer gives for it."""

import json
import sys
import urllib.request
from pathlib import Path

import xllamacpp

folder, prompt, count = Path(sys.argv[1]), [int(t) for t in sys.argv[2].split()], int(sys.argv[3])
params = xllamacpp.CommonParams()
params.model.path = str(folder / "model.gguf")
params.n_ctx, params.warmup, params.n_parallel = 256, False, 1
params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
server = xllamacpp.Server(params)


def ask(path: str, **body) -> dict:
    request = urllib.request.Request(
        f"{server.listening_address}/{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    return json.loads(urllib.request.urlopen(request, timeout=120).read())


done = ask(
    "completion",
    prompt=prompt,
    n_predict=count,
    temperature=0,
    top_k=1,
    return_tokens=True,
    ignore_eos=True,
    cache_prompt=False,
)
print("TOKENS", *done["tokens"], flush=True)
if len(sys.argv) > 4:
    print("TEXT", *ask("tokenize", content=sys.argv[4])["tokens"], flush=True)
