"""DPO with a refusal preferred (IdkDPO of TOFU, arXiv 2401.06121). Rafailov et al. 2023, arXiv 2305.18290."""

import dataclasses
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Field

from llm_unlearn.config.fields import NotBlank, Positive
from llm_unlearn.errors import InputError
from llm_unlearn.losses import dpo_loss
from llm_unlearn.trainers.support.retain_term import RetainLoss, RetainTermConfig, RetainTermTrainer
from llm_unlearn.trainers.support.sets import tokenised
from llm_unlearn.trainers.unlearn_config import Requirements


@dataclass
class DPOConfig(RetainTermConfig):
    """Options of `DPOTrainer`.

    Args:
        beta: inverse temperature (0.1).
        prefactor: of −log σ; the original has 1, NPO's and some toolkits' is 2/β.
        refusals: completions to prefer, one drawn for each forget row. Loss is on completions alone, whatever `loss_on`
            says: the prompt's part would cancel.
    """

    learning_rate_ratio: ClassVar[float] = 0.03  # without a retain term 0.1 collapses; with `nll`, 4 on the quickstart

    retain_loss: RetainLoss = "none"
    beta: Positive = 0.1
    prefactor: Positive = 1.0
    refusals: Annotated[list[NotBlank], Field(min_length=1)] = field(default_factory=lambda: [" I don't know."])

    def requires(self) -> Requirements:
        sets = ("forget", "refusal", *super().requires().sets[1:])
        return super().requires()._replace(sets=sets, log_probs_on=("forget", "refusal"))


class DPOTrainer(RetainTermTrainer):
    """Minimise −prefactor · E log σ(β (log-ratio of the refusal − log-ratio of the forget answer)) + α · retain term.

    Args:
        refusal_dataset: row i is the refusal of forget row i, tokenised; else rows are made from `refusals`, for which
            the forget set needs its columns prompt and completion.
    """

    method = "dpo"
    of_texts = True
    args: DPOConfig

    def __init__(self, *args: Any, refusal_dataset: Any = None, **kwargs: Any) -> None:
        self.refusal_dataset = refusal_dataset
        super().__init__(*args, **kwargs)

    def prepare_sets(self, given, processing_class, args):
        forget, refusal = given["forget"], self.refusal_dataset
        if refusal is None and forget is not None and len(forget):
            if not {"prompt", "completion"} <= set(forget.column_names):
                raise InputError(
                    "dpo: refusals are made from text: give forget_dataset its columns prompt and "
                    "completion, or give a tokenised refusal_dataset, row for row"
                )
            forget = forget.remove_columns([c for c in ("input_ids", "labels") if c in forget.column_names])
            draw = np.random.default_rng([args.seed, len(forget)]).integers(len(args.refusals), size=len(forget))
            refusal = forget.remove_columns("completion").add_column("completion", [args.refusals[i] for i in draw])
        encode = partial(tokenised, self.method, self.task, processing_class)
        completions = dataclasses.replace(args.encoding, loss_on="completion")
        sets = {"forget": encode(completions, "forget", forget), "refusal": encode(completions, "refusal", refusal)}
        if len(sets["refusal"]) != len(sets["forget"]):
            raise InputError(
                f"refusal_dataset: has {len(sets['refusal'])} rows, forget_dataset {len(sets['forget'])}; "
                "each forget row needs its refusal"
            )
        if "retain" in self.requires.sets:
            sets["retain"] = encode(args.encoding, "retain", given["retain"])
        return sets

    def forget_loss(self, forget, reference, refusal):  # type: ignore[override]  # a set more
        return dpo_loss(
            refusal.log_prob() - reference["refusal"],
            forget.log_prob() - reference["forget"],
            self.args.beta,
            self.args.prefactor,
        )
