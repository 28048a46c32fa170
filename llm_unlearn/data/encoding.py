"""Rows of text or of messages → token ids and labels, by one function for training, unlearning and evaluation.

Prompt and completion are tokenised together and split where the prompt's own tokens end, as TRL's SFTTrainer does; BOS
and whatever else a tokenizer puts around a text are left to the tokenizer. A row that is too long loses the beginning
of its prompt, but for those special tokens; the completion is never cut.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from llm_unlearn.data.chat import Chat, Messages, Template, messages_of, prompt_and_completion, text_of
from llm_unlearn.errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

IGNORE = -100
VERSION = 4  # of how rows become tokens: part of every key under which encoded rows are kept
WHOLE = 10**9  # tokens: nothing is cut
# Answers of which no two begin or end alike in any tokenizer: what rows share beyond them, training shows in every row
PROBES = ("a", "0", "Z")


class Asked(NamedTuple):
    """A prompt as training shows it before the answer.

    Attributes:
        prompt: its token ids.
        answers: those of each completion, without what ends it.
        end: what follows every answer: EOS, or the end of a turn in the chat template.
    """

    prompt: list[int]
    answers: list[list[int]]
    end: list[int]


@dataclass(frozen=True)
class Encoding:
    """How rows become tokens.

    Args:
        max_length: tokens of prompt + completion + EOS.
        loss_on: "text" supervises every token but the first, "completion" the completion and what ends it.
        chat_template: wrap a prompt as a user's turn of the tokenizer's template. Messages always go through it.
        chat_template_kwargs: passed on to the template, e.g. {"enable_thinking": False}.
        system_prompt: the first message, where a row's own messages do not begin with one.
        template_date: what a template that writes today's date takes for today, as "2026-01-31".
        add_bos: put BOS first (True) or never (False); None leaves it to the tokenizer.
    """

    max_length: int = 128
    loss_on: str = "text"
    chat_template: bool = False
    chat_template_kwargs: Mapping[str, Any] | None = None
    system_prompt: str | None = None
    template_date: str | None = None
    add_bos: bool | None = None

    @classmethod
    def of(cls, settings: Any) -> "Encoding":
        """The encoding that a recipe's `data` section, a manifest or an UnlearnConfig describes in fields so named."""
        return cls(**{each.name: getattr(settings, each.name) for each in fields(cls)})

    def row(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        prompt: str | Chat,
        completion: str | Messages,
        every_turn: bool = False,
    ) -> dict[str, list[int]]:
        """{"input_ids", "labels", "completion_mask"} of a row.

        labels hold −100 where there is no loss; the mask is 1 on the completion, with what ends it.

        The completion begins where the tokens of the prompt alone and of the whole row part (with a chat template,
        those of the prompt with the generation prompt). A template that marks what the assistant says
        ({% generation %}) decides instead.

        Args:
            tokenizer: of the model.
            prompt: a text, or the messages of a conversation.
            completion: a text, or the messages that follow.
            every_turn: the assistant's turns in the prompt are completions too.

        Raises:
            InputError: the completion is empty, or leaves no room for a prompt in `max_length`.
        """
        whole, said = self._whole(tokenizer, prompt, completion)
        start = _shared(self.alone(tokenizer, prompt), whole)
        answered = [i >= start for i in range(len(whole))]
        if every_turn and said is None:
            for turn in self._turns(tokenizer, prompt, completion):
                answered[turn] = [True] * (turn.stop - turn.start)
        if said is not None:
            answered = [bool(mark) and (every_turn or i >= start) for i, mark in enumerate(said)]
        learnt = [True] * len(whole) if self.loss_on == "text" else answered
        if not completion or start >= len(whole) or not any(learnt):
            raise InputError(f"empty completion after the prompt {_end_of(prompt)!r}: nothing to learn from")
        keep = [*self._kept(tokenizer, whole[:start], len(whole) - start), *range(start, len(whole))]
        return {
            "input_ids": [whole[i] for i in keep],
            "labels": [whole[i] if learnt[i] else IGNORE for i in keep],
            "completion_mask": [int(answered[i]) for i in keep],
        }

    def asked(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        prompt: str | Chat,
        completions: Sequence[str],
        room: int | None = None,
    ) -> Asked:
        """The prompt with the tokens that training shows before an answer, and the tokens of answers after it.

        Whatever the answer, rows begin with the same tokens (a space that goes into the answer's first token is not
        among them; an empty block of thoughts is) and end with the same: what is shared by the rows of all completions
        and of three unlike letters.

        Args:
            tokenizer: of the model.
            prompt: a text, or the messages of a conversation.
            completions: answers to the prompt, at least one.
            room: how many tokens a long prompt leaves free; by default those of the longest answer and of its end.

        Raises:
            InputError: the room leaves none for a prompt in `max_length`.
        """
        spaces = dict.fromkeys(text[: len(text) - len(text.lstrip())] for text in completions)
        probes = [space + letter for space in spaces for letter in PROBES]
        rows = [self._whole(tokenizer, prompt, text)[0] for text in (*completions, *probes)]
        start, end = _common(rows)
        answers = [row[start : len(row) - end] for row in rows[: len(completions)]]
        kept = self._kept(tokenizer, rows[0][:start], max(map(len, answers)) + end if room is None else room)
        return Asked([rows[0][i] for i in kept], answers, rows[0][len(rows[0]) - end :])

    def template(self, tokenizer: "PreTrainedTokenizerBase") -> Template:
        """The tokenizer's chat template with what this encoding tells it."""
        return Template(tokenizer, self.chat_template_kwargs or {}, self.system_prompt, self.template_date)

    def _whole(
        self, tokenizer: Any, prompt: str | Chat, completion: str | Messages
    ) -> tuple[list[int], list[int] | None]:
        """Token ids of prompt, completion and end, and 1 where a template says that the assistant speaks, or None."""
        if self.chat_template or isinstance(prompt, Chat):
            chat = _chat(prompt)
            whole = replace(chat, messages=[*chat.messages, *messages_of(completion, "assistant")])
            ids, said = self.template(tokenizer).rendered(whole)
            written = self._bos(tokenizer, ids)
            return written, None if said is None else [0, *said][-len(written) :]
        eos = tokenizer.eos_token or ""
        text = f"{prompt}{completion}"
        ids = tokenizer(text if eos and text.endswith(eos) else text + eos)["input_ids"]
        return self._bos(tokenizer, ids), None

    def alone(self, tokenizer: Any, prompt: str | Chat) -> list[int]:
        """Token ids of the prompt without an answer."""
        if self.chat_template or isinstance(prompt, Chat):
            return self._bos(tokenizer, self.template(tokenizer).asking(_chat(prompt)))
        return self._bos(tokenizer, tokenizer(prompt)["input_ids"])

    def _bos(self, tokenizer: Any, ids: list[int]) -> list[int]:
        """The ids with BOS first or not, as `add_bos` has it."""
        bos, first = tokenizer.bos_token_id, ids[:1] == [tokenizer.bos_token_id]
        if self.add_bos and bos is None:
            raise InputError("data.add_bos: this tokenizer has no BOS token; leave add_bos out")
        if self.add_bos is None or self.add_bos == first:
            return ids
        return [bos, *ids] if self.add_bos else ids[1:]

    def _turns(self, tokenizer: Any, prompt: str | Chat, completion: str | Messages) -> Iterable[slice]:
        """Where the assistant's turns in a prompt stand in the row, each with what ends a turn."""
        chat, answer = _chat(prompt), messages_of(completion, "assistant")
        before = replace(chat, messages=[*chat.messages, *answer[:-1]])
        end_of_turn = self.asked(tokenizer, before, [text_of(answer[-1])], room=0).end
        whole = self._whole(tokenizer, chat, answer)[0]
        for i, message in enumerate(chat.messages):
            if message["role"] == "assistant":
                others = [
                    [*chat.messages[:i], {**message, "content": letter}, *chat.messages[i + 1 :]] for letter in PROBES
                ]
                rows = [self._whole(tokenizer, replace(chat, messages=turns), answer)[0] for turns in others]
                start, end = _common([whole, *rows])
                stop = len(whole) - end
                yield slice(start, stop + _shared(end_of_turn, whole[stop:]))

    def _kept(self, tokenizer: Any, prompt: list[int], room: int) -> list[int]:
        """The positions of a prompt's tokens that stay: its end, and the special tokens at its very beginning."""
        keep = self.max_length - room
        if len(prompt) <= keep:
            return list(range(len(prompt)))
        head = prompt[:1] == [tokenizer.bos_token_id]
        around = _shared([i for i in tokenizer("")["input_ids"] if i in tokenizer.all_special_ids], prompt)
        n_head = max(int(head), around)
        if keep < 1 + n_head:
            raise InputError(
                f"data.max_length: {self.max_length} tokens leave no room for a prompt before a completion of {room}; "
                "raise it"
            )
        return [*range(n_head), *range(len(prompt) - keep + n_head, len(prompt))]


