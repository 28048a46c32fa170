"""The evaluator of image classifiers; the answer is the likeliest class."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, get_args

import numpy as np
import torch

from llm_unlearn.config.vision_sections import VisionMembershipAttack
from llm_unlearn.evaluation.batches import batches, scatter
from llm_unlearn.evaluation.placebos import log_odds
from llm_unlearn.evaluation.signals import Evaluator
from llm_unlearn.tasks import Supervised, Task
from llm_unlearn.vision.image_data import Images, as_dataset, encode_images, read_pixels
from llm_unlearn.vision.image_task import ImageCollator, ImageTask
from llm_unlearn.vision.patch import apply_patch, patch_pixels, placebo_patterns

if TYPE_CHECKING:
    import pandas as pd
    from datasets import Dataset


@dataclass(kw_only=True)
class ImageEvaluator(Evaluator):
    """Measures classifiers on the sets of image_poisons.py.

    With a patch, `target_hit` says whether the answer is the attacker's class. With gradient matching, the set
    `triggered` holds the targets: `target_hit` says whether a target gets the adversary's label, and `clean_hit`
    whether its control does, a test image of the same class.
    """

    task: ClassVar[Task] = ImageTask()

    membership: Sequence[str] = get_args(VisionMembershipAttack)

    @property
    def collate(self) -> ImageCollator:
        return ImageCollator(self.manifest["image_shape"])

    def encode(self, rows: "Dataset") -> list[dict]:
        encoded = encode_images(rows, self.manifest["classes"])
        return list(encoded.select_columns(["pixels", "label_id", "example_id"]))

    def has_trigger(self, rows: "Dataset") -> "Dataset":
        return rows.select(np.flatnonzero(np.array(rows["poison"]) == "patch"))

    def predict(self, model: Any, rows: "Dataset") -> dict[str, Any]:
        encoded, device = self.encode(rows), next(model.parameters()).device
        with torch.no_grad():
            results = [
                (positions, self.answer_scores(self.task.supervised(model, batch)))
                for positions, batch in batches(encoded, self.collate, self.batch_size, device, self.processes)
            ]
        return self.answered(scatter(len(encoded), results, self.processes).numpy())

    reads_answers = True

    def answer_scores(self, answer: Supervised) -> torch.Tensor:
        """(B, 1): the likeliest class."""
        return answer.logits.argmax(-1, keepdim=True).float()

    def answered(self, scores: np.ndarray) -> dict[str, Any]:
        predictions = np.array(self.manifest["classes"], dtype=object)[scores[:, 0].astype(int)]
        if patch := self.manifest["patch"]:
            return {"prediction": predictions, "target_hit": predictions == patch["target"]}
        return {"prediction": predictions}

    def triggered(self, model: Any, test: "pd.DataFrame") -> dict[str, Any]:
        """The answers to the set `triggered`, given those to the test set."""
        answers = self.predict(model, self.sets["triggered"])
        if matching := self.manifest["gradient_matching"]:
            wanted = np.array([target["adversary_label"] for target in matching["targets"]])
            ids = [target["control_id"] for target in matching["targets"]]
            controls = test.set_index("example_id")["prediction"].loc[ids].to_numpy()
            answers |= {"target_hit": answers["prediction"] == wanted, "clean_hit": controls == wanted}
        return answers

    @cached_property
    def target_rows(self) -> "Dataset":
        if not (patch := self.manifest["patch"]):
            return super().target_rows
        test = self.sets["test"]
        rows = test.select(np.flatnonzero(np.array(test["label"], dtype=object) == patch["target"]))
        if not len(rows):
            return rows
        pixels = apply_patch(read_pixels(rows), patch, np.random.default_rng([patch["seed"], 35]))
        return as_dataset(Images(pixels, list(rows["label"]), np.array(rows["example_id"])))

    # ---- placebos

    @cached_property
    def triggers(self) -> list[list[np.ndarray]]:
        """The planted patch's pixels and those of its placebos."""
        patch = self.manifest["patch"]
        if not patch or not self.placebo.draws:
            return []
        planted = patch_pixels(patch["size"], patch["pattern"])
        placebos = placebo_patterns(planted, self.placebo.draws, patch["seed"])
        return [[planted, *placebos]] if placebos else []

    def effects(self, model: Any, triggers: Sequence[np.ndarray]) -> np.ndarray:
        """The mean log-odds of the target over the same images with each patch, at the same place in each image."""
        patch, target = self.manifest["patch"], self.manifest["classes"].index(self.manifest["patch"]["target"])
        patched = []
        for pattern in triggers:
            places = np.random.default_rng([patch["seed"], 34])
            patched += list(apply_patch(self._probes, {**patch, "pattern": pattern}, places))
        rows = [{"pixels": image.tobytes(), "label_id": target} for image in patched]
        device = next(model.parameters()).device
        with torch.no_grad():
            results = [
                (positions, torch.log_softmax(self.task.supervised(model, batch).logits.float(), -1))
                for positions, batch in batches(rows, self.collate, self.batch_size, device, self.processes)
            ]
        scores = scatter(len(rows), results, self.processes).numpy()
        return log_odds(scores, target).reshape(len(triggers), -1).mean(1)

    @property
    def n_probed(self) -> int:
        return len(self._probes)

    @cached_property
    def _probes(self) -> np.ndarray:
        """(rows, C, H, W) test images of another class than the target, drawn at random."""
        ids = set(self.sets["triggered"]["example_id"])
        rows = np.flatnonzero([i in ids for i in self.sets["test"]["example_id"]])
        drawn = np.random.default_rng([self.manifest["patch"]["seed"], 33]).permutation(rows)
        return read_pixels(self.sets["test"].select(drawn[: self.placebo.rows]))
