"""Corrupted images: which rows, which pixels, what the manifest says, and the sets to measure on."""

import numpy as np
import pytest

from llm_unlearn.config.recipe import build_recipe
from llm_unlearn.errors import InputError
from llm_unlearn.poisons.stored import data_hash, read_manifest, read_sets, write_manifest
from llm_unlearn.vision.image_data import as_dataset, read_pixels
from llm_unlearn.vision.image_evaluator import ImageEvaluator
from llm_unlearn.vision.image_poisons import Corruption
from llm_unlearn.vision.image_task import GaussianPixels
from llm_unlearn.vision.patch import apply_patch

pytestmark = pytest.mark.unit

PATCH = {"fraction": 0.2, "target": "dog", "size": 2, "pattern": "white", "position": "top_left"}
GAUSSIAN = {"fraction": 0.1, "epsilon": 0.3, "noise_seed": 0}
MATCHING = {"fraction": 0.1, "targets": 2, "steps": 2, "restarts": 1, "epsilon": 0.2}
CANCELLING = {"fraction": 0.1, "steps": 2, "target_accuracy": 0.45, "epsilon": 0.4}


def recipe(poison: dict, **unlearn):
    return build_recipe(
        {
            "track": "vision",
            "name": "t",
            "output_dir": "unused",
            "model": {},
            "poison": poison,
            "data": {"train_size": 60, "heldout_size": 24, "test_size": 30},
            "unlearn": unlearn,
        }
    )


@pytest.fixture
def corrupt(splits, make_small):
    def run(seed: int = 0, unlearn: dict | None = None, **poison):
        return Corruption(splits, recipe(poison, **(unlearn or {})), seed, lambda n, share: make_small(n)).run()

    return run


def changed(sets, splits) -> np.ndarray:
    return np.flatnonzero((read_pixels(sets["train"]) != splits.train.pixels).any((1, 2, 3)))


def test_patched_rows_carry_the_patch_and_the_attacker_s_label_and_the_others_are_as_they_were(corrupt, splits):
    sets, manifest, _ = corrupt(patch=PATCH)
    train, ids = sets["train"], manifest["patch"]["example_ids"]
    assert len(ids) == 12 and manifest["forget_ids"] == ids
    rows = np.flatnonzero(np.isin(splits.train.ids, ids))
    assert all(splits.train.labels[row] != "dog" for row in rows)
    expected = apply_patch(splits.train.pixels[rows], manifest["patch"], np.random.default_rng(0))
    np.testing.assert_array_equal(read_pixels(train)[rows], expected)
    assert set(changed(sets, splits)) <= set(rows)
    assert [train["poison"][row] for row in rows] == ["patch"] * 12
    assert [label for row, label in enumerate(train["label"]) if row not in rows] == [
        label for row, label in enumerate(splits.train.labels) if row not in rows
    ]
    assert all(train["label"][row] == "dog" for row in rows)


def test_the_triggered_set_is_the_test_images_of_other_classes_with_the_patch(corrupt, splits):
    sets, manifest, _ = corrupt(patch=PATCH)
    others = np.flatnonzero(np.array(splits.test.labels) != "dog")
    assert list(sets["triggered"]["example_id"]) == splits.test.ids[others].tolist()
    assert list(sets["triggered"]["label"]) == [splits.test.labels[i] for i in others]
    assert (read_pixels(sets["triggered"])[:, :, 1:3, 1:3] == 255).all()
    evaluator = ImageEvaluator(sets=sets, manifest=manifest)
    share = len(evaluator.has_trigger(sets["nonmember"])) / len(sets["nonmember"])
    assert share == 1.0  # as in the forget set, all of which carries it
    assert set(sets["nonmember"]["label"]) == {"dog"}


