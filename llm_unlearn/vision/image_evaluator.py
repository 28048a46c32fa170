"""The evaluator of image classifiers: an answer is the likeliest class."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, get_args

import numpy as np
import torch

from llm_unlearn.config.vision_sections import VisionMembershipAttack
from llm_unlearn.evaluation.batches import batches, scatter
from llm_unlearn.evaluation.signals import Evaluator
from llm_unlearn.tasks import Task
from llm_unlearn.vision.image_data import encode_images
from llm_unlearn.vision.image_task import ImageCollator, ImageTask

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(kw_only=True)
class ImageEvaluator(Evaluator):
    """Measures classifiers on the sets of vision/corrupt.py.

    With a patch, `target_hit` is whether the answer is the attacker's class. With gradient matching the set `triggered`
    holds the targets: `target_hit` is whether a target gets the adversary's label, `clean_hit` whether its control, a
    test image of the same class, does.
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
        answers = self._classes(model, rows)
        if patch := self.manifest["patch"]:
            return {"prediction": answers, "target_hit": answers == patch["target"]}
        return {"prediction": answers}

    def triggered(self, model: Any) -> dict[str, Any]:
        found = self.predict(model, self.sets["triggered"])
        if matching := self.manifest["gradient_matching"]:
            place = {example_id: i for i, example_id in enumerate(self.sets["test"]["example_id"])}
            wanted = np.array([target["adversary_label"] for target in matching["targets"]])
            controls = self.sets["test"].select([place[target["control_id"]] for target in matching["targets"]])
            found |= {
                "target_hit": found["prediction"] == wanted,
                "clean_hit": self._classes(model, controls) == wanted,
            }
        return found

    @torch.no_grad()
    def _classes(self, model: Any, rows: "Dataset") -> np.ndarray:
        """The likeliest class of every row, (n,) texts."""
        encoded, device = self.encode(rows), next(model.parameters()).device
        results = [
            (positions, self.task.supervised(model, batch).logits.argmax(-1))
            for positions, batch in batches(encoded, self.collate, self.batch_size, device, self.processes)
        ]
        classes = scatter(len(encoded), results, self.processes).numpy().astype(int)
        return np.array(self.manifest["classes"], dtype=object)[classes]
