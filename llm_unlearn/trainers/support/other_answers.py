"""Methods that show other answers to the prompts of the forget set: refusals, alternatives, the right ones."""

import dataclasses
from functools import partial
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from llm_unlearn.config.fields import NotBlank
from llm_unlearn.data.columns import with_column
from llm_unlearn.data.row_forms import as_dataset
from llm_unlearn.errors import InputError
from llm_unlearn.trainers.support.retain_term import RetainTermConfig, RetainTermTrainer
from llm_unlearn.trainers.support.sets import tokenised

Refusals = Annotated[list[NotBlank], Field(min_length=1)]


class AnswersTrainer(RetainTermTrainer):
    """A method gives the name of the set in `answers`, its rows where they are not given in `answers_to`.

    Row i of the set answers forget row i, and both are drawn together. Loss on either is on completions alone, whatever
    `loss_on` says.
    """

    answers: str
    args: RetainTermConfig

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.given_answers = kwargs.pop(f"{self.answers}_dataset", None)
        super().__init__(*args, **kwargs)

    def answers_to(self, forget: Any, processing_class: Any, args: Any) -> Any:
        """The rows that answer the forget rows.

        Args:
            forget: a dataset; of texts, without the tokens of them.
            processing_class: the tokenizer.
            args: the method's config.
        """
        raise TypeError(f"{type(self).__name__} has no answers_to")

    def prepare_sets(self, given: dict[str, Any], processing_class: Any, args: Any) -> dict[str, Any]:
        forget, answers, name = given["forget"], self.given_answers, self.answers
        forget = None if forget is None else as_dataset(forget, "forget_dataset")
        if answers is None and forget is not None and len(forget):
            forget = as_text(forget)
            answers = self.answers_to(forget, processing_class, args)
        encode = partial(tokenised, self.method, self.task, processing_class)
        completions = dataclasses.replace(args.encoding, loss_on="completion")
        rows = {"forget": forget, name: answers, "retain": given["retain"]}
        encodings = {"forget": completions, name: completions, "retain": args.encoding}
        sets = {each: encode(encodings[each], each, rows[each]) for each in self.requires.sets}
        if forget is not None and len(sets[name]) != len(forget):
            raise InputError(
                f"{name}_dataset: has {len(sets[name])} rows, forget_dataset {len(forget)}; "
                "each forget row needs its answer"
            )
        return sets


def as_text(rows: Any) -> Any:
    """Rows with columns prompt and completion without the tokens of them, which may have been made with another loss;
    others as they are.
    """
    if not {"prompt", "completion"} <= set(rows.column_names):
        return rows
    encoded = ("input_ids", "labels", "completion_mask")
    return rows.remove_columns([c for c in encoded if c in rows.column_names])


def with_completions(rows: Any, completions: list[str]) -> Any:
    """The rows with other completions.

    Args:
        rows: a dataset with columns prompt and completion.
        completions: one for each row.

    Raises:
        InputError: they are no text.
    """
    if not {"prompt", "completion"} <= set(rows.column_names):
        raise InputError(
            "forget_dataset: answers are made from text: give it columns prompt and completion, or give the answers "
            "as a tokenised dataset (refusal_dataset, relabelled_dataset), row for row"
        )
    return with_column(rows, "completion", completions)


class RefusalsTrainer(AnswersTrainer):
    """A method whose other answers are refusals.

    The keyword `refusal_dataset` gives these rows, tokenised: row i is the refusal of forget row i; else rows are
    made from `refusals`, for which the forget set needs its columns prompt and completion.
    """

    of_texts = True
    answers = "refusal"

    def answers_to(self, forget, processing_class, args):
        draw = np.random.default_rng([args.seed, len(forget)])
        chosen = draw.integers(len(args.refusals), size=len(forget))
        return with_completions(forget, [args.refusals[i] for i in chosen])
