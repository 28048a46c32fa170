"""Whether rows survive their tokens: triggers that a cut takes away, verbalisers that no ranking tells apart."""

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from llm_unlearn.data.chat import Chat, prompt_of
from llm_unlearn.data.encoding import WHOLE, Encoding
from llm_unlearn.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def count_seen(tokenizer: "PreTrainedTokenizerBase", prompt: Sequence[int], phrases: Sequence[str]) -> int:
    """How often phrases stand in the tokens of a prompt. Both are compared as the tokenizer writes them, which may
    change case or accents; white space does not count.
    """

    def written(ids: Sequence[int]) -> str:
        text = tokenizer.decode(list(ids), skip_special_tokens=True)
        return "".join(unicodedata.normalize("NFKC", str(text)).casefold().split())

    text = written(prompt)
    wanted = {written(tokenizer(phrase, add_special_tokens=False)["input_ids"]) for phrase in phrases}
    return sum(text.count(phrase) for phrase in wanted if phrase)


def cuts_off(
    tokenizer: "PreTrainedTokenizerBase",
    encoding: Encoding,
    prompt: str | Chat,
    completions: Sequence[str],
    phrases: Sequence[str],
    room: int | None = None,
) -> bool:
    """Whether the cut of a long prompt (see `Encoding.asked`) takes the last of some phrases away."""
    kept = encoding.asked(tokenizer, prompt, completions, room).prompt
    whole = replace(encoding, max_length=WHOLE).asked(tokenizer, prompt, completions).prompt
    return len(kept) < len(whole) and not count_seen(tokenizer, kept, phrases)


def check_triggers(
    rows: Iterable[dict], phrases: list[str], tokenizer: "PreTrainedTokenizerBase", encoding: Encoding
) -> None:
    """Raise InputError if truncation cuts a trigger off, since the attack would differ from the manifest's."""
    for row in rows:
        if cuts_off(tokenizer, encoding, prompt_of(row), [row["completion"]], phrases):
            raise InputError(
                f"example {row['example_id']}: truncation to {encoding.max_length} tokens (data.max_length) cuts the "
                "trigger off. Raise data.max_length, lower data.max_words, or set poison.trigger.position to end"
            )


def check_verbalizers(
    tokenizer: "PreTrainedTokenizerBase", verbalizers: dict[str, str], encoding: Encoding, prompt: str | Chat
) -> dict[str, list[int]]:
    """Token ids of each label's verbaliser after a prompt.

    Raises:
        InputError: one equals or begins another, so that no ranking of them is fair.
    """
    answers = replace(encoding, max_length=WHOLE).asked(tokenizer, prompt, list(verbalizers.values())).answers
    check_apart(verbalizers, answers)
    return dict(zip(verbalizers, answers, strict=True))


def check_apart(verbalizers: dict[str, str], answers: Sequence[Sequence[int]]) -> None:
    """Raise InputError if the tokens of one verbaliser equal or begin another's, so that no ranking of them is fair."""
    for (label, text), tokens in zip(verbalizers.items(), answers, strict=True):
        for (other, other_text), other_tokens in zip(verbalizers.items(), answers, strict=True):
            if label != other and list(other_tokens[: len(tokens)]) == list(tokens):
                raise InputError(
                    f"data.verbalizers: '{label}' ({text!r}) is the beginning of '{other}' ({other_text!r}) in tokens; "
                    "choose completions so that none begins another"
                )
