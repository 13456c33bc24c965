"""The methods that were published with vision transformers, compared on one: accuracy before and after the same
training.

    python bench/vit.py --data FOLDER --json vit.json     # one GPU, under ten minutes

FOLDER holds Fashion-MNIST's four .gz files, as Debian's package dataset-fashion-mnist puts them into
/usr/share/datasets/fashion-mnist. A ViT of 6 layers of 8 heads is trained on the 60,000 pictures, converted to a half
and to a quarter of its KV heads, and every conversion is trained for the same number of steps, by its own method.
Accuracy is on the 10,000 test pictures, which nothing else sees; calibration is on pictures of the training set.
"""

import argparse
import gzip
import json
from pathlib import Path

import numpy as np
import torch
from retraining import DEVICE, Conversion, Task, main
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad

from grouper.calibration.source import TextSource

CONVERSIONS = (
    Conversion("GQA", "neighbour"), Conversion("KDGQA", "kdgqa"), Conversion("DGQA", "neighbour", training="dgqa"),
    Conversion("PGQA", "neighbour", training="pgqa"), Conversion("GQKVA", "gqkva"),
    Conversion("spectral, neighbours", "neighbour", "spectral", "distill"),
    Conversion("spectral", "qcqa-ec", "spectral", "distill"),
    Conversion("spectral, refined", "qcqa-ec", "spectral", "distill", refined=True),
)  # fmt: skip
MEAN, STD, EDGE = 0.286, 0.353, 2
CALIBRATED = 1024  # pictures for calibration


def pictures(folder: Path, part: str) -> tuple[Tensor, Tensor]:
    """Pictures [n, 28, 28] uint8 and their labels [n]. part: "train" or "t10k"."""

    def read(name: str, skip: int) -> Tensor:
        unpacked = gzip.decompress((folder / f"{part}-{name}-ubyte.gz").read_bytes())
        return torch.from_numpy(np.frombuffer(unpacked, np.uint8, offset=skip).copy())

    return read("images-idx3", 16).view(-1, 28, 28), read("labels-idx1", 8).long()


def pixels(images: Tensor) -> Tensor:
    """Model inputs [n, 3, 28, 28] from pictures [n, 28, 28] uint8, as the model's processor gives them."""
    return ((images.float() / 255 - MEAN) / STD)[:, None].expand(-1, 3, -1, -1)


def as_folder(images: Tensor, labels: Tensor, folder: Path) -> None:
    """Write the pictures into one folder for each class."""
    from PIL import Image

    for number, (image, label) in enumerate(zip(images, labels)):
        (folder / str(int(label))).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.numpy()).save(folder / str(int(label)) / f"{number:05}.png")


class FashionMnist(Task):
    """Fashion-MNIST; scores are accuracy, in the table in percent."""

    conversions, batch, auto, tokens, scale = CONVERSIONS, 512, "AutoModelForImageClassification", 50 * CALIBRATED, 100

    def __init__(self, folder: Path, tested: int):
        (images, labels), (others, answers) = (pictures(folder, part) for part in ("train", "t10k"))
        self.images, self.labels, self.examples = images.to(DEVICE), labels.to(DEVICE), len(images)
        self.others, self.answers = others[:tested].to(DEVICE), answers[:tested].to(DEVICE)
        self.padded, self.generator = pad(self.images, (EDGE,) * 4), torch.Generator()

    def new_model(self) -> nn.Module:
        from transformers import ViTConfig, ViTForImageClassification

        return ViTForImageClassification(
            ViTConfig(
                hidden_size=256, num_hidden_layers=6, num_attention_heads=8, intermediate_size=512, image_size=28,
                patch_size=4, num_labels=10, hidden_dropout_prob=0.1,
            )
        )  # fmt: skip

    def save(self, model: nn.Module, folder: Path) -> None:
        """Save the model, with a processor that does the same as `pixels`."""
        model.save_pretrained(folder)
        processor = {
            "image_processor_type": "ViTImageProcessor", "size": {"height": 28, "width": 28}, "do_resize": True,
            "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": [MEAN] * 3,
            "image_std": [STD] * 3,
        }  # fmt: skip
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))

    def source(self, folder: Path, seed: int) -> TextSource:
        rows = torch.randperm(self.examples, generator=torch.Generator().manual_seed(seed))[:CALIBRATED]
        as_folder(self.images.cpu()[rows], self.labels.cpu()[rows], folder / "pictures")
        return TextSource(images=str(folder / "pictures"))

    def loss(self, model: nn.Module, rows: Tensor) -> Tensor:
        """Loss on pictures shifted by up to two pixels, half of them mirrored; the same every time for the same
        rows."""
        self.generator.manual_seed(int(rows[0]) * 60_001 + int(rows[-1]))
        x, y = torch.randint(0, 2 * EDGE + 1, (2,), generator=self.generator).tolist()
        mirrored = torch.rand(len(rows), generator=self.generator) < 0.5
        rows, mirrored = rows.to(DEVICE), mirrored.to(DEVICE)
        images = self.padded[rows, y : y + 28, x : x + 28]
        images = torch.where(mirrored[:, None, None], images.flip(-1), images)
        return cross_entropy(model(pixel_values=pixels(images)).logits.float(), self.labels[rows])

    @torch.inference_mode()
    def score(self, model: nn.Module) -> float:
        right = 0
        for part in range(0, len(self.others), 2000):
            got = model(pixel_values=pixels(self.others[part : part + 2000])).logits.argmax(-1)
            right += int((got == self.answers[part : part + 2000]).sum())
        return right / len(self.others)


if __name__ == "__main__":
    options = argparse.ArgumentParser()
    options.add_argument("--data", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    options.add_argument("--pictures", type=int, default=10_000, help="of the test set")
    main(__doc__, lambda args: FashionMnist(args.data, args.pictures), options, steps=6000)