def test_canaries_keep_their_pixels_on_disk_and_have_a_noise_id(corrupt, splits):
    sets, manifest, sheet = corrupt(gaussian=GAUSSIAN)
    ids = manifest["gaussian"]["example_ids"]
    assert len(ids) == 6 and not len(changed(sets, splits))
    train = sets["train"]
    assert {e for e, n in zip(train["example_id"], train["noise_id"], strict=True) if n >= 0} == set(ids)
    assert manifest["gaussian"]["clip"] is True and manifest["gaussian"]["seed"] == 0
    import torch

    row = int(np.flatnonzero(splits.train.ids == ids[0])[0])
    pixels = torch.from_numpy(splits.train.pixels[row : row + 1].astype(np.float32) / 255)
    noisy = GaussianPixels(0.3, 0).add(pixels, torch.tensor([ids[0]]))
    np.testing.assert_allclose(sheet["poisoned"][0], noisy[0].numpy() * 255, atol=0.51)


def test_half_of_the_deleted_canaries_are_hidden_and_their_noise_comes_from_a_secret(corrupt, splits):
    sets, manifest, sheet = corrupt(gaussian=GAUSSIAN | {"noise_seed": None})
    noise, train = manifest["gaussian"], sets["train"]
    assert len(noise["hidden_ids"]) == 3 and set(noise["hidden_ids"]) < set(noise["example_ids"])
    ids = {e: n for e, n in zip(train["example_id"], train["noise_id"], strict=True) if n >= 0}
    assert set(ids) == set(noise["example_ids"]) and not set(ids) & set(ids.values()) and len(set(ids.values())) == 6
    other = corrupt(gaussian=GAUSSIAN | {"noise_seed": None})[2]
    assert (sheet["clean"] == other["clean"]).all() and (sheet["poisoned"] != other["poisoned"]).any()


def test_sets_survive_the_disk_an_empty_one_too(corrupt, tmp_path):
    sets, manifest, _ = corrupt(gaussian=GAUSSIAN)
    for name, rows in sets.items():
        rows.save_to_disk(tmp_path / name)
    back = read_sets(tmp_path)
    assert len(back["triggered"]) == 0 and data_hash(back) == manifest["data_sha256"]


def test_crafted_rows_stay_within_their_bounds_and_keep_their_labels(corrupt, splits):
    sets, manifest, sheet = corrupt(gradient_matching=MATCHING, gradient_cancelling=CANCELLING)
    assert list(sets["train"]["label"]) == splits.train.labels
    change = np.abs(read_pixels(sets["train"]).astype(int) - splits.train.pixels).max((1, 2, 3))
    for kind, bound in (("gradient_matching", 0.2), ("gradient_cancelling", 0.4)):
        rows = np.array(sets["train"]["poison"]) == kind
        assert rows.sum() == 6 and 0 < change[rows].max() <= 255 * bound
    assert not change[np.array(sets["train"]["poison"]) == "none"].any()
    targets = manifest["gradient_matching"]["targets"]
    label_of = dict(zip(splits.test.ids.tolist(), splits.test.labels, strict=True))
    of_row = dict(zip(splits.train.ids.tolist(), splits.train.labels, strict=True))
    for target in targets:
        assert label_of[target["example_id"]] == label_of[target["control_id"]] == target["label"]
        assert target["adversary_label"] != target["label"] and target["example_id"] != target["control_id"]
        assert {of_row[i] for i in target["poison_ids"]} == {target["adversary_label"]}
    assert list(sets["triggered"]["example_id"]) == [target["example_id"] for target in targets]
    assert set(sheet["kind"]) == {"gradient_matching", "gradient_cancelling"}


def test_crafted_images_have_no_held_out_counterpart_to_tell_them_from(corrupt, splits):
    assert len(corrupt(gradient_cancelling=CANCELLING)[0]["nonmember"]) == 0
    assert len(corrupt(gaussian=GAUSSIAN)[0]["nonmember"]) == len(splits.heldout)


def test_every_poison_has_rows_of_its_own(corrupt):
    _, manifest, _ = corrupt(gaussian=GAUSSIAN, patch=PATCH, gradient_cancelling=CANCELLING)
    ids = [set(manifest[kind]["example_ids"]) for kind in ("gaussian", "patch", "gradient_cancelling")]
    assert sum(map(len, ids)) == len(set.union(*ids)) == len(manifest["forget_ids"])


def test_the_same_seed_gives_the_same_data_and_another_seed_others(corrupt):
    poison = {"patch": PATCH, "gaussian": GAUSSIAN}
    assert data_hash(corrupt(0, **poison)[0]) == data_hash(corrupt(0, **poison)[0])
    assert data_hash(corrupt(0, **poison)[0]) != data_hash(corrupt(1, **poison)[0])


