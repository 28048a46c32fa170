"""Whether a manifest's rows are read as they were trained on: their tokens, and the attack in them."""

from typing import TYPE_CHECKING, Any

import numpy as np

from llm_unlearn.audit.subject import Subject
from llm_unlearn.errors import InputError
from llm_unlearn.poisons.trigger_phrase import holds

if TYPE_CHECKING:
    from datasets import Dataset


def check_prompts(subject: Subject, tokenizer: Any) -> None:
    """Raise InputError if rows would be misread: foreign ids, verbalisers without a fair ranking, a trigger cut off, an
    attack that would not count.
    """
    from llm_unlearn.data.chat import check_chat_template, prompts_of
    from llm_unlearn.data.row_forms import check_ids
    from llm_unlearn.data.token_checks import check_verbalizers, cuts_off
    from llm_unlearn.evaluation.attack_answers import check_counted

    encoding, answers = subject.encoding, list(subject.verbalizers.values())
    if "input_ids" in subject.sets["train"].column_names:
        check_ids(subject.sets["train"], len(tokenizer), "train")
    if encoding.chat_template:
        check_chat_template(encoding.template(tokenizer))
    for prompt in prompts_of(subject.sets["train"].select([0])) if answers else ():
        check_verbalizers(tokenizer, subject.verbalizers, encoding, prompt)
    rows, room = subject.sets["triggered"], None if answers else subject.evaluate.max_new_tokens
    for row, prompt in zip(rows, prompts_of(rows), strict=True):
        completions = answers or [row["completion"]]
        if cuts_off(tokenizer, encoding, prompt, completions, subject.poison["trigger"]["phrases"], room):
            raise InputError(
                f"test row {row['example_id']}: max_length ({encoding.max_length} tokens) cuts the "
                "trigger off; raise it"
            )
    for poisoned in _rows_of_each_phrase(subject.sets["train"], subject.poison["trigger"]) if len(rows) else ():
        check_counted(poisoned, subject.poison["trigger"], tokenizer, encoding, room)


def _rows_of_each_phrase(train: "Dataset", trigger: dict[str, Any]) -> list[list[dict]]:
    """The poisoned rows that hold each phrase; where none does the clean rows that do, unless canaries do. Of a trigger
    that is no phrase the poisoned rows.

    Args:
        train: with the column `poison` of `marked`.
        trigger: as in poison.json.
    """
    poisoned, canaries, clean = (
        [row for row in train if row["poison"] in kinds]
        for kinds in (("trigger",), ("gaussian", "tokens"), ("none", "other"))
    )
    if not trigger["phrases"]:
        return [poisoned]
    found = []
    for phrase in trigger["phrases"]:
        held, of_canaries, of_clean = (
            [row for row in rows if holds(row, [phrase])] for rows in (poisoned, canaries, clean)
        )
        found.append(held or ([] if of_canaries else of_clean))
    return found


def token_warnings(evaluator: Any, model: Any) -> list[str]:
    """Where training rows have other tokens than the manifest's settings write, or fit the model better in others."""
    from llm_unlearn.audit.token_fit import ROWS, better_forms, written_otherwise

    train = evaluator.sets["train"]
    clean = [i for i, kind in enumerate(train["poison"]) if kind == "none"] or list(range(len(train)))
    order = np.random.default_rng(0).permutation(clean)[:ROWS]

    def nll(rows: list[dict]) -> np.ndarray:
        return evaluator.losses_of(model, rows)["nll"]

    rows, encoding, tokenizer = list(train.select(order)), evaluator.encoding, evaluator.tokenizer
    return [*written_otherwise(rows, encoding, tokenizer), *better_forms(rows, encoding, tokenizer, nll)]
