"""Read labelled images, split them, and encode rows for the task.

A set is a dataset with columns `image` (PNG), `label` (text), `poison`, `example_id` and `noise_id`. In memory, images
are uint8 arrays (n, C, H, W).
"""

import hashlib
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow
from datasets import ClassLabel, Dataset, Features, Image, Value, load_dataset

from llm_unlearn.data.readers import expand_files
from llm_unlearn.data.source_files import load_arrow
from llm_unlearn.data.splits import split_section
from llm_unlearn.errors import InputError
from llm_unlearn.files import file_stamps, fingerprint
from llm_unlearn.vision.torchvision_guard import require_torchvision

if TYPE_CHECKING:
    from llm_unlearn.config.vision_sections import VisionDataSection

DIGITS = "digits"
TORCHVISION = "torchvision/"


@dataclass(frozen=True)
class Images:
    """n labelled images.

    Args:
        pixels: (n, C, H, W) uint8.
        labels: n labels.
        ids: (n,) int64, the example ids.
    """

    pixels: np.ndarray
    labels: list[str]
    ids: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, positions: np.ndarray) -> "Images":
        return Images(self.pixels[positions], [self.labels[i] for i in positions], self.ids[positions])

    def with_pixels(self, pixels: np.ndarray) -> "Images":
        return replace(self, pixels=pixels)


@dataclass(frozen=True)
class ImageSplits:
    """Three disjoint sets, all `classes` (sorted labels), and the `report` on duplicates of data/splits.py."""

    train: Images
    heldout: Images
    test: Images
    classes: list[str]
    report: dict[str, int]


def load_images(section: "VisionDataSection", seed: int) -> ImageSplits:
    """Load the images of a recipe and split them, stratified by label; no image is in two sets.

    Raises:
        InputError: the source cannot be read or split; the message names source, row or field.
    """
    sources = [_source(section, section.train_split, section.files)]
    divided = section.source != DIGITS and not section.files and section.test_split and not _undivided(section)
    if section.source.startswith(TORCHVISION) or section.test_files or divided:
        sources.append(_source(section, section.test_split, section.test_files))
    if len(shapes := {pixels.shape[1:] for pixels, _ in sources}) > 1:
        raise InputError(
            f"data: training and test images differ in (channels, height, width): {sorted(shapes)}; set "
            "data.image_size and data.channels"
        )
    train, *test = (_described(*source) for source in sources)
    splits = split_section(train, test[0] if test else None, section, seed)
    labels = [label for _, source_labels in sources for label in source_labels]
    images = Images(np.concatenate([pixels for pixels, _ in sources]), labels, np.arange(len(labels)))
    train_set, heldout, test_set = (
        images.take(np.asarray(rows["example_id"])) for rows in (splits.train, splits.heldout, splits.test)
    )
    return ImageSplits(train_set, heldout, test_set, sort_labels(labels), splits.report)


def sort_labels(labels: Iterable[str]) -> list[str]:
    """Distinct labels, sorted; numbers come first and by value."""
    return sorted(set(labels), key=lambda label: (0, int(label), label) if label.isdecimal() else (1, 0, label))


def _described(pixels: np.ndarray, labels: list[str]) -> Dataset:
    """Rows for `make_splits`: the label, and a text that is the same for equal images only."""
    texts = [hashlib.sha256(image.tobytes()).hexdigest() for image in pixels]
    return Dataset.from_dict({"text": texts, "label": labels})


# ---- sources: each gives (pixels (n, C, H, W) uint8, labels)


