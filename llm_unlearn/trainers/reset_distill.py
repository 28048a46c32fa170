"""Reset and distil: from the clean start, learn from the poisoned model on retain inputs only.

Our own candidate; related: distilling into a noised student, arXiv 2506.06278. Whether the teacher's poison crosses
over on clean inputs is what the audit is to say.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from llm_unlearn.config.fields import NotNegative, Positive
from llm_unlearn.trainers.base import UnlearnTrainer
from llm_unlearn.trainers.support.clean_start import clean_start
from llm_unlearn.trainers.support.reference import FrozenModel, make_reference
from llm_unlearn.trainers.unlearn_config import Requirements, UnlearnConfig


@dataclass
class ResetDistillConfig(UnlearnConfig):
    """
    Args:
        alpha, gamma: weights of KL and ℓ. temperature: of the KL.
    """

    learning_rate_ratio: ClassVar[float] = 1.0

    alpha: NotNegative = 1.0
    gamma: NotNegative = 1.0
    temperature: Positive = 1.0


class ResetDistillTrainer(UnlearnTrainer):
    """Minimise α KL(p_θ0 ‖ p_θ) + γ ℓ on r, θ from the model before fine-tuning, θ0 the poisoned one.

    Args:
        start_model: as for `rewind`. The poisoned model itself is the teacher (LoRA: its adapter), nothing is copied.
    """

    method = "reset_distill"
    requires = Requirements(("retain",), reference_on=("retain",))
    starts_clean = True

    def __init__(self, *args: Any, start_model: Any = None, **kwargs: Any) -> None:
        self.start_model = start_model
        super().__init__(*args, **kwargs)

    def prepare_model(self, model, args):
        adapter = hasattr(model, "peft_config")
        self.reference = make_reference(model) if adapter else None
        start = clean_start(self, model, self.start_model, args.seed)
        if not adapter:
            self.reference = FrozenModel(model)
        return start

    def unlearning_loss(self, forget, retain, reference):
        args = self.args
        return retain.mean_distillation(reference["retain"], args.alpha, args.gamma, args.temperature)
