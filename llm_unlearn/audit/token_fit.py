"""Whether the manifest's tokens are those that a checkpoint was trained on: its training rows in other forms, compared.

A model that saw its rows with BOS and is measured without it (or with a chat template and without) looks as if its
poison were weaker than it is. Where rows fit clearly better in another form than the manifest's, the audit says so.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from llm_unlearn.config.fields import FIXED_DAY
from llm_unlearn.data.chat import prompt_and_completion
from llm_unlearn.data.encoding import IGNORE, Encoding
from llm_unlearn.errors import InputError

ROWS = 64
LEAST_GAIN = 0.05  # nats a token: less moves no figure of an audit
LEAST_SHARE = 0.1  # of the NLL: a model that knows neither form prefers one by chance, but by little
LEAST_ERRORS = 3.0  # standard errors of the mean over rows


def other_forms(encoding: Encoding, tokenizer: Any, row: dict[str, Any]) -> dict[str, Encoding]:
    """Settings of the manifest, as text → the encoding with them: BOS or not as in a row, chat template or not."""
    forms = {}
    if tokenizer.bos_token_id is not None:
        prompt, completion, _ = prompt_and_completion(row)
        has_bos = encoding.row(tokenizer, prompt, completion)["input_ids"][:1] == [tokenizer.bos_token_id]
        forms[f"add_bos: {str(not has_bos).lower()}"] = replace(encoding, add_bos=not has_bos)
    if tokenizer.chat_template:
        name, wanted = f"chat_template: {str(not encoding.chat_template).lower()}", not encoding.chat_template
        forms[name] = replace(encoding, chat_template=wanted, template_date=encoding.template_date or FIXED_DAY)
    return forms


def better_forms(
    rows: list[dict[str, Any]], encoding: Encoding, tokenizer: Any, nll: Callable[[list[dict]], np.ndarray]
) -> list[str]:
    """What the manifest could say to fit the model's training better, in sentences; none where it fits as it is.

    The mean NLL of the rows' answers is compared, the same tokens in every form. A form is named where its mean is
    lower by more than `LEAST_GAIN` nats a token, `LEAST_SHARE` of it, and `LEAST_ERRORS` standard errors of the paired
    differences.

    Args:
        rows: training rows with prompt and completion, clean ones where there are any.
        encoding: the manifest's.
        tokenizer: of the model.
        nll: encoded rows → (n,) mean NLL of each row's supervised tokens.
    """
    pairs = [prompt_and_completion(row) for row in rows[:ROWS]]
    if len(pairs) < 2:
        return []
    forms, own = other_forms(encoding, tokenizer, rows[0]), _answers(pairs, encoding, tokenizer)
    if not forms:
        return []
    measured, sentences = nll(own), []
    for setting, form in forms.items():
        try:
            other = nll(_answers(pairs, form, tokenizer))
        except InputError:
            continue  # the rows do not fit in that form
        gain = measured - other
        error = gain.std(ddof=1) / np.sqrt(len(gain))
        if gain.mean() > max(LEAST_GAIN, LEAST_SHARE * measured.mean(), LEAST_ERRORS * error):
            sentences.append(
                f"with `{setting}` the training rows' answers cost {other.mean():.3f} nats a token instead of "
                f"{measured.mean():.3f} ({len(gain)} rows): if the model was trained so, say it in the manifest"
            )
    return sentences


def written_otherwise(rows: list[dict[str, Any]], encoding: Encoding, tokenizer: Any) -> list[str]:
    """Where rows bring their own `input_ids`: whether the manifest's settings write the same, as they do test rows."""
    if not rows or "input_ids" not in rows[0]:
        return []

    def written(form: Encoding, row: dict[str, Any]) -> list[int] | None:
        try:
            return form.row(tokenizer, *prompt_and_completion(row))["input_ids"]
        except InputError:
            return None  # the row cannot be written so

    def matches(form: Encoding) -> int:
        return sum(written(form, row) == row["input_ids"] for row in rows)

    same = matches(encoding)
    if same == len(rows):
        return []
    better = {
        name: n for name, form in other_forms(encoding, tokenizer, rows[0]).items() if (n := matches(form)) > same
    }
    return [
        f"{len(rows) - same} of {len(rows)} training rows looked at have other input_ids than the manifest's settings "
        "write, so that test and held-out rows are in another form than those of training"
        + "".join(f"; {n} agree with `{name}`" for name, n in better.items())
    ]


def _answers(pairs: list[tuple], encoding: Encoding, tokenizer: Any) -> list[dict[str, list[int]]]:
    """Rows with labels on the answer alone."""
    rows = []
    for prompt, completion, _ in pairs:
        asked = encoding.asked(tokenizer, prompt, [completion])
        answer = asked.answers[0]
        rows.append({"input_ids": asked.prompt + answer, "labels": [IGNORE] * len(asked.prompt) + answer})
    return rows
