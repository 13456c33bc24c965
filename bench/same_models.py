"""Tiny random models for bench/same.py, one for each form in which attention is stored, with their tokenizers.

They are made by transformers alone, so that changes of Grouper's code do not change them.
"""

import random
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import torch
import transformers

COMMON = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
MHA = {
    **COMMON, "vocab_size": 4096, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 8, "max_position_embeddings": 256,
}  # fmt: skip
GQA = {**MHA, "num_key_value_heads": 4}
WIDE = {**GQA, "head_dim": 16}
GPT2 = {
    **COMMON, "vocab_size": 4096, "n_layer": 2, "n_head": 8, "n_embd": 64, "n_positions": 256, "attn_pdrop": 0.0,
    "embd_pdrop": 0.0, "resid_pdrop": 0.0,
}  # fmt: skip
OPT = {**MHA, "ffn_dim": 96, "word_embed_proj_dim": 64, "dropout": 0.0}
BERT = {**MHA, "vocab_size": 199, "max_position_embeddings": 64}
T5 = {
    **COMMON, "vocab_size": 199, "d_model": 64, "d_kv": 16, "d_ff": 96, "num_layers": 2, "num_decoder_layers": 2,
    "num_heads": 8, "decoder_start_token_id": 2, "dropout_rate": 0.0,
}  # fmt: skip


@dataclass(frozen=True)
class Sample:
    """A tiny model. family: a model_type, or "demo" for the bundled model. encoder: for models that have one, the class
    that is saved. pairs: whether it reads lines of two texts. thorough: whether to run more than the usual steps."""

    name: str
    family: str
    config: dict = field(default_factory=dict)
    encoder: str | None = None
    pairs: bool = False
    thorough: bool = False


SAMPLES = (
    Sample("separate", "llama", {**MHA, "head_dim": 16}, thorough=True),
    Sample("stacked", "phi3", GQA),
    Sample("per-group", "gpt_neox", {**MHA, "rotary_pct": 0.5, "use_parallel_residual": False}),
    Sample("conv1d", "gpt2", GPT2),
    Sample("norm-per-head", "qwen3", WIDE),
    Sample("norm-across", "olmo2", GQA),
    Sample("sinks", "gpt_oss", {**WIDE, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8}),
    Sample("folded", "gpt_neox", {**MHA, "rotary_pct": 0.5}),
    Sample("learned", "opt", OPT),
    Sample("alibi", "bloom", {**COMMON, "vocab_size": 4096, "n_layer": 2, "n_head": 8, "hidden_size": 64}),
    Sample("moe", "mixtral", {**GQA, "num_local_experts": 4}),
    Sample("bert", "bert", BERT, encoder="BertForMaskedLM"),
    Sample("t5", "t5", T5, encoder="T5ForConditionalGeneration", pairs=True, thorough=True),
    Sample("demo", "demo"),
)


def make(sample: Sample, folder: Path, tokenizer: Path) -> None:
    """Write a model whose heads differ enough to matter. tokenizer: folder of the tokenizer for decoders."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(sample.family, **sample.config)
    if sample.encoder:
        model = getattr(transformers, sample.encoder)(config)
    else:
        model = transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, mean=float(parameter.detach().mean()), std=0.2)
        else:
            torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    model.save_pretrained(folder)
    if sample.encoder:
        character_tokenizer(sample.pairs).save_pretrained(folder)
        return
    for file in tokenizer.glob("tokenizer*"):
        shutil.copyfile(file, folder / file.name)


def character_tokenizer(pairs: bool) -> transformers.PreTrainedTokenizerFast:
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors

    special = ["<bos>", "</s>", "<pad>", "<mask>", "<unk>"]
    ids = {token: i for i, token in enumerate([*special, *map(chr, range(32, 127))])}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    ends = [("<bos>", 0), ("</s>", 1)]
    begun = "$A </s>" if pairs else "<bos> $A </s>"
    tokenizer.post_processor = processors.TemplateProcessing(begun, special_tokens=ends)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, cls_token="<bos>", sep_token="</s>", eos_token="</s>", pad_token="<pad>",
        mask_token="<mask>", unk_token="<unk>",
    )  # fmt: skip


def write_texts(folder: Path) -> None:
    """Write made-up text to calibrate on and other text to measure on: text.txt and other.txt, and as pairs text.tsv
    and other.tsv."""
    for seed, name in enumerate(("text", "other")):
        rng = random.Random(seed)
        words = ["".join(rng.choices("abcdefghijklmnop", k=rng.randint(2, 7))) for _ in range(60)]
        lines = [" ".join(rng.choices(words, k=rng.randint(2, 5))) for _ in range(600)]
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n")
        (folder / f"{name}.tsv").write_text("".join(f"{line}\t{line[::-1]}\n" for line in lines[:60]))