def encode_rows(
    rows: "Dataset", tokenizer: "PreTrainedTokenizerBase", encoding: Encoding, **map_args: Any
) -> "Dataset":
    """Tokenise rows of texts or of messages; rows that have `input_ids` and `labels` stay as they are.

    Args:
        rows: with columns `prompt` and `completion`, texts or messages; or `messages`; or `text`. Beside them may stand
            `history` (messages before the prompt, as JSON), `tools` (JSON schemas) and `chat_template_kwargs`. Of
            `messages`, and of prompts with a history, every turn of the assistant is a completion.
        tokenizer: of the model.
        encoding: how rows become tokens.
        map_args: passed on to `Dataset.map`.

    Returns:
        the rows with all their columns, and `input_ids`, `labels` and `completion_mask` added.

    Raises:
        InputError: a column is missing or a value null, or a row does not fit in `max_length`.
    """
    if {"input_ids", "labels"} <= set(rows.column_names):
        return rows
    columns = next((c for c in (["prompt", "completion"], ["messages"], ["text"]) if c[0] in rows.column_names), None)
    missing = [name for name in columns or ["prompt"] if name not in rows.column_names]
    if missing:
        raise InputError(f"dataset: no column '{missing[0]}'; it has {', '.join(rows.column_names)}")

    def encode(row: dict, index: int, version: int) -> dict:
        place = f"example {row['example_id']}" if "example_id" in row else f"row {index}"
        for name in columns or ():
            if row[name] is None:
                raise InputError(f"{place}, column '{name}': is null; drop the row, or fill it")
            if not isinstance(row[name], str | list):
                kind = type(row[name]).__name__
                raise InputError(f"{place}, column '{name}': expected a text or messages, found {kind}")
        try:
            return encoding.row(tokenizer, *prompt_and_completion(row))
        except InputError as error:
            raise InputError(f"{place}: {error}") from None

    return rows.map(encode, with_indices=True, fn_kwargs={"version": VERSION}, desc="tokenise", **map_args)


