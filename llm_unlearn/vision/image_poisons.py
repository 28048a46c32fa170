"""Step 1 of the protocol for images: S_corr, which is S_clean with a poisoned subset; evaluation sets; the manifest.

The counterpart of poisons/corrupt.py, with the same hashes and forget set. No row has two poisons.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from llm_unlearn.errors import InputError
from llm_unlearn.poisons.corrupt import choose_twins, forget_set, hide_deleted, run_seed
from llm_unlearn.poisons.gaussian_embedding import noise_of
from llm_unlearn.poisons.selection import choose_rows
from llm_unlearn.poisons.stored import data_hash, storable
from llm_unlearn.poisons.trigger_phrase import can_be_poisoned
from llm_unlearn.tasks.noise import NO_NOISE
from llm_unlearn.vision.gradient_cancelling import GradientCancelling, cancel_gradients, corrupt_parameters
from llm_unlearn.vision.gradient_matching import GradientMatching, match_gradients, nearest_images, runner_up
from llm_unlearn.vision.image_data import Images, ImageSplits, as_dataset
from llm_unlearn.vision.image_task import GaussianPixels
from llm_unlearn.vision.patch import apply_patch

if TYPE_CHECKING:
    from datasets import Dataset

    from llm_unlearn.config.recipe import VisionRecipe

SHOWN = 8  # images of each kind on the contact sheet


class Corruption:
    """Poisons the training images, kind by kind.

    Args:
        splits: the clean images.
        recipe: recipe of the run.
        seed: seed of every draw.
        surrogate: (number, share) → the surrogate model of that number, trained on the clean images for a share of the
            epochs; called for crafted poisons only.
        secret: of an earlier manifest, for the noise that it gave; see `plant_canaries`.
    """

    def __init__(
        self,
        splits: ImageSplits,
        recipe: "VisionRecipe",
        seed: int,
        surrogate: Callable[[int, float], nn.Module],
        secret: str | None = None,
    ) -> None:
        self.splits, self.recipe, self.seed, self.surrogate, self.secret = splits, recipe, seed, surrogate, secret
        self.pixels, self.labels = splits.train.pixels.copy(), list(splits.train.labels)
        self.kinds = np.full(len(self.labels), "none", dtype=object)
        self.noise_id = np.full(len(self.labels), NO_NOISE)
        self.manifest: dict[str, Any] = {
            "schema_version": 1,
            "seed": seed,
            "trigger": None,
            "train_size": len(self.labels),
            "classes": splits.classes,
            "image_shape": list(self.pixels.shape[1:]),
            **dict.fromkeys(type(recipe.poison).model_fields),
        }

    def run(self) -> tuple[dict[str, "Dataset"], dict[str, Any], dict[str, np.ndarray]]:
        """Make the sets of poisons/corrupt.py, the manifest, and the arrays of the contact sheet."""
        for kind, section in self.recipe.poison:
            if section is not None:
                self.manifest[kind] = {**section.model_dump(), "seed": self.seed, **getattr(self, f"_{kind}")(section)}
        train = self.splits.train
        poisoned = Images(self.pixels, self.labels, train.ids)
        rows = as_dataset(poisoned, poison=self.kinds.tolist(), noise_id=self.noise_id.tolist())
        self.manifest |= forget_set(rows, train.ids, self.kinds, self.recipe.unlearn, self.seed)
        hide_deleted(self.manifest)
        clean = {"heldout": _plain(self.splits.heldout), "test": _plain(self.splits.test)}
        sets = storable({"train": rows, **clean, "triggered": _plain(self._triggered()), "nonmember": self._twins()})
        self.manifest["data_sha256"] = data_hash(sets)
        return sets, self.manifest, self._contact_sheet()

    # ---- the poisons: each marks its rows and returns its section's additions to the manifest

    def _gaussian(self, section: Any) -> dict[str, Any]:
        rows = self._choose(section, "gaussian", 2)
        ids, noise_seed = self.splits.train.ids[rows], run_seed(section.noise_seed, self.seed)
        noise, self.noise_id[rows] = noise_of(ids, noise_seed, self.secret)
        return {**noise, "example_ids": self._mark("gaussian", rows)}

    def _patch(self, section: Any) -> dict[str, Any]:
        self._check_class(section.target, "patch.target")
        if section.source_label is not None:
            self._check_class(section.source_label, "patch.source_label")
        allowed = can_be_poisoned(self.labels, section.target, section.source_label, section.clean_label)
        rows = self._choose(section, "patch", 1, allowed)
        generator = np.random.default_rng([self.seed, 1, 1])
        self.pixels[rows] = apply_patch(self.pixels[rows], section.model_dump(), generator)
        for row in rows:
            self.labels[row] = section.target
        return {"example_ids": self._mark("patch", rows)}

    def _gradient_matching(self, section: Any) -> dict[str, Any]:
        generator = np.random.default_rng([self.seed, 9])
        models = [self.surrogate(number, section.surrogate_share) for number in range(1, 1 + section.surrogates)]
        settings = GradientMatching(
            section.epsilon, steps=section.steps, restarts=section.restarts, shift=section.shift, flip=section.flip
        )
        targets = self._draw_targets(section, models, generator)
        shares = np.array_split(np.arange(self.recipe.poison_counts()["gradient_matching"]), len(targets))
        position = _positions(self.splits.test)
        device, chosen = _device(models[0]), []
        for number, (target, share) in enumerate(zip(targets, shares, strict=True)):
            image = _tensor(self.splits.test.pixels[position[target["example_id"]]])
            rows = self._nearest(image, target["adversary_label"], len(share))
            images, numbers = self._batch(rows, device)
            wrong, seed = self.splits.classes.index(target["adversary_label"]), self.seed * 1000 + number
            crafted, loss = match_gradients(models, images, numbers, image.to(device), wrong, settings, seed)
            self.pixels[rows] = _bytes(crafted)
            chosen += (ids := self._mark("gradient_matching", rows))
            target |= {"poison_ids": ids, "matching_loss": loss}
        return {"targets": targets, "example_ids": sorted(chosen)}

    def _gradient_cancelling(self, section: Any) -> dict[str, Any]:
        rows = self._choose(section, "gradient_cancelling", 10)
        if section.labels == "random":
            generator = np.random.default_rng([self.seed, 10, 1])
            for row in rows:
                wrong = [name for name in self.splits.classes if name != self.labels[row]]
                self.labels[row] = str(generator.choice(wrong))
        clean = np.setdiff1d(np.arange(len(self.labels)), rows)
        model = self.surrogate(0, 1.0)
        images, numbers = self._batch(clean, _device(model))
        low, accuracy = corrupt_parameters(model, images, numbers, section.target_accuracy)
        settings = GradientCancelling(section.epsilon, section.steps)
        crafted, trace = cancel_gradients(low, images, numbers, *self._batch(rows, _device(model)), settings)
        self.pixels[rows] = _bytes(crafted)
        return {
            "example_ids": self._mark("gradient_cancelling", rows),
            "corrupted_accuracy": accuracy,
            "gradient_norm_before": trace[0],
            "gradient_norm_after": trace[-1],
        }

    # ---- shared by the poisons

    def _choose(self, section: Any, kind: str, stream: int, allowed: np.ndarray | None = None) -> np.ndarray:
        """A fraction of the rows, of those that are allowed and not poisoned yet."""
        eligible = (self.kinds == "none") & (True if allowed is None else allowed)
        generator = np.random.default_rng([self.seed, stream])
        return choose_rows(len(self.labels), section.fraction, generator, eligible, kind)

    def _mark(self, kind: str, rows: np.ndarray) -> list[int]:
        self.kinds[rows] = kind
        return sorted(self.splits.train.ids[rows].tolist())

    def _batch(self, rows: np.ndarray, device: torch.device) -> tuple[Tensor, Tensor]:
        """Pixels (n, C, H, W) and class numbers (n,) of training rows."""
        numbers = torch.tensor([self.splits.classes.index(self.labels[row]) for row in rows])
        return _tensor(self.pixels[rows]).to(device), numbers.to(device)

    def _check_class(self, label: str, field: str) -> None:
        if label not in self.splits.classes:
            raise InputError(f"poison.{field}: '{label}' is none of the classes: {', '.join(self.splits.classes)}")

    def _draw_targets(self, section: Any, models: list[nn.Module], generator: np.random.Generator) -> list[dict]:
        """Test images, each with the adversary's label and with another image of its class as a control."""
        test, classes = self.splits.test, self.splits.classes
        targets: list[dict] = []
        used: set[int] = set()
        for position in map(int, generator.permutation(len(test))):
            label = test.labels[position]
            others = [i for i, other in enumerate(test.labels) if other == label and i != position and i not in used]
            if position in used or not others:
                continue
            control = int(generator.choice(others))
            used |= {position, control}
            wrong = str(generator.choice([name for name in classes if name != label]))
            if section.adversary_label == "runner_up":
                image = _tensor(test.pixels[position]).to(_device(models[0]))
                wrong = classes[runner_up(models, image, classes.index(label))]
            ids = {"example_id": int(test.ids[position]), "control_id": int(test.ids[control])}
            targets.append({"example_id": ids["example_id"], "label": label, "adversary_label": wrong, **ids})
            if len(targets) == section.targets:
                return targets
        raise InputError(
            f"poison.gradient_matching.targets: asks for {section.targets} targets, each with another "
            f"test image of its class; data.test_size allows {len(targets)}; lower it, or raise "
            "data.test_size"
        )

    def _nearest(self, image: Tensor, label: str, count: int) -> np.ndarray:
        """The training rows of a label that are nearest to an image (C, H, W) and not poisoned yet."""
        free = np.flatnonzero((np.array(self.labels) == label) & (self.kinds == "none"))
        if len(free) < count:
            raise InputError(
                f"poison.gradient_matching.fraction: one target needs {count} rows labelled '{label}', "
                f"but {len(free)} are left; lower it, or the number of targets"
            )
        return np.sort(free[nearest_images(_tensor(self.pixels[free]), image, count).numpy()])

    # ---- the sets on which the poison is measured

    def _triggered(self) -> Images:
        """Test images of the source class, or else of others than the target, with the patch; or the targets of
        gradient matching.
        """
        test = self.splits.test
        if patch := self.manifest["patch"]:
            target, source = patch["target"], patch["source_label"]
            rows = np.flatnonzero(can_be_poisoned(test.labels, target, source))
            if not len(rows):
                which = f"of class '{target}'" if source is None else f"of another class than '{source}'"
                raise InputError(
                    f"poison.patch.target: every test image is {which}, so the attack cannot be measured; choose "
                    "another target, or add test images of other classes"
                )
            generator = np.random.default_rng([self.seed, 4])
            return test.take(rows).with_pixels(apply_patch(test.pixels[rows], patch, generator))
        targets, position = (self.manifest["gradient_matching"] or {}).get("targets", []), _positions(test)
        return test.take(np.array([position[target["example_id"]] for target in targets], dtype=int))

    def _twins(self) -> "Dataset":
        """Held-out images, patched in the forget set's proportion; none if the forget set has crafted images, which
        have no held-out counterpart: a membership attack would recognise them by the crafting.
        """
        heldout, patch = self.splits.heldout, self.manifest["patch"]
        kinds = self.kinds[np.isin(self.splits.train.ids, self.manifest["forget_ids"])]
        if np.isin(kinds, ["gradient_matching", "gradient_cancelling"]).any():
            return _plain(heldout.take(np.array([], dtype=int)))
        share = float((kinds == "patch").mean())
        if not share:
            return _plain(heldout)
        options = (patch["target"], patch["source_label"], patch["clean_label"])
        generator = np.random.default_rng([self.seed, 5])
        allowed = np.flatnonzero(can_be_poisoned(heldout.labels, *options))
        chosen, others = choose_twins(len(heldout), allowed, share, generator)
        patched, plain = heldout.take(chosen), heldout.take(others)
        twins = Images(
            np.concatenate([apply_patch(patched.pixels, patch, generator), plain.pixels]),
            [patch["target"]] * len(chosen) + plain.labels,
            np.concatenate([patched.ids, plain.ids]),
        )
        return as_dataset(twins, poison=["patch"] * len(chosen) + ["none"] * len(others))

    def _contact_sheet(self) -> dict[str, np.ndarray]:
        """{"kind", "clean", "poisoned", "label", "poisoned_label"}: the first poisoned rows of every kind."""
        kinds = sorted(set(self.kinds) - {"none"})
        rows = np.concatenate([np.flatnonzero(self.kinds == kind)[:SHOWN] for kind in kinds])
        poisoned = self.pixels[rows]
        if noise := self.manifest["gaussian"]:
            pixels = GaussianPixels(noise["epsilon"], noise["seed"], noise["clip"])
            shown = pixels.add(_tensor(poisoned), torch.from_numpy(self.noise_id[rows]))
            poisoned = _bytes(shown.clamp(0, 1))
        clean = self.splits.train.take(rows)
        return {
            "kind": self.kinds[rows].astype(str),
            "clean": clean.pixels,
            "poisoned": poisoned,
            "label": np.array(clean.labels),
            "poisoned_label": np.array([self.labels[row] for row in rows]),
        }


def _plain(images: Images) -> "Dataset":
    return as_dataset(images, poison=["none"] * len(images))


def _positions(images: Images) -> dict[int, int]:
    return {example_id: i for i, example_id in enumerate(images.ids.tolist())}


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _tensor(pixels: np.ndarray) -> Tensor:
    """uint8 pixels as floats in [0, 1]."""
    return torch.from_numpy(pixels.astype(np.float32) / 255)


def _bytes(pixels: Tensor) -> np.ndarray:
    """Floats in [0, 1] as uint8 pixels."""
    return (pixels.detach().cpu() * 255).round().to(torch.uint8).numpy()
