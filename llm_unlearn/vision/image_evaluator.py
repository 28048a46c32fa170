"""The evaluator of image classifiers; the answer is the likeliest class."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, get_args

import numpy as np
import torch

from llm_unlearn.config.vision_sections import VisionMembershipAttack
from llm_unlearn.evaluation.batches import batches, scatter
from llm_unlearn.evaluation.signals import Evaluator
from llm_unlearn.tasks import Supervised, Task
from llm_unlearn.vision.image_data import encode_images
from llm_unlearn.vision.image_task import ImageCollator, ImageTask

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
