"""The methods that were shown on vision transformers, on one: accuracy before and after the same training.

    python bench/vit.py --data FOLDER --json vit.json     # one GPU, under ten minutes

FOLDER holds Fashion-MNIST's four .gz files, as Debian's package dataset-fashion-mnist puts them into
/usr/share/datasets/fashion-mnist. A ViT of 6 layers of 8 heads is trained on the 60,000 pictures, converted to a half
and to a quarter of its KV heads, and every conversion is trained for the same steps, by its own method. Accuracy is on
the 10,000 test pictures, which nothing else sees; calibration is on pictures of the training set.
"""

import argparse
import gzip
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from retraining import Conversion, descend, exported, mean_and_error, passes, searched, trained, written
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
SHARES = {0.5: "half", 0.25: "a quarter"}
MEAN, STD, EDGE = 0.286, 0.353, 2
CALIBRATED = 1024  # pictures


def pictures(folder: Path, part: str) -> tuple[Tensor, Tensor]:
    """[n, 28, 28] uint8 and [n]. part: "train" or "t10k"."""

    def read(name: str, skip: int) -> Tensor:
        unpacked = gzip.decompress((folder / f"{part}-{name}-ubyte.gz").read_bytes())
        return torch.from_numpy(np.frombuffer(unpacked, np.uint8, offset=skip).copy())

    return read("images-idx3", 16).view(-1, 28, 28), read("labels-idx1", 8).long()


def pixels(images: Tensor) -> Tensor:
    """[n, 28, 28] uint8 -> [n, 3, 28, 28], as the model's processor gives them."""
    return ((images.float() / 255 - MEAN) / STD)[:, None].expand(-1, 3, -1, -1)


def new_model():
    from transformers import ViTConfig, ViTForImageClassification

    return ViTForImageClassification(
        ViTConfig(
            hidden_size=256, num_hidden_layers=6, num_attention_heads=8, intermediate_size=512, image_size=28,
            patch_size=4, num_labels=10, hidden_dropout_prob=0.1,
        )
    )  # fmt: skip


def save(model, folder: Path) -> None:
    """With a processor that does what `pixels` does."""
    model.save_pretrained(folder)
    processor = {
        "image_processor_type": "ViTImageProcessor", "size": {"height": 28, "width": 28}, "do_resize": True,
        "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": [MEAN] * 3,
        "image_std": [STD] * 3,
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))


def as_folder(images: Tensor, labels: Tensor, folder: Path) -> None:
    """One folder for each class."""
    from PIL import Image

    for number, (image, label) in enumerate(zip(images, labels)):
        (folder / str(int(label))).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.numpy()).save(folder / str(int(label)) / f"{number:05}.png")


class Task:
    def __init__(self, folder: Path, device: str, tested: int):
        (images, labels), (others, answers) = (pictures(folder, part) for part in ("train", "t10k"))
        self.images, self.labels = images.to(device), labels.to(device)
        self.others, self.answers = others[:tested].to(device), answers[:tested].to(device)
        self.padded, self.generator = pad(self.images, (EDGE,) * 4), torch.Generator()

    def loss(self, model: nn.Module, rows: Tensor) -> Tensor:
        """On pictures shifted by up to two pixels, half of them mirrored; the same every time these rows come."""
        self.generator.manual_seed(int(rows[0]) * 60_001 + int(rows[-1]))
        x, y = torch.randint(0, 2 * EDGE + 1, (2,), generator=self.generator).tolist()
        mirrored = torch.rand(len(rows), generator=self.generator) < 0.5
        rows, mirrored = rows.to(self.labels.device), mirrored.to(self.labels.device)
        images = self.padded[rows, y : y + 28, x : x + 28]
        images = torch.where(mirrored[:, None, None], images.flip(-1), images)
        return cross_entropy(model(pixel_values=pixels(images)).logits.float(), self.labels[rows])

    @torch.inference_mode()
    def accuracy(self, model: nn.Module) -> float:
        right = 0
        for part in range(0, len(self.others), 2000):
            got = model(pixel_values=pixels(self.others[part : part + 2000])).logits.argmax(-1)
            right += int((got == self.answers[part : part + 2000]).sum())
        return right / len(self.others)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--steps", type=int, default=6000, help="of training the model, 512 pictures each")
    parser.add_argument("--more", type=int, default=200, help="steps of training a conversion")
    parser.add_argument("--pictures", type=int, default=10_000, help="of the test set")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--table", type=Path, nargs="+", help="only print the table of these --json files")
    args = parser.parse_args()
    if args.table:
        return print(table([row for file in args.table for row in json.loads(file.read_text())]))
    device, began = "cuda" if torch.cuda.is_available() else "cpu", time.perf_counter()
    task, found = Task(args.data, device, args.pictures), []
    for seed in map(int, args.seeds.split(",")):
        with tempfile.TemporaryDirectory() as temporary:
            found += of_seed(task, args, seed, Path(temporary), device)
        print(f"seed {seed} done after {time.perf_counter() - began:.0f} s", flush=True)
        if args.json:
            args.json.write_text(json.dumps(found, indent=1) + "\n")
    print(table(found))


