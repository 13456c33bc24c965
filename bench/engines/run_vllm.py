"""Greedy tokens by vLLM: python run_vllm.py FOLDER "1 2 3" COUNT"""

import sys

from vllm import LLM, SamplingParams

if __name__ == "__main__":
    folder, prompt, count = sys.argv[1], [int(t) for t in sys.argv[2].split()], int(sys.argv[3])
    llm = LLM(
        folder, skip_tokenizer_init=True, enforce_eager=True, dtype="float32", trust_remote_code=True, max_model_len=128
    )
    sampling = SamplingParams(temperature=0, max_tokens=count, min_tokens=count, ignore_eos=True, detokenize=False)
    print("TOKENS", *llm.generate({"prompt_token_ids": prompt}, sampling)[0].outputs[0].token_ids)
