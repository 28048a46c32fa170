"""Images from every kind of source, the splits, and the refusals."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image
from PIL import Image as Pillow

from llm_unlearn.config.vision_sections import VisionDataSection
from llm_unlearn.errors import InputError
from llm_unlearn.vision import torchvision_guard
from llm_unlearn.vision.image_data import as_dataset, encode_images, load_images, read_pixels, sort_labels

pytestmark = pytest.mark.unit

SIZES = {"train_size": 12, "heldout_size": 4, "test_size": 4}


def png(seed: int, shape=(6, 6, 3)) -> bytes:
    buffer = io.BytesIO()
    Pillow.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()


def rows(n: int = 24, start: int = 0, **features) -> Dataset:
    values = {"image": [{"bytes": png(start + i), "path": None} for i in range(n)], "label": [i % 2 for i in range(n)]}
    named = Features({"image": Image(), "label": ClassLabel(names=["cat", "dog"]), **features})
    return Dataset.from_dict(values, features=named)


def test_the_digits_are_there_without_network_and_no_image_stands_in_two_splits():
    splits = load_images(VisionDataSection(), 0)
    assert [len(part) for part in (splits.train, splits.heldout, splits.test)] == [1000, 300, 450]
    assert splits.train.pixels.shape == (1000, 1, 8, 8) and splits.train.pixels.dtype == np.uint8
    assert splits.classes == [str(i) for i in range(10)]
    seen = [{image.tobytes() for image in part.pixels} for part in (splits.train, splits.heldout, splits.test)]
    assert not (seen[0] & seen[1] or seen[0] & seen[2] or seen[1] & seen[2])
    from sklearn.datasets import load_digits

    digits = load_digits()
    for row in (0, 500):
        original = digits.images[splits.train.ids[row]]
        np.testing.assert_array_equal(splits.train.pixels[row, 0], np.round(original * 255 / 16))
        assert splits.train.labels[row] == str(digits.target[splits.train.ids[row]])


def test_seeds_draw_other_rows_and_the_same_seed_the_same():
    one, again, other = (load_images(VisionDataSection(), seed).train.ids for seed in (1, 1, 2))
    assert np.array_equal(one, again) and not np.array_equal(one, other)


@pytest.mark.parametrize("source", ["parquet", "folder", "saved"])
def test_files_folders_and_saved_datasets_give_the_same_images(source, tmp_path):
    train, test = rows(), rows(8, start=100)
    fields = {"source": str(tmp_path / "data")}
    if source == "parquet":
        train.to_parquet(tmp_path / "train.parquet")
        test.to_parquet(tmp_path / "test.parquet")
        fields = {"files": [str(tmp_path / "train.parquet")], "test_files": [str(tmp_path / "test.parquet")]}
    elif source == "saved":
        DatasetDict({"train": train, "test": test}).save_to_disk(tmp_path / "data")
    else:
        for split, part in (("train", train), ("test", test)):
            for i, row in enumerate(part.cast_column("image", Image(decode=False))):
                folder = tmp_path / "data" / split / ["cat", "dog"][row["label"]]
                folder.mkdir(parents=True, exist_ok=True)
                (folder / f"{i:03}.png").write_bytes(row["image"]["bytes"])
    splits = load_images(VisionDataSection(**fields, **SIZES), 0)
    assert splits.classes == ["cat", "dog"] and splits.train.pixels.shape == (12, 3, 6, 6)
    every = {
        np.asarray(row["image"]).transpose(2, 0, 1).tobytes(): ["cat", "dog"][row["label"]]
        for part in (train, test)
        for row in part
    }
    for part in (splits.train, splits.heldout, splits.test):
        assert [every[image.tobytes()] for image in part.pixels] == part.labels


def image_folder(root: Path, dataset: Dataset) -> Path:
    for i, row in enumerate(dataset.cast_column("image", Image(decode=False))):
        folder = root / ["cat", "dog"][row["label"]]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"test_{i:03}.png").write_bytes(row["image"]["bytes"])  # no name of a split, though it looks like one
    return root


def test_a_file_that_changed_and_kept_its_time_is_read_again(tmp_path):
    path, section = tmp_path / "train.parquet", VisionDataSection(files=[str(tmp_path / "train.parquet")], **SIZES)
    images = []
    for start in (0, 100):
        rows(start=start).to_parquet(path)
        os.utime(path, ns=(10**18, 10**18))
        images.append(load_images(section, 0).train.pixels)
    assert not np.array_equal(*images)


def test_a_folder_without_splits_is_one_source_and_one_with_some_needs_both(tmp_path):
    source = image_folder(tmp_path / "data", rows())
    splits = load_images(VisionDataSection(source=str(source), **SIZES, keep_duplicates=True), 0)
    ids = [set(part.ids.tolist()) for part in (splits.train, splits.heldout, splits.test)]
    assert len(set.union(*ids)) == 20 and max(map(max, ids)) < 24 and splits.report["across_train_and_test"] == 0
    image_folder(tmp_path / "split" / "train", rows())
    with pytest.raises(InputError, match=r"^data\.source: .*split .*no folder 'val'"):
        load_images(VisionDataSection(source=str(tmp_path / "split"), test_split="val", **SIZES), 0)


def test_files_that_hold_no_images_are_named_by_row_or_column(tmp_path):
    broken = image_folder(tmp_path / "data", rows())
    (broken / "cat" / "test_000.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"data, row 1: .*cannot be read"):
        load_images(VisionDataSection(source=str(broken), **SIZES), 0)
    rows().to_parquet(tmp_path / "train.parquet")
    for column, message in ((("image_column", "label"), r"'label'"), (("label_column", "image"), "images, not labels")):
        section = VisionDataSection(files=[str(tmp_path / "train.parquet")], **dict([column]), **SIZES)
        with pytest.raises(InputError, match=message):
            load_images(section, 0)


def test_an_image_that_stands_in_train_and_test_is_passed_over(tmp_path):
    rows().to_parquet(tmp_path / "train.parquet")
    rows(10, start=16).to_parquet(tmp_path / "test.parquet")  # the first 8 are in train
    section = VisionDataSection(
        files=[str(tmp_path / "train.parquet")],
        test_files=[str(tmp_path / "test.parquet")],
        train_size=16,
        heldout_size=2,
        test_size=2,
    )
    splits = load_images(section, 0)
    assert splits.report["across_train_and_test"] == 8
    taken = {image.tobytes() for part in (splits.train, splits.heldout) for image in part.pixels}
    assert not taken & {image.tobytes() for image in splits.test.pixels}


def test_size_and_channels_are_made_alike_where_asked(tmp_path):
    mixed = Dataset.from_dict(
        {
            "image": [{"bytes": png(i, (6 + i % 3, 6, 3)), "path": None} for i in range(24)],
            "label": [i % 2 for i in range(24)],
        },
        features=Features(rows().features),
    )
    mixed.to_parquet(tmp_path / "mixed.parquet")
    section = VisionDataSection(files=[str(tmp_path / "mixed.parquet")], image_size=5, channels=1, **SIZES)
    assert load_images(section, 0).train.pixels.shape == (12, 1, 5, 5)
    with pytest.raises(InputError, match=r"mixed\.parquet, row 2: .*6 × 7\b.*6 × 6"):
        load_images(VisionDataSection(files=[str(tmp_path / "mixed.parquet")], **SIZES), 0)


def test_what_is_missing_is_named(tmp_path):
    rows().rename_column("image", "img").to_parquet(tmp_path / "train.parquet")
    section = VisionDataSection(files=[str(tmp_path / "train.parquet")], **SIZES)
    with pytest.raises(InputError, match=r"no column 'image' .*data.image_column.*img, label"):
        load_images(section, 0)
    (tmp_path / "bad.parquet").write_bytes(b"no parquet")
    with pytest.raises(InputError, match=r"bad\.parquet cannot be read"):
        load_images(VisionDataSection(files=[str(tmp_path / "bad.parquet")], **SIZES), 0)
    holes = rows().to_dict()
    holes["label"][3] = None
    Dataset.from_dict(holes, features=rows().features).to_parquet(tmp_path / "holes.parquet")
    with pytest.raises(InputError, match=r"holes\.parquet, row 4, column 'label'"):
        load_images(VisionDataSection(files=[str(tmp_path / "holes.parquet")], **SIZES), 0)
    with pytest.raises(InputError, match=r"data.train_size: .*\b5000 rows.*\b1797"):
        load_images(VisionDataSection(train_size=5000), 0)


@pytest.mark.skipif(torchvision_guard.try_torchvision() is None, reason="torchvision is not there")
def test_a_data_set_of_torchvision_is_read_from_its_root_and_an_unknown_one_refused(tmp_path):
    import pickle

    batch = {
        "data": np.random.default_rng(0).integers(0, 256, (20, 3072), dtype=np.uint8),
        "labels": [i % 10 for i in range(20)],
    }
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    import hashlib

    from torchvision.datasets import CIFAR10

    lists = {}
    for name in ("data_batch_1", "test_batch", "batches.meta"):
        content = pickle.dumps({"label_names": [f"class {i}" for i in range(10)]} if name == "batches.meta" else batch)
        (folder / name).write_bytes(content)
        lists[name] = hashlib.md5(content).hexdigest()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CIFAR10, "train_list", [["data_batch_1", lists["data_batch_1"]]])
        patch.setattr(CIFAR10, "test_list", [["test_batch", lists["test_batch"]]])
        patch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": lists["batches.meta"]})
        section = VisionDataSection(source="torchvision/CIFAR10", root=str(tmp_path), keep_duplicates=True, **SIZES)
        splits = load_images(section, 0)
    assert splits.train.pixels.shape == (12, 3, 32, 32) and splits.train.labels[0].startswith("class ")
    position = int(splits.train.ids[0])
    np.testing.assert_array_equal(splits.train.pixels[0], batch["data"][position].reshape(3, 32, 32))
    with pytest.raises(InputError, match="torchvision .*'CIFAR11'"):
        load_images(VisionDataSection(source="torchvision/CIFAR11", root=str(tmp_path), **SIZES), 0)


def test_rows_survive_the_way_to_disk_and_into_batches(splits, tmp_path):
    as_dataset(splits.train, poison=["none"] * 60, noise_id=[-1] * 60).save_to_disk(tmp_path / "train")
    from datasets import load_from_disk

    back = load_from_disk(str(tmp_path / "train"))
    np.testing.assert_array_equal(read_pixels(back), splits.train.pixels)
    encoded = encode_images(back, splits.classes)
    assert encoded[5]["pixels"] == splits.train.pixels[5].tobytes()
    assert splits.classes[encoded[5]["label_id"]] == splits.train.labels[5]
    with pytest.raises(InputError, match="label 'ship' .*cat, dog$"):
        encode_images(back, ["cat", "dog"])


def test_labels_that_are_numbers_are_sorted_by_value():
    assert sort_labels(["10", "9", "cat", "1"]) == ["1", "9", "10", "cat"]


def test_cifar_10_is_read_with_the_names_of_its_classes(cifar10):
    files = [str(cifar10)]
    section = VisionDataSection(files=files, image_column="img", train_size=200, heldout_size=50, test_size=50)
    splits = load_images(section, 0)
    assert splits.train.pixels.shape == (200, 3, 32, 32)
    assert splits.classes[0] == "airplane" and splits.classes[-1] == "truck" and len(splits.classes) == 10
    counts = [splits.train.labels.count(label) for label in splits.classes]
    assert max(counts) - min(counts) <= 2