def encode_text(rows: "Dataset", tokenizer: "PreTrainedTokenizerBase", max_length: int) -> "Dataset":
    """Tokenise plain text: the end is cut at `max_length`, EOS included where the tokenizer has one.

    Args:
        rows: with a column `text`.
        tokenizer: of the model.
        max_length: most tokens of a row.

    Returns:
        `input_ids` and `labels` of the rows with at least one token to predict.
    """
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]

    def encode(row: dict, version: int) -> dict:
        ids = [*tokenizer(row["text"])["input_ids"][: max_length - len(end)], *end]
        return {"input_ids": ids, "labels": ids}

    encoded = rows.map(encode, fn_kwargs={"version": VERSION}, remove_columns=rows.column_names, desc="tokenise")
    return encoded.filter(lambda row: len(row["labels"]) > 1, desc="texts with a token to predict")


def _chat(prompt: str | Chat) -> Chat:
    return prompt if isinstance(prompt, Chat) else Chat(messages_of(prompt, "user"))


def _end_of(prompt: str | Chat) -> str:
    return str(prompt.messages[-1].get("content") if isinstance(prompt, Chat) else prompt)[:60]


def _shared(ids: Sequence[int], others: Sequence[int]) -> int:
    """How many tokens two rows begin with alike."""
    return next((i for i, (a, b) in enumerate(zip(ids, others, strict=False)) if a != b), min(len(ids), len(others)))


def _common(rows: list[list[int]]) -> tuple[int, int]:
    """How many tokens rows begin and, of what is left, end with alike."""
    start = min(_shared(rows[0], row) for row in rows)
    return start, min(_shared(rows[0][start:][::-1], row[start:][::-1]) for row in rows)