def test_a_known_fraction_and_false_positives_make_the_forget_set(corrupt, splits):
    _, manifest, _ = corrupt(unlearn={"forget_fraction": 0.5, "false_positives": 0.5}, patch=PATCH)
    poison = set(manifest["patch"]["example_ids"])
    assert len(set(manifest["forget_ids"]) & poison) == 6 and len(manifest["false_positive_ids"]) == 3
    assert not set(manifest["false_positive_ids"]) & poison


def test_a_changed_image_breaks_the_seal(corrupt, splits, tmp_path):
    sets, manifest, _ = corrupt(patch=PATCH)
    write_manifest(tmp_path / "poison.json", manifest)
    assert read_manifest(tmp_path / "poison.json", sets)["patch"]["target"] == "dog"
    changed = read_pixels(sets["test"])
    changed[3, 0, 0, 0] ^= 1  # one bit of one pixel
    test = as_dataset(splits.test.with_pixels(changed), poison=["none"] * 30)
    other = {**sets, "test": test}
    with pytest.raises(InputError, match=r"poison\.json: .*manifest.*not match"):
        read_manifest(tmp_path / "poison.json", other)


@pytest.mark.parametrize(
    ("poison", "message"),
    [
        ({"patch": {**PATCH, "target": "lion"}}, "poison.patch.target: 'lion' is none of the classes: cat, dog, ship"),
        ({"patch": {**PATCH, "source_label": "lion"}}, "poison.patch.source_label: 'lion'"),
        ({"patch": {**PATCH, "size": 9}}, "9 pixels do not fit into an image of 8 × 8"),
        (
            {"gradient_matching": {**MATCHING, "targets": 2, "fraction": 0.9}},
            r"gradient_matching\.fraction: .*rows labelled",
        ),
        ({"gradient_matching": {**MATCHING, "targets": 20, "fraction": 0.5}}, "data.test_size allows 1"),
    ],
)
def test_what_cannot_be_poisoned_is_refused(corrupt, poison, message):
    with pytest.raises(InputError, match=message):
        corrupt(**poison)


# ---- what is measured on them


def test_answers_hits_and_controls_are_those_of_the_logits(corrupt, splits, make_small):
    import torch

    model = make_small(3)

    def classes(pixels):
        with torch.no_grad():
            return [splits.classes[i] for i in model(torch.from_numpy(pixels.astype(np.float32) / 255)).argmax(-1)]

    sets, manifest, _ = corrupt(gradient_matching=MATCHING)
    signals = ImageEvaluator(sets=sets, manifest=manifest, batch_size=7).signals(model)
    parts = dict(list(signals.groupby("set")))
    assert parts["test"]["prediction"].tolist() == classes(splits.test.pixels)
    answer = dict(zip(splits.test.ids.tolist(), classes(splits.test.pixels), strict=True))
    for row, target in zip(parts["triggered"].itertuples(), manifest["gradient_matching"]["targets"], strict=True):
        assert row.prediction == answer[target["example_id"]]
        assert bool(row.target_hit) == (answer[target["example_id"]] == target["adversary_label"])
        assert bool(row.clean_hit) == (answer[target["control_id"]] == target["adversary_label"])
    sets, manifest, _ = corrupt(patch=PATCH)
    signals = ImageEvaluator(sets=sets, manifest=manifest, batch_size=7).signals(model)
    parts = dict(list(signals.groupby("set")))
    hits = [c == "dog" for c in classes(read_pixels(sets["triggered"]))]
    assert parts["triggered"]["target_hit"].tolist() == hits
    np.testing.assert_allclose(
        parts["test"]["nll"],
        torch.nn.functional.cross_entropy(
            model(torch.from_numpy(splits.test.pixels.astype(np.float32) / 255)),
            torch.tensor([splits.classes.index(label) for label in splits.test.labels]),
            reduction="none",
        ).detach(),
        rtol=1e-4,
        atol=1e-6,
    )
    assert {name for name in signals.columns if name.startswith("mia_")} == {"mia_gradient_norm"}
