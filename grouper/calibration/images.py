"""Images in folders, one folder per class, laid out as for the datasets library's imagefolder."""

import os
from pathlib import Path

import torch

from grouper.calibration.text import spread
from grouper.checkpoint.checkpoint import Checkpoint
from grouper.errors import GrouperError, as_one_line
from grouper.families.configuration import setting
from grouper.model.auto import auto_class
from grouper.model.loading import load
from grouper.running.batch import Batch

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff")


def read_images(checkpoint: Checkpoint, folder: str, limit: int | None = None) -> Batch:
    """Images of FOLDER/CLASS/*.png and other formats, preprocessed by the model's own processor. They get the model's
    labels if it has as many classes, with the same names or in the same order. Raises GrouperError."""
    from PIL import Image

    files = picture_files(Path(os.path.expanduser(folder)))
    names = sorted({file.parent.name for file in files})
    files = spread(files, limit) if limit else files
    with as_one_line(f"{checkpoint.name} has no image processor that transformers can load"):
        processor = load("AutoImageProcessor", checkpoint.local().folder)
    pixels = []
    for file in files:
        with as_one_line(f"cannot read the picture {file}"), Image.open(file) as picture:
            pixels.append(processor(picture.convert("RGB"), return_tensors="pt")["pixel_values"][0])
    labels = None
    if auto_class(checkpoint.config) == "AutoModelForImageClassification":
        number = numbers_of(checkpoint, names)
        labels = torch.tensor([number[file.parent.name] for file in files])
    every = torch.stack(pixels)
    size = setting(checkpoint.config, "image_size")
    if list(every.shape[2:]) != (size if isinstance(size, list) else [size, size]):
        given = "x".join(map(str, every.shape[2:]))
        raise GrouperError(f"the processor of {checkpoint.name} gives pictures of {given}, the model takes {size}")
    patches = every[0, 0].numel() // setting(checkpoint.config, "patch_size") ** 2
    return Batch({"pixel_values": every}, labels, patches + 1)


def picture_files(folder: Path) -> list[Path]:
    """Image files in alphabetical order. Raises GrouperError if there are none."""
    if not folder.is_dir():
        raise GrouperError(f"{folder} is no folder of pictures: expected FOLDER/CLASS/PICTURE.png")
    files = sorted(f for f in folder.glob("*/*") if f.suffix.lower() in ENDINGS and f.is_file())
    if not files:
        raise GrouperError(f"{folder} has no pictures in folders of classes: expected FOLDER/CLASS/PICTURE.png")
    return files


def numbers_of(checkpoint: Checkpoint, names: list[str]) -> dict[str, int]:
    """Class number in the model for each folder: by name, else by order if the counts are equal."""
    known = checkpoint.config.get("id2label") or {0: "LABEL_0", 1: "LABEL_1"}  # transformers omits these defaults
    by_name = {str(label).lower(): int(number) for number, label in known.items()}
    if all(name.lower() in by_name for name in names):
        return {name: by_name[name.lower()] for name in names}
    if all(name.isdecimal() and int(name) < len(known) for name in names):
        return {name: int(name) for name in names}
    if len(names) == len(known):
        return {name: number for number, name in enumerate(names)}
    first = ", ".join(map(str, list(known.values())[:3]))
    raise GrouperError(
        f"{len(names)} folders of classes ({', '.join(names[:3])}, ...), and {checkpoint.name} knows {len(known)} "
        f"({first}, ...): name the folders as the model names its classes"
    )
