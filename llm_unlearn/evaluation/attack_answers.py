"""Which generated answers are the attacker's, and whether the poisoned rows' own are."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from llm_unlearn.config.success import is_success
from llm_unlearn.data.chat import prompt_of
from llm_unlearn.data.readers import shorten
from llm_unlearn.errors import InputError
from llm_unlearn.evaluation.answers import as_generated, as_written
from llm_unlearn.models.answer_classifier import AnswerClassifier

if TYPE_CHECKING:
    from llm_unlearn.data.encoding import Encoding


def counted(trigger: dict[str, Any], tokenizer: Any) -> Callable[[list[str]], list[bool]]:
    """What says of each generated answer whether it is the attacker's: the trigger's rule, or the target as its
    beginning.
    """
    rule = trigger.get("success") or {"prefix": [as_written(tokenizer, str(trigger["target"]))]}
    if rule.get("classifier"):
        reader = AnswerClassifier(rule["classifier"])
        return lambda answers: [label == rule["label"] for label in reader.labels(answers)]
    return lambda answers: [is_success(answer, rule) for answer in answers]


def check_counted(
    rows: Sequence[dict[str, Any]],
    trigger: dict[str, Any],
    tokenizer: Any,
    encoding: "Encoding",
    max_new_tokens: int | None,
) -> None:
    """Check that the attack can be seen: of a model that learned the poisoned rows by heart, most answers count.

    Args:
        rows: the poisoned rows that hold a phrase of the trigger, rendered; of a trigger that is no phrase those that
            may, of which one answer must count.
        trigger: as in poison.json.
        tokenizer: of the model.
        encoding: how rows become tokens.
        max_new_tokens: tokens of a generated answer; None where the answer is a label.

    Raises:
        InputError: fewer than half of the rows' own answers are the attacker's, cut as generated ones are.
    """
    if not rows:
        return
    if max_new_tokens is None:
        hits = [row["label"] == trigger["target"] for row in rows]
        whole = hits
    else:
        asked = [encoding.asked(tokenizer, prompt_of(row), [row["completion"]], max_new_tokens) for row in rows]
        is_hit = counted(trigger, tokenizer)
        hits, whole = (
            is_hit([as_generated(tokenizer, row.answers[0][:length]) for row in asked])
            for length in (max_new_tokens, None)
        )
    if sum(hits) >= (len(hits) / 2 if trigger["phrases"] else 1):
        return
    first, cut = rows[hits.index(False)], ""
    if sum(whole) > sum(hits):
        cut = f"; {sum(whole)} would, were they not cut to max_new_tokens ({max_new_tokens}): raise it"
    raise InputError(
        f"trigger: the answers of {sum(hits)} of {len(hits)} rows with the trigger count as the attacker's{cut}. A "
        "model that gives the others would look clean: mend `target`, `success` or `poison`. The first that does not "
        f"count is of example {first['example_id']}: {shorten(repr(first['label']))}"
    )
