"""One line an encoder, with a decoder or without: a tiny random model of the real transformers class."""

from pathlib import Path

import torch

from grouper import Architecture, Checkpoint
from grouper.model.random_inputs import answer, random_inputs

COMMON = {"vocab_size": 199, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
BERT = {
    **COMMON, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 8,
    "max_position_embeddings": 64,
}  # fmt: skip
VIT = {**BERT, "image_size": 16, "patch_size": 4, "num_labels": 5}
T5 = {
    **COMMON, "d_model": 64, "d_kv": 16, "d_ff": 96, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 8,
    "decoder_start_token_id": 2, "dropout_rate": 0.0,
}  # fmt: skip
BART = {
    **COMMON, "d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 8,
    "decoder_attention_heads": 8, "encoder_ffn_dim": 96, "decoder_ffn_dim": 96, "max_position_embeddings": 64,
    "decoder_start_token_id": 2, "forced_eos_token_id": None, "dropout": 0.0, "num_labels": 3,
}  # fmt: skip
SAMPLES = {  # family, its configuration, the class that is saved
    "bert": ("bert", BERT, "BertForMaskedLM"),
    "bert-bare": ("bert", BERT, "BertModel"),
    "bert-classifier": ("bert", {**BERT, "num_labels": 3}, "BertForSequenceClassification"),
    "roberta": ("roberta", {**BERT, "max_position_embeddings": 67}, "RobertaForMaskedLM"),
    "distilbert": (
        "distilbert",
        {**COMMON, "dim": 64, "hidden_dim": 96, "n_layers": 2, "n_heads": 8, "max_position_embeddings": 64},
        "DistilBertForMaskedLM",
    ),
    "vit": ("vit", VIT, "ViTForImageClassification"),
    "vit-bare": ("vit", {**VIT, "qkv_bias": False}, "ViTModel"),
    "deit": ("deit", VIT, "DeiTForImageClassification"),
    "t5": ("t5", T5, "T5ForConditionalGeneration"),
    "t5-uneven": ("t5", {**T5, "num_decoder_layers": 1, "feed_forward_proj": "gated-gelu"}, "T5ForConditionalGeneration"),
    "mt5": ("mt5", T5, "MT5ForConditionalGeneration"),
    "bart": ("bart", BART, "BartForConditionalGeneration"),
    "mbart": ("mbart", {**BART, "decoder_layers": 1}, "MBartForConditionalGeneration"),
    "whisper": (
        "whisper",
        {
            **BART, "num_mel_bins": 8, "max_source_positions": 24, "max_target_positions": 64,
            "suppress_tokens": None, "begin_suppress_tokens": None,
        },
        "WhisperForConditionalGeneration",
    ),
    "marian": ("marian", BART, "MarianMTModel"),
}  # fmt: skip


def make(folder: Path, family: str, options: dict, saved: str) -> Path:
    """Random weights large enough that heads matter, and gains and biases that are not trivial."""
    import transformers

    torch.manual_seed(0)
    model = getattr(transformers, saved)(transformers.AutoConfig.for_model(family, **options))
    for name, parameter in model.named_parameters():
        if "embed_positions" in name and not parameter.requires_grad:  # sinusoids, which are not kept
            continue
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, mean=float(parameter.detach().mean()), std=0.2)
        else:
            torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    model.save_pretrained(folder)
    return folder


def answers(folder: Path, saved: str | None = None, **options) -> torch.Tensor:
    """Of two random examples, in float64. saved: the class, where the folder names none that transformers has."""
    import transformers

    from grouper.model.auto import auto_class

    checkpoint = Checkpoint.open(folder)
    auto = checkpoint.config.get("auto_map")
    if auto:
        name = next(n for n, c in auto.items() if c.endswith(checkpoint.config["architectures"][0]))
    else:
        name = auto_class(checkpoint.config)
    load = getattr(transformers, saved or name).from_pretrained
    model = load(folder, dtype=torch.float64, trust_remote_code=True, **options).eval()
    config = {**checkpoint.config, "model_type": checkpoint.config["model_type"].removeprefix("grouper_ragged_")}
    with torch.inference_mode():
        return answer(model(**random_inputs(model, Architecture.of(config), 24)))