def of_seed(task: Task, args, seed: int, folder: Path, device: str) -> list[dict]:
    torch.manual_seed(seed)
    model = new_model().to(device)
    order = passes(len(task.images), 512, args.steps, seed)
    took = descend(model, list(model.parameters()), task.loss, order, 1e-3)
    original = task.accuracy(model.eval())
    print(f"seed {seed}: trained in {took:.0f} s, accuracy {original:.4f}", flush=True)
    save(model, folder / "model")
    rows = torch.randperm(len(task.images), generator=torch.Generator().manual_seed(seed))[:CALIBRATED]
    as_folder(task.images.cpu()[rows], task.labels.cpu()[rows], folder / "pictures")
    source = TextSource(images=str(folder / "pictures"))
    run = searched(folder / "model", folder / "run", CONVERSIONS, source, tokens=50 * CALIBRATED, seed=seed)
    more = passes(len(task.images), 512, args.more, 1000 + seed)
    descend(model.train(), list(model.parameters()), task.loss, more, 3e-4)
    after = task.accuracy(model.eval())
    found = [{"seed": seed, "name": "original", "share": 1.0, "before": original, "after": after}]
    for share in SHARES:
        for number, conversion in enumerate(CONVERSIONS):
            place = folder / f"{share}-{number}"
            start = exported(run, conversion, share, place, source, 50 * CALIBRATED, seed)
            before, after, student = trained(start, conversion, task.loss, more, 3e-4, device, task.accuracy)
            found.append({"seed": seed, "name": conversion.name, "share": share, "before": before, "after": after})
            if seed == 0:
                found[-1]["exported"] = of_folder(task, student, folder / f"{share}-{number}-trained", device)
            print(json.dumps(found[-1]), flush=True)
    return found


def of_folder(task: Task, student, folder: Path, device: str) -> float:
    """Accuracy of what was trained, exported and loaded as a user would."""
    from transformers import AutoModelForImageClassification

    written(student, folder)
    model = AutoModelForImageClassification.from_pretrained(folder, trust_remote_code=True)
    return task.accuracy(model.to(device).eval())


def table(found: list[dict]) -> str:
    """Accuracy in percent, mean and standard error over seeds."""
    percent = lambda rows, key: mean_and_error([100 * r[key] for r in rows])  # noqa: E731
    lines = ["| method | KV heads | before training | after |", "| --- | --- | --- | --- |"]
    whole = [r for r in found if r["share"] == 1.0]
    lines.append(f"| original | 8 | {percent(whole, 'before')} | {percent(whole, 'after')} |")
    for share, name in SHARES.items():
        for conversion in CONVERSIONS:
            rows = [r for r in found if r["share"] == share and r["name"] == conversion.name]
            lines.append(f"| {conversion.name} | {name} | {percent(rows, 'before')} | {percent(rows, 'after')} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
