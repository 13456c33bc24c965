"""Recordings with their transcripts, for Whisper."""

import os
from pathlib import Path

import numpy as np

from grouper.calibration.source import TextSource
from grouper.calibration.text import check_known, load_tokenizer
from grouper.checkpoint.checkpoint import Checkpoint
from grouper.errors import GrouperError, as_one_line
from grouper.families.configuration import setting
from grouper.model.loading import load
from grouper.running.batch import NOT_ASKED, Batch, padded


def read_sounds(checkpoint: Checkpoint, source: TextSource, pairs: list[tuple[str, str]], window: int) -> Batch:
    """Recordings and transcripts as a batch. pairs: the name of a .wav file in or below the folder of the text file,
    and its transcript. Raises GrouperError."""
    if not source.text:
        raise GrouperError("recordings lie beside a file that names them: give `text=FILE`")
    with as_one_line(f"{checkpoint.name} has no feature extractor that transformers can load"):
        extractor = load("AutoFeatureExtractor", checkpoint.local().folder)
    tokenizer, folder = load_tokenizer(checkpoint), Path(os.path.expanduser(source.text)).parent
    sounds = [samples_of(folder, name, extractor.sampling_rate) for name, _ in pairs]
    longest = extractor.chunk_length * extractor.sampling_rate
    for sound, (name, _) in zip(sounds, pairs):
        if not 0 < len(sound) <= longest or not np.isfinite(sound).all():
            raise GrouperError(f"{name} is empty, damaged or longer than {extractor.chunk_length} s: cut or remove it")
    features = extractor(sounds, sampling_rate=extractor.sampling_rate, return_tensors="pt")["input_features"]
    begin = setting(checkpoint.config, "decoder_start_token_id", None)
    rows = [tokenizer(words, truncation=True, max_length=window, verbose=False)["input_ids"] for _, words in pairs]
    rows = [row[1:] if row[:1] == [begin] else row for row in rows]  # the model adds this token itself
    check_known(checkpoint, padded(rows, 0))
    positions = setting(checkpoint.config, "max_source_positions")
    labels = padded(rows, NOT_ASKED)
    return Batch({"input_features": features}, labels, positions + labels.shape[1])


def samples_of(folder: Path, name: str, rate: int) -> np.ndarray:
    """Samples [samples] in float32 from -1 to 1, both channels averaged, at `rate` samples per second."""
    from scipy.io import wavfile
    from scipy.signal import resample_poly

    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise GrouperError(f"{name} is outside the folder of its text: refused")
    with as_one_line(f"cannot read {path} as a .wav file"):
        own, samples = wavfile.read(path)
    if samples.dtype.kind == "i":
        samples = samples / -float(np.iinfo(samples.dtype).min)
    elif samples.dtype.kind == "u":  # 8 bits
        samples = samples / 128 - 1
    samples = samples.mean(1) if samples.ndim > 1 else samples
    return (samples if own == rate else resample_poly(samples, rate, own)).astype(np.float32)
