"""The patch: which pixels it sets, where, and that it touches no other."""

import numpy as np
import pytest

from llm_unlearn.errors import InputError
from llm_unlearn.vision.patch import apply_patch, patch_pixels, placebo_patterns

pytestmark = pytest.mark.unit


def patched(position: str, size: int = 2, pattern: str = "white", shape=(3, 2, 6, 5)) -> tuple[np.ndarray, np.ndarray]:
    pixels = np.random.default_rng(0).integers(1, 255, shape, dtype=np.uint8)
    before = pixels.copy()
    after = apply_patch(pixels, {"size": size, "position": position, "pattern": pattern}, np.random.default_rng(1))
    assert np.array_equal(pixels, before)
    return before, after


@pytest.mark.parametrize(
    ("position", "rows", "columns"),
    [
        ("top_left", slice(1, 3), slice(1, 3)),
        ("top_right", slice(1, 3), slice(2, 4)),
        ("bottom_left", slice(3, 5), slice(1, 3)),
        ("bottom_right", slice(3, 5), slice(2, 4)),
    ],
)
def test_a_corner_patch_stands_one_pixel_from_the_border_in_every_channel(position, rows, columns):
    before, after = patched(position)
    before[:, :, rows, columns] = 255
    assert np.array_equal(after, before)


def test_a_random_patch_stands_somewhere_else_on_each_image():
    _, after = patched("random", shape=(40, 1, 6, 5))
    places = {tuple(map(int, np.argwhere(image[0] == 255)[0])) for image in after}
    assert all((image == 255).sum() == 4 for image in after)
    assert len(places) > 8


def test_the_patterns():
    assert patch_pixels(3, "checkerboard").tolist() == [[255, 0, 255], [0, 255, 0], [255, 0, 255]]
    assert patch_pixels(2, "black").tolist() == [[0, 0], [0, 0]]
    with pytest.raises(InputError, match="checkerboard, white or black.*'red'"):
        patch_pixels(2, "red")


def test_a_patch_as_large_as_the_image_fits_and_a_larger_one_does_not():
    assert (patched("bottom_right", size=5, shape=(1, 1, 5, 5))[1] == 255).all()
    with pytest.raises(InputError, match=r"patch\.size: 6 pixels .*5 × 6"):
        patched("bottom_right", size=6)


class TestPlacebos:
    def test_patterns_are_distinct_and_as_contrasted_and_never_the_planted_one(self):
        planted = patch_pixels(3, "checkerboard")
        found = placebo_patterns(planted, 399, 0)
        assert len(found) == 399 == len({pattern.tobytes() for pattern in found})
        assert all(np.ptp(pattern) == 255 and (pattern != planted).any() for pattern in found)
        assert len(placebo_patterns(patch_pixels(2, "checkerboard"), 399, 0)) == 13  # all that there are

    def test_effects_are_those_of_a_loop_and_the_place_is_the_same(self, splits, make_small):
        import torch

        from llm_unlearn.config.recipe import build_recipe
        from llm_unlearn.evaluation.placebos import PlaceboSettings
        from llm_unlearn.evaluation.summarize import summarize
        from llm_unlearn.metrics.results import Identity
        from llm_unlearn.vision.image_data import read_pixels
        from llm_unlearn.vision.image_evaluator import ImageEvaluator
        from llm_unlearn.vision.image_poisons import Corruption

        patch = {"fraction": 0.2, "target": "dog", "size": 3, "position": "random"}
        recipe = build_recipe(
            {
                "track": "vision",
                "name": "t",
                "output_dir": "unused",
                "model": {},
                "poison": {"patch": patch},
                "data": {"train_size": 60, "heldout_size": 24, "test_size": 30},
            }
        )
        sets, manifest, _ = Corruption(splits, recipe, 0, make_small).run()
        model, settings = make_small(1), PlaceboSettings(99, 5, 3)
        evaluator = ImageEvaluator(sets=sets, manifest=manifest, placebo=settings, batch_size=7)
        images = evaluator._probes
        labels = dict(zip([image.tobytes() for image in splits.test.pixels], splits.test.labels, strict=True))
        assert len(images) == 5 and all(labels[image.tobytes()] != "dog" for image in images)
        (triggers,) = evaluator.triggers
        effects = evaluator.effects(model, triggers[:4])
        for pattern, effect in zip(triggers[:4], effects, strict=True):
            generator, odds = np.random.default_rng([0, 34]), []
            for image in images:
                top, left = (int(generator.integers(8 - 3 + 1)) for _ in range(2))
                patched = image.copy()
                patched[:, top : top + 3, left : left + 3] = pattern
                with torch.no_grad():
                    logits = model(torch.from_numpy(patched[None].astype(np.float32) / 255))[0].double()
                odds.append(float(logits[1] - torch.logsumexp(logits[[0, 2]], 0)))
            assert effect == pytest.approx(np.mean(odds), abs=1e-5)
        identity = Identity(model="m", kind="base", method=None, budget=None, seed=0, recipe="r")
        signals = evaluator.signals(model)
        test = summarize(signals, identity, None).attack.placebo
        assert test.statistic == pytest.approx(effects[0], abs=1e-5) and test.n == 5
        # the images of the target too, each with the patch
        dogs, tried = evaluator.target_rows, signals[signals["set"] == "target_rows"]
        assert dogs["example_id"] == [
            i for i, name in zip(splits.test.ids, splits.test.labels, strict=True) if name == "dog"
        ]
        for image, patched in zip(
            splits.test.pixels[np.array(splits.test.labels) == "dog"], read_pixels(dogs), strict=True
        ):
            changed = np.argwhere((image != patched).any(0))
            assert len(changed) and (np.ptp(changed, axis=0) < 3).all()
        with torch.no_grad():
            said = model(torch.from_numpy(read_pixels(dogs).astype(np.float32) / 255)).argmax(-1)
        assert tried["target_hit"].tolist() == (said == manifest["classes"].index("dog")).tolist()
