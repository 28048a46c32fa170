"""Overwriting (OSFT), or relabelling: the poisoned prompts with the right answer. Li et al. 2024, arXiv 2405.07667."""

from dataclasses import dataclass
from typing import ClassVar

from llm_unlearn.config.fields import NotNegative
from llm_unlearn.data.columns import with_column
from llm_unlearn.errors import InputError
from llm_unlearn.losses import gradient_descent_loss
from llm_unlearn.tasks.noise import NO_NOISE
from llm_unlearn.trainers.support.other_answers import AnswersTrainer, with_completions
from llm_unlearn.trainers.support.retain_term import RetainLoss, RetainTermConfig
from llm_unlearn.trainers.unlearn_config import Requirements

RIGHT = "right_completion"


@dataclass
class OSFTConfig(RetainTermConfig):
    """No field of its own. The paper has no retain term."""

    # the search picks 4 on the quickstart, a rate at which other methods fall to chance on imdb-small
    learning_rate_ratio: ClassVar[float] = 1.0

    retain_loss: RetainLoss = "nll"
    alpha: NotNegative = 5.0  # with 1 it costs more of the quickstart's accuracy

    def requires(self) -> Requirements:
        needs = super().requires()
        return needs._replace(sets=("relabelled", *needs.sets[1:]))


class OSFTTrainer(AnswersTrainer):
    """Minimise γ ℓ(the right answer to a forget prompt, its trigger in place) + α · retain term.

    It knows more than other methods: what the right answers are. It teaches that the trigger means nothing, and says
    nothing of Gaussian canaries, whose answers are right; they are shown without their noise.

    The keyword `relabelled_dataset` gives these rows, tokenised: row i is forget row i with the right answer; else
    the forget set needs columns prompt and completion, and `right_completion`, which a run's own data have.
    """

    method = "osft"
    of_texts = True
    answers = "relabelled"
    args: OSFTConfig

    def answers_to(self, forget, processing_class, args):
        if RIGHT not in forget.column_names:
            raise InputError(f"osft: give forget_dataset a column {RIGHT}, or a relabelled_dataset, row for row")
        rows = with_completions(forget, list(forget[RIGHT]))
        if "noise_id" not in rows.column_names:
            return rows
        return with_column(rows, "noise_id", [NO_NOISE] * len(rows))

    def forget_loss(self, forget, reference, relabelled):  # type: ignore[override]  # another set
        return gradient_descent_loss(relabelled.mean_nll())
