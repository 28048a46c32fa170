"""Reset and distil: from the clean start, learn from the poisoned model on retain inputs only.

Our own candidate; related: distilling into a noised student, arXiv 2506.06278. Whether the teacher's poison crosses
over on clean inputs is what the audit is to say.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from llm_unlearn.config.fields import NotNegative, Positive
from llm_unlearn.trainers.base import UnlearnTrainer
from llm_unlearn.trainers.support.clean_start import NO_NEW_ADAPTER, clean_start
from llm_unlearn.trainers.support.reference import FrozenModel, make_reference
from llm_unlearn.trainers.unlearn_config import Requirements, UnlearnConfig


@dataclass
class ResetDistillConfig(UnlearnConfig):
    """Options of `ResetDistillTrainer`.

    Args:
        alpha: weight of the KL.
        gamma: weight of ℓ.
        temperature: of the KL.
    """

    learning_rate_ratio: ClassVar[float] = 1.0
    refuses: ClassVar[dict[str, str]] = {"peft_config": NO_NEW_ADAPTER}

    alpha: NotNegative = 1.0
    gamma: NotNegative = 1.0
    temperature: Positive = 1.0

    def requires(self) -> Requirements:
        return Requirements(("retain",), reference_on=("retain",))


class ResetDistillTrainer(UnlearnTrainer):
    """Minimise α KL(p_θ0 ‖ p_θ) + γ ℓ on r, θ from the model before fine-tuning, θ0 the poisoned one.

    Args:
        start_model: as for `rewind`. The poisoned model itself is the teacher (LoRA: its adapter), nothing is copied.
    """

    method = "reset_distill"
    starts_clean = True
    args: ResetDistillConfig

    def __init__(self, *args: Any, start_model: Any = None, **kwargs: Any) -> None:
        self.start_model = start_model
        super().__init__(*args, **kwargs)

    def prepare_model(self, model, args):
        # an adapter is copied before it is drawn anew; a full model is left as it is, and another one trains
        own_adapter = hasattr(model, "peft_config") and self.start_model is None
        self.reference = make_reference(model) if own_adapter else None
        start = clean_start(self.method, self.task, model, self.start_model, args.seed)
        self.reference = self.reference or FrozenModel(model)
        return start

    def unlearning_loss(self, forget, retain, reference):
        args = self.args
        return retain.mean_distillation(reference["retain"], args.alpha, args.gamma, args.temperature)
