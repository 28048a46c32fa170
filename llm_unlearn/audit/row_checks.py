"""Whether a manifest's rows are read as they were trained on: their tokens, and the attack in them."""

from typing import Any

import numpy as np

from llm_unlearn.audit.subject import Subject
from llm_unlearn.audit.user_poison import rows_of_each_phrase
from llm_unlearn.errors import InputError


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
    for poisoned in rows_of_each_phrase(subject.sets["train"], subject.poison["trigger"]) if len(rows) else ():
        check_counted(poisoned, subject.poison["trigger"], tokenizer, encoding, room)


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
