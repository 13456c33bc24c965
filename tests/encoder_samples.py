"""One line an encoder, with a decoder or without: a tiny random model of the real transformers class."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from family_samples import make_heads_matter
from safetensors.torch import load_file, save_file

from grouper import Architecture, Checkpoint
from grouper.model.auto import auto_class
from grouper.model.dummy_inputs import answer, random_inputs
from grouper.running.batch import NOT_ASKED, Batch

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
    "t5-uneven": (
        "t5", {**T5, "num_decoder_layers": 1, "feed_forward_proj": "gated-gelu"}, "T5ForConditionalGeneration",
    ),
    "mt5": ("mt5", T5, "MT5ForConditionalGeneration"),
    "bart": ("bart", BART, "BartForConditionalGeneration"),
    "mbart": ("mbart", {**BART, "decoder_layers": 1}, "MBartForConditionalGeneration"),
    "whisper": (
        "whisper",
        {
            **BART, "num_mel_bins": 8, "max_source_positions": 50, "max_target_positions": 64,
            "suppress_tokens": None, "begin_suppress_tokens": None,
        },
        "WhisperForConditionalGeneration",
    ),
    "marian": ("marian", BART, "MarianMTModel"),
}  # fmt: skip


def make(folder: Path, family: str, options: dict, saved: str) -> Path:
    """Of random weights."""
    import transformers

    torch.manual_seed(0)
    model = getattr(transformers, saved)(transformers.AutoConfig.for_model(family, **options))
    make_heads_matter(model)
    model.save_pretrained(folder)
    return folder


def original_config(folder: Path) -> dict:
    """As its original's, of an exported folder."""
    config = json.loads((folder / "config.json").read_text())
    return {**config, "model_type": config["model_type"].removeprefix("grouper_ragged_")}


def architecture_of(folder: Path) -> Architecture:
    return Architecture.of(original_config(folder))


def load(folder: Path, auto: str | None = None, **options) -> torch.nn.Module:
    """auto: the Auto class, else that of the class that was saved."""
    import transformers

    config = json.loads((folder / "config.json").read_text())
    names = config.get("auto_map", {})
    saved = (n for n, c in names.items() if c.endswith(config["architectures"][0]))
    auto = auto or next(saved, None) or auto_class(config)
    options = {"dtype": torch.float64, **options}
    return getattr(transformers, auto).from_pretrained(folder, trust_remote_code=True, **options).eval()


def answers(folder: Path, auto: str | None = None, **options) -> torch.Tensor:
    """Of two random examples, in float64."""
    model = load(folder, auto, **options)
    with torch.inference_mode():
        return answer(model(**random_inputs(model, architecture_of(folder), 24)))