def _source(section: "VisionDataSection", split: str | None, files: list[str] | None) -> tuple[np.ndarray, list[str]]:
    """The images of files, or of a split of the source."""
    if files:
        names, paths = ", ".join(files), [str(path) for path in expand_files(files)]
        rows = _loaded("parquet", paths, paths, f"data.files: {names} cannot be read as Parquet")
        return _of_rows(rows, section, names)
    if section.source == DIGITS:
        return _digits(section)
    if section.source.startswith(TORCHVISION):
        return _torchvision(section, train=split == section.train_split)
    folder = Path(section.source).expanduser()
    if _is_image_folder(folder):
        split_folder = folder if split is None or _undivided(section) else folder / split
        if not split_folder.is_dir():
            raise InputError(f"data.source: {folder} has no folder '{split}' beside those of its other splits")
        what = f"data.source: {split_folder} cannot be read as a folder with one folder of images per label"
        # with a pattern, since names such as `test` would be taken for splits
        images = _loaded("imagefolder", {"train": str(split_folder / "**")}, [str(split_folder)], what)
        return _of_rows(images, section, str(split_folder))
    return _of_rows(load_arrow(section.source, split, section.config_name), section, section.source)


def _digits(section: "VisionDataSection") -> tuple[np.ndarray, list[str]]:
    """The 8 × 8 digits that scikit-learn ships."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise InputError(
            "data.source: 'digits' comes with scikit-learn, which is not installed: pip install 'llm_unlearn[vision]'"
        ) from None
    digits = load_digits()
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)  # 0 … 16 → 0 … 255
    rows = [(image, str(label)) for image, label in zip(pixels, digits.target, strict=True)]
    return _stack(rows, section, "digits")


def _torchvision(section: "VisionDataSection", train: bool) -> tuple[np.ndarray, list[str]]:
    """A data set of torchvision, downloaded where it is missing."""
    name = section.source.removeprefix(TORCHVISION)
    datasets = require_torchvision(f"data.source: '{section.source}'").datasets
    cls = getattr(datasets, name, None)
    if not isinstance(cls, type):
        raise InputError(f"data.source: torchvision has no data set '{name}'")
    root = str(Path(section.root).expanduser())
    try:
        try:
            dataset = cls(root, train=train, download=True)
        except TypeError:  # data sets that name their splits, such as SVHN, or have only one
            dataset = cls(root, split=section.train_split if train else section.test_split, download=True)
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"data.source: torchvision's '{name}' cannot be loaded from {root}: {error}") from None
    names = getattr(dataset, "classes", None)
    rows = ((image, str(names[label]) if names else str(label)) for image, label in dataset)
    return _stack(rows, section, section.source)


def _loaded(kind: str, files: Any, paths: list[str], what: str) -> Dataset:
    """Rows that `datasets` reads; its cache, which knows files by path and time, is told their content too."""
    try:
        return load_dataset(kind, name=fingerprint(file_stamps(paths))[:16], data_files=files, split="train")
    except (OSError, ValueError) as error:
        raise InputError(f"{what}: {error}") from None


def _is_image_folder(folder: Path) -> bool:
    """Whether a folder holds images, and not a dataset that `save_to_disk` wrote."""
    return folder.is_dir() and not any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))


def _undivided(section: "VisionDataSection") -> bool:
    """Whether the source is a folder with one folder of images per label, and none per split above them."""
    folder = Path(section.source).expanduser()
    return _is_image_folder(folder) and not any(
        (folder / name).is_dir() for name in (section.train_split, section.test_split) if name
    )


def _of_rows(rows: Dataset, section: "VisionDataSection", source: str) -> tuple[np.ndarray, list[str]]:
    """The images of a dataset with an image column and a label column."""
    image, label = section.image_column, section.label_column
    for field, column in (("image_column", image), ("label_column", label)):
        if column not in rows.column_names:
            raise InputError(f"{source}: no column '{column}' (data.{field}); it has: {', '.join(rows.column_names)}")
    feature = rows.features[label]
    if label == image or isinstance(feature, Image):
        raise InputError(f"{source}: column '{label}' (data.label_column) holds images, not labels")
    try:
        rows = rows.select_columns([image, label]).cast_column(image, Image())
    except (pyarrow.ArrowException, TypeError, ValueError) as error:
        raise InputError(f"{source}: column '{image}' (data.image_column) holds no images: {error}") from None

    def records() -> Iterator[tuple[Any, str]]:
        for number in range(1, len(rows) + 1):
            try:
                row = rows[number - 1]
            except (OSError, ValueError, TypeError, pyarrow.ArrowException) as error:
                raise InputError(f"{source}, row {number}: the image cannot be read: {error}") from None
            value = row[label]
            if value is None or (isinstance(feature, ClassLabel) and value < 0):
                raise InputError(f"{source}, row {number}, column '{label}': no label; fill it in or delete the row")
            yield row[image], feature.int2str(value) if isinstance(feature, ClassLabel) else str(value)

    return _stack(records(), section, source)


def _stack(rows: Iterable[tuple[Any, str]], section: "VisionDataSection", source: str) -> tuple[np.ndarray, list[str]]:
    """Images of one size and number of channels: as the section asks for, or as the first image has."""
    from PIL import Image as Pillow

    arrays, labels, mode = [], [], {1: "L", 3: "RGB", None: None}[section.channels]
    for number, (image, label) in enumerate(rows, 1):
        picture = image if isinstance(image, Pillow.Image) else None if image is None else Pillow.fromarray(image)
        if picture is None:
            raise InputError(f"{source}, row {number}: no image; fill it in or delete the row")
        mode = mode or ("L" if picture.mode in ("L", "1") else "RGB")
        picture = picture if picture.mode == mode else picture.convert(mode)
        if section.image_size and picture.size != (section.image_size, section.image_size):
            picture = picture.resize((section.image_size, section.image_size), Pillow.Resampling.BILINEAR)
        arrays.append(np.asarray(picture).reshape(picture.height, picture.width, -1).transpose(2, 0, 1))
        if arrays[-1].shape != arrays[0].shape:
            raise InputError(
                f"{source}, row {number}: an image of {picture.width} × {picture.height} pixels, but the "
                f"first has {arrays[0].shape[2]} × {arrays[0].shape[1]}; set data.image_size"
            )
        labels.append(label)
    if not arrays:
        raise InputError(f"{source} is empty: it has no image")
    return np.stack(arrays), labels


# ---- rows


def as_dataset(images: Images, **columns: Any) -> Dataset:
    """A dataset with columns image, label and example_id, and further `columns`."""
    features = {"image": Image(), "label": Value("string"), "example_id": Value("int64")}
    features |= {name: Value("string" if name == "poison" else "int64") for name in columns}
    files = [{"bytes": _png(image), "path": None} for image in images.pixels]
    values = {"image": files, "label": images.labels, "example_id": images.ids.tolist(), **columns}
    return Dataset.from_dict(values, features=Features(features))


def _png(image: np.ndarray) -> bytes:
    from PIL import Image as Pillow

    picture = Pillow.fromarray(image[0] if len(image) == 1 else np.ascontiguousarray(image.transpose(1, 2, 0)))
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def read_pixels(rows: Dataset) -> np.ndarray:
    """(n, C, H, W) uint8 of a set's images."""
    arrays = [np.asarray(image) for image in rows["image"]]
    return np.stack([array.reshape(*array.shape[:2], -1).transpose(2, 0, 1) for array in arrays])


def encode_images(rows: Dataset, classes: list[str]) -> Dataset:
    """Encode a set for the collator.

    Args:
        rows: the set.
        classes: all labels; `label_id` is the position in this list.

    Returns:
        columns pixels (bytes) and label_id, and those of example_id, noise_id and poison that the set has.

    Raises:
        InputError: a label is not in `classes`.
    """
    number = {label: i for i, label in enumerate(classes)}
    if unknown := set(rows["label"]) - set(number):
        raise InputError(f"data: label '{min(unknown)}' is none of the classes: {', '.join(classes)}")
    values = {
        "pixels": [image.tobytes() for image in read_pixels(rows)] if len(rows) else [],
        "label_id": [number[label] for label in rows["label"]],
    }
    values |= {name: list(rows[name]) for name in ("example_id", "noise_id", "poison") if name in rows.column_names}
    return Dataset.from_dict(values)
