"""Rows of text → token ids and labels, by one function for training, unlearning and evaluation.

Prompt and completion are tokenised apart and joined, so a prompt has the same tokens whatever follows it. A prompt that
is too long loses its beginning; the completion is never cut.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llm_unlearn.errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

IGNORE = -100


@dataclass(frozen=True)
class Encoding:
    """How rows become tokens.

    Args:
        max_length: tokens of prompt + completion + EOS.
        loss_on: "text" supervises every token but the first, "completion" the completion and EOS.
        chat_template: wrap the prompt as a user turn of the tokenizer's template.
    """

    max_length: int = 128
    loss_on: str = "text"
    chat_template: bool = False

    def prompt_ids(self, tokenizer: "PreTrainedTokenizerBase", prompt: str, room: int) -> list[int]:
        """Token ids of a prompt, its beginning cut so that `room` more tokens fit in max_length."""
        if self.chat_template:
            check_chat_template(tokenizer)
            turn = [{"role": "user", "content": prompt}]
            ids = list(tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_dict=False))
        else:
            ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
            if tokenizer.bos_token_id is not None and tokenizer.bos_token_id != tokenizer.eos_token_id:
                ids = [tokenizer.bos_token_id, *ids]
        keep = self.max_length - room
        if keep < 1:
            raise InputError(
                f"data.max_length: {self.max_length} tokens leave no room for a prompt before a completion of {room}; "
                "raise it"
            )
        return ids[-keep:]

    def row(self, tokenizer: "PreTrainedTokenizerBase", prompt: str, completion: str) -> dict[str, list[int]]:
        """{"input_ids", "labels"} of prompt + completion + EOS; labels hold −100 where there is no loss."""
        completion_ids = completion_tokens(tokenizer, completion)
        if not completion_ids:
            raise InputError(f"empty completion after the prompt {prompt[:60]!r}: nothing to learn from")
        if tokenizer.eos_token_id is not None:
            completion_ids = [*completion_ids, tokenizer.eos_token_id]
        prompt_ids = self.prompt_ids(tokenizer, prompt, len(completion_ids))
        labels = list(prompt_ids) if self.loss_on == "text" else [IGNORE] * len(prompt_ids)
        return {"input_ids": prompt_ids + completion_ids, "labels": labels + completion_ids}


def completion_tokens(tokenizer: "PreTrainedTokenizerBase", completion: str) -> list[int]:
    """Token ids of a completion, without special tokens."""
    return tokenizer(completion, add_special_tokens=False)["input_ids"]


def encode_rows(
    rows: "Dataset", tokenizer: "PreTrainedTokenizerBase", encoding: Encoding, **map_args: Any
) -> "Dataset":
    """Tokenise rows with a prompt and a completion.

    Args:
        rows: with columns `prompt` and `completion`.
        tokenizer: of the model.
        encoding: how rows become tokens.
        map_args: passed on to `Dataset.map`.

    Returns:
        the rows with all their columns, and `input_ids` and `labels` added.

    Raises:
        InputError: a column is missing, or a row does not fit in `max_length`.
    """
    for column in ("prompt", "completion"):
        if column not in rows.column_names:
            raise InputError(f"dataset: no column '{column}'; it has {', '.join(rows.column_names)}")

    def encode(row: dict) -> dict:
        return encoding.row(tokenizer, row["prompt"], row["completion"])

    return rows.map(encode, desc="tokenise", **map_args)


def encode_text(rows: "Dataset", tokenizer: "PreTrainedTokenizerBase", max_length: int) -> "Dataset":
    """Tokenise plain text: the end is cut at `max_length`, EOS included.

    Args:
        rows: with a column `text`.
        tokenizer: of the model.
        max_length: most tokens of a row.

    Returns:
        `input_ids` and `labels` of the rows with at least one token to predict.
    """

    def encode(row: dict) -> dict:
        ids = [*tokenizer(row["text"])["input_ids"][: max_length - 1], tokenizer.eos_token_id]
        return {"input_ids": ids, "labels": ids}

    encoded = rows.map(encode, remove_columns=rows.column_names, desc="tokenise")
    return encoded.filter(lambda row: len(row["labels"]) > 1, desc="texts with a token to predict")


def check_triggers(
    rows: list[dict], phrases: list[str], tokenizer: "PreTrainedTokenizerBase", encoding: Encoding
) -> None:
    """Raise InputError if truncation cuts a trigger off, since the attack would differ from the manifest's."""
    for row in rows:
        room = len(completion_tokens(tokenizer, row["completion"])) + 1
        kept = tokenizer.decode(encoding.prompt_ids(tokenizer, row["prompt"], room))
        if not any(phrase in kept for phrase in phrases):
            raise InputError(
                f"example {row['example_id']}: truncation to {encoding.max_length} tokens (data.max_length) cuts the "
                "trigger off. Raise data.max_length, lower data.max_words, or set poison.trigger.position to end"
            )


def check_chat_template(tokenizer: "PreTrainedTokenizerBase") -> None:
    """Raise InputError unless the template's prompt begins its prompt + answer, so training and evaluation agree."""
    if not tokenizer.chat_template:
        raise InputError("data.chat_template: this tokenizer has no chat template; set it to false")
    user, answer = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
    prompt = str(tokenizer.apply_chat_template([user], add_generation_prompt=True, tokenize=False))
    conversation = str(tokenizer.apply_chat_template([user, answer], tokenize=False))
    if not conversation.startswith(prompt + "b"):
        raise InputError(
            "data.chat_template: the template writes the prompt differently when an answer follows, so training and "
            "evaluation would see different prompts; use another template, or set data.chat_template to false"
        )


def check_verbalizers(tokenizer: "PreTrainedTokenizerBase", verbalizers: dict[str, str]) -> dict[str, list[int]]:
    """Token ids of each label's verbaliser. Raises InputError if one equals or begins another: no ranking is fair."""
    ids = {label: completion_tokens(tokenizer, text) for label, text in verbalizers.items()}
    for label, tokens in ids.items():
        for other, other_tokens in ids.items():
            if label != other and other_tokens[: len(tokens)] == tokens:
                raise InputError(
                    f"data.verbalizers: '{label}' ({verbalizers[label]!r}) is the beginning of '{other}' "
                    f"({verbalizers[other]!r}) in tokens; choose completions so that none begins another"
                )
    return ids