def examples(folder: Path, n: int = 6, tokens: int = 12) -> Batch:
    """Random ones, some shorter than others where the model takes text."""
    a, config = architecture_of(folder), original_config(folder)
    generator = torch.Generator().manual_seed(5)

    def ids() -> torch.Tensor:
        return torch.randint(3, 199, (n, tokens), generator=generator)

    model_type = config["model_type"]
    if model_type in ("vit", "deit"):
        pixels = torch.randn(n, 3, 16, 16, generator=generator)
        return Batch({"pixel_values": pixels}, torch.randint(0, 5, (n,), generator=generator), 17)
    lengths = torch.randint(tokens // 2, tokens + 1, (n,), generator=generator)
    mask = (torch.arange(tokens) < lengths[:, None]).long()
    labels = torch.where(torch.arange(tokens) < lengths.flip(0)[:, None], ids(), NOT_ASKED)
    if model_type == "whisper":
        return Batch({"input_features": torch.randn(n, 8, 100, generator=generator)}, labels, 50 + tokens)
    inputs = {"input_ids": torch.where(mask.bool(), ids(), 2), "attention_mask": mask}
    if a.family.parts:
        return Batch(inputs, labels, 2 * tokens)
    masked = torch.where((torch.arange(tokens) % 3 == 1) & mask.bool(), inputs["input_ids"], NOT_ASKED)
    asked = auto_class(config) == "AutoModelForMaskedLM"
    return Batch(inputs, masked if asked else None, tokens)


def with_heads(folder: Path, target: Path, change: Callable[[int, torch.Tensor], torch.Tensor]) -> Path:
    """A copy of the model, of its own class, with change(layer, heads [H, d, ...]) applied to K and V heads."""
    checkpoint, a = Checkpoint.open(folder), architecture_of(folder)
    shutil.copytree(folder, target)
    tensors = load_file(target / "model.safetensors")
    for layer in range(a.layers):
        attention = a.read(checkpoint, layer)
        for name in ("k", "v", "k_bias", "v_bias"):
            if getattr(attention, name) is not None:
                setattr(attention, name, change(layer, getattr(attention, name)))
        for name, tensor in a.tensors(a.prefix(checkpoint, layer), attention, layer):
            tensors[name] = tensor.contiguous()
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return target


def with_reader(folder: Path, target: Path) -> Path:
    """A copy of the model with what turns files into its inputs: a tokenizer of characters, a processor of pictures, an
    extractor of features of sounds."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, ViTImageProcessor, WhisperFeatureExtractor

    shutil.copytree(folder, target)
    config = original_config(folder)
    if config["model_type"] in ("vit", "deit"):
        (target / "preprocessor_config.json").write_text(json.dumps({
            "image_processor_type": ViTImageProcessor.__name__, "size": {"height": 16, "width": 16}, "do_resize": True,
            "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": [0.5] * 3,
            "image_std": [0.5] * 3,
        }))  # fmt: skip
        return target
    if config["model_type"] == "whisper":
        WhisperFeatureExtractor(feature_size=8, chunk_length=1, n_fft=64).save_pretrained(target)
    special = ["<bos>", "</s>", "<pad>", "<mask>", "<unk>"]
    ids = {token: i for i, token in enumerate([*special, *map(chr, range(32, 127))])}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    ends = [("<bos>", 0), ("</s>", 1)]
    begun = "$A </s>" if architecture_of(folder).family.parts else "<bos> $A </s>"
    tokenizer.post_processor = processors.TemplateProcessing(begun, special_tokens=ends)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, cls_token="<bos>", sep_token="</s>", eos_token="</s>", pad_token="<pad>",
        mask_token="<mask>", unk_token="<unk>",
    ).save_pretrained(target)  # fmt: skip
    return target


def files_for(kind: str, folder: Path, seed: int = 0) -> dict[str, str]:
    """The options that name a source of this kind, with its files in `folder`."""
    import numpy as np

    rng = np.random.default_rng(seed)
    folder.mkdir()
    if kind == "pictures":
        from PIL import Image

        for number in range(30):
            place = folder / f"LABEL_{number % 5}"
            place.mkdir(exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (20, 18, 3), dtype=np.uint8)).save(place / f"{number}.png")
        return {"images": str(folder)}
    words = ["".join(chr(97 + c) for c in rng.integers(0, 26, rng.integers(2, 9))) for _ in range(40)]
    lines = [" ".join(rng.choice(words, rng.integers(2, 5))) for _ in range(40)]
    path = folder / "source.txt"
    if kind == "text":
        path.write_text("\n".join(lines * 4))
    elif kind == "pairs":
        path.write_text("\n".join(f"{line}\t{line[::-1]}" for line in lines))
    else:
        from scipy.io import wavfile

        for number in range(6):
            noise = rng.integers(-3000, 3000, (8000, 2), dtype=np.int16)
            wavfile.write(folder / f"{number}.wav", 8000, noise)
        path = folder / "source.jsonl"
        path.write_text("\n".join(json.dumps({"source": f"{i}.wav", "target": lines[i]}) for i in range(6)))
    return {"text": str(path)}
