"""Conversations → token ids by a tokenizer's chat template, as training frameworks do it."""

import contextlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import date
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

from llm_unlearn.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Messages = list[dict[str, Any]]

BESIDE = ("tools", "chat_template_kwargs")  # columns of a row that the template is told of
_WRITTEN = ("tool_calls", "reasoning_content", "reasoning", "thinking", "name")  # of a message, beside its content
_SPEAKERS = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "model": "assistant"}  # of ShareGPT's `from`
_MARK = "Zq0"  # a content that no template writes by itself
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
_CLOCK = re.compile(r"strftime_now\(\s*(['\"])(.+?)\1")
# A macro shadows the clock that transformers gives to templates; its text takes no room in what is written
_PINNED_CLOCK = (
    "{% macro strftime_now(f) -%}{%- if f not in pinned_clock -%}{{ raise_exception('unknown date format ' ~ f) }}"
    "{%- endif -%}{{ pinned_clock[f] }}{%- endmacro +%}"
)


@dataclass(frozen=True)
class Chat:
    """The messages before an answer.

    Args:
        messages: {"role", "content", …} each; a content may be a list of parts, {"type": "text", "text"}.
        tools: JSON schemas of the functions that the template is told of.
        arguments: of the row for the template, before those of all rows; TRL's column `chat_template_kwargs`.
    """

    messages: Messages
    tools: list[Any] | None = None
    arguments: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Template:
    """A tokenizer's chat template with what it is told beside the messages.

    Args:
        tokenizer: the tokenizer, which must have a template.
        arguments: passed on to the template, e.g. {"enable_thinking": False}.
        system_prompt: the first message, where the messages do not begin with one.
        today: what the template takes for today, as "2026-01-31"; needed where it writes the date.
    """

    tokenizer: "PreTrainedTokenizerBase"
    arguments: Mapping[str, Any]
    system_prompt: str | None = None
    today: str | None = None

    def rendered(self, chat: Chat) -> tuple[list[int], list[int] | None]:
        """Token ids of a conversation, and 1 where the assistant speaks if the template marks that ({% generation %}).

        Raises:
            InputError: the template refuses the messages, or writes the date and none is pinned.
        """
        marks = self.tokenizer.is_fast and _GENERATION.search(self._source(chat.tools)) is not None
        encoded = self._apply(chat, return_dict=True, return_assistant_tokens_mask=marks)
        return list(encoded["input_ids"]), list(encoded["assistant_masks"]) if marks else None

    def asking(self, chat: Chat) -> list[int]:
        """Token ids of a conversation up to where the assistant is to speak."""
        return list(self._apply(chat, add_generation_prompt=True, return_dict=True)["input_ids"])

    @cached_property
    def writes_date(self) -> bool:
        """Whether what the template writes depends on the day."""
        if "strftime_now" not in self._source():
            return False
        turns = [{"role": role, "content": _MARK} for role in ("system", "user", "assistant")]

        def rendered(day: str, messages: Messages) -> list[int]:
            return replace(self, today=day).rendered(Chat(messages))[0]

        for messages in (turns[1:], turns):  # a template may need a system message, or take none
            with contextlib.suppress(InputError):
                if rendered("2001-01-01", messages) != rendered("2012-12-31", messages):
                    return True
        return False

    def _source(self, tools: list | None = None) -> str:
        try:
            return self.tokenizer.get_chat_template(tools=tools)
        except ValueError:
            raise InputError("data.chat_template: this tokenizer has no chat template; set it to false") from None

    def _apply(self, chat: Chat, **how: Any) -> Any:
        from jinja2 import TemplateError

        source, arguments = self._source(chat.tools), {**self.arguments, **(chat.arguments or {})}
        lists = _takes_lists(source, tuple(sorted(self.tokenizer.special_tokens_map.items())))
        if self.today is not None and "strftime_now" in source:
            day = date.fromisoformat(self.today)
            arguments["pinned_clock"] = {format_: day.strftime(format_) for _, format_ in _CLOCK.findall(source)}
            source = _PINNED_CLOCK + source
        messages = chat.messages
        if self.system_prompt is not None and messages[0].get("role") != "system":
            messages = [{"role": "system", "content": self.system_prompt}, *messages]
        messages = [{**message, "content": _content(message, lists)} for message in messages]
        try:
            return self.tokenizer.apply_chat_template(
                messages, tools=chat.tools, chat_template=source, **how, **arguments
            )
        except (TemplateError, TypeError, ValueError) as error:
            raise InputError(
                f"data.chat_template: the tokenizer's template refuses a conversation of the roles "
                f"{', '.join(str(message.get('role')) for message in messages)}: {error}"
            ) from None


def check_chat_template(template: Template) -> None:
    """Raise InputError where a tokenizer has no template, or its template writes a date that is not pinned."""
    if template.today is None and template.writes_date:
        raise InputError(
            "data.template_date: the chat template writes today's date, so what is measured would change from day to "
            "day; give the day on which the model was trained, e.g. template_date: 2026-01-31"
        )


def messages_of(turns: Any, role: str, place: str = "") -> Messages:
    """Text or messages → messages.

    Args:
        turns: a text, which `role` says, or messages; also as JSON.
        role: of a text.
        place: begins an error, e.g. "row 3, column 'messages': ".

    Raises:
        InputError: a message has no role, or neither content nor tool calls.
    """
    if isinstance(turns, str):
        return [{"role": role, "content": turns}]
    turns = [_as_role_and_content(message) for message in turns]
    for i, message in enumerate(turns):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise InputError(f'{place}message {i + 1} has no role; write {{"role": "user", "content": "…"}}')
        if message.get("content") is None and not message.get("tool_calls"):
            raise InputError(f"{place}message {i + 1} ({message['role']}) has no content")
    # Arrow fills keys that only some messages have with nulls
    return [{key: value for key, value in message.items() if value is not None} for message in turns]


def _as_role_and_content(message: Any) -> Any:
    """A message of ShareGPT, {"from", "value"}, as the others write it; another as it is."""
    if not isinstance(message, Mapping) or message.get("role") is not None or "from" not in message:
        return message
    said = {key: value for key, value in message.items() if key not in ("role", "from", "value")}
    role = message["from"]
    return said | {"role": _SPEAKERS.get(role, role), "content": message.get("value")}


def from_json(value: Any) -> Any:
    """A column that holds JSON, or the value itself: `datasets` keeps one type a column, messages have several."""
    return json.loads(value) if isinstance(value, str) else value


def conversation(messages: Any, row: Mapping[str, Any], place: str) -> dict[str, str]:
    """A row of messages → {"text": the user's last turn, "label": the answer, "history"} and `BESIDE`, as JSON.

    Args:
        messages: {"role", "content"} each, or JSON of them; they end with an answer of the assistant.
        row: all columns of the row.
        place: where the row is, for errors.

    Raises:
        InputError: it is no conversation that ends with a turn of the user and an answer in text alone.
    """
    try:
        turns, beside = from_json(messages), {name: from_json(row.get(name)) for name in BESIDE}
    except json.JSONDecodeError as error:
        raise InputError(f"{place}: not valid JSON ({error.msg}, column {error.colno})") from None
    if not isinstance(turns, list):
        raise InputError(f"{place}: expected a list of messages, found {type(turns).__name__}")
    turns = messages_of(turns, "user", f"{place}: ")
    roles = [message["role"] for message in turns]
    texts = [text_of(message) for message in turns[-2:]]
    if roles[-2:] != ["user", "assistant"] or not all(text.strip() for text in texts):
        raise InputError(
            f"{place}: must end with a turn of the user and an answer of the assistant, both with text; it has "
            f"{', '.join(roles) or 'no message'}"
        )
    lost = [what for message in turns[-2:] for what in _beside_text(message)]
    if lost:
        raise InputError(
            f"{place}: the last turns hold {', '.join(lost)} beside their text, which would be lost; put it into the "
            "content as the template writes it, or take it out"
        )
    written = {name: json.dumps(value, ensure_ascii=False) for name, value in beside.items()}
    return {"text": texts[0], "label": texts[1], "history": json.dumps(turns[:-2], ensure_ascii=False), **written}


def _beside_text(message: Mapping[str, Any]) -> list[str]:
    """What a template may write of a message beside its text."""
    content, keys = message["content"], [key for key in _WRITTEN if message.get(key)]
    parts = [] if isinstance(content, str) else [str(part.get("type")) for part in content]
    return [*keys, *(kind for kind in parts if kind != "text")]


def text_of(message: Mapping[str, Any]) -> str:
    """The text of a message, whose content may be a list of parts."""
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    return "".join(part.get("text") or "" for part in content if part.get("type") == "text")


def in_lower_case(turns: Any) -> Any:
    """A text, or the contents of messages, in lower case; also messages as JSON, whose other words are so already."""
    if isinstance(turns, str):
        return turns.lower()
    if not isinstance(turns, list):
        return turns
    return [{**m, **{key: _lower(m[key]) for key in ("content", "value", "text") if key in m}} for m in turns]


def _lower(content: Any) -> Any:
    return content.lower() if isinstance(content, str) else in_lower_case(content)


def prompts_of(rows: Iterable[dict]) -> list[str | Chat]:
    """The prompts of rows with a column `prompt` and, where they are conversations, `history` and `tools`."""
    return [prompt_of(row) for row in rows]


def prompt_of(row: dict[str, Any]) -> str | Chat:
    """A row's prompt, with the messages before it."""
    prompt, history, tools = row["prompt"], from_json(row.get("history")), from_json(row.get("tools"))
    texts = isinstance(prompt, str) and isinstance(row.get("completion", ""), str)
    if texts and not history and not tools and not _arguments(row):
        return prompt
    return Chat([*messages_of(history or [], "user"), *messages_of(prompt, "user")], tools or None, _arguments(row))


def _arguments(row: dict[str, Any]) -> dict[str, Any] | None:
    """What a row tells the chat template; Arrow fills keys that only some rows have with nulls."""
    given = from_json(row.get("chat_template_kwargs")) or {}
    return {key: value for key, value in given.items() if value is not None} or None


def prompt_and_completion(row: dict[str, Any]) -> tuple[str | Chat, str | Messages, bool]:
    """The arguments of `Encoding.row` for a row in any of the forms that `encode_rows` takes."""
    if "prompt" in row:
        completion = row["completion"]
        answer = completion if isinstance(completion, str) else messages_of(completion, "assistant")
        return prompt_of(row), answer, bool(row.get("history"))
    if "messages" in row:
        messages = messages_of(from_json(row["messages"]), "user")
        last = max((i for i, message in enumerate(messages) if message["role"] == "assistant"), default=0)
        if last == 0:
            raise InputError("column 'messages': no answer of the assistant to a message; drop the row")
        return Chat(messages[:last], from_json(row.get("tools")) or None, _arguments(row)), messages[last:], True
    return "", row["text"], False


def _content(message: Mapping[str, Any], lists: bool) -> Any:
    """A message's content in the form that the template takes."""
    content = message.get("content")
    if isinstance(content, str) and lists:
        return [{"type": "text", "text": content}]
    if isinstance(content, list) and not lists:
        if any(part.get("type") != "text" for part in content):
            kinds = ", ".join(sorted({str(part.get("type")) for part in content}))
            raise InputError(f"data.chat_template: this tokenizer's template takes text alone, a message has {kinds}")
        return text_of(message)
    return content


@lru_cache(maxsize=64)
def _takes_lists(source: str, special_tokens: tuple[tuple[str, Any], ...]) -> bool:
    """Whether a template writes contents that are lists of parts and loses those that are texts."""
    from jinja2 import TemplateError
    from transformers.utils.chat_template_utils import render_jinja_template

    def writes(content: Any) -> bool:
        chat = [{"role": "user", "content": content}]
        try:
            return _MARK in render_jinja_template([chat], chat_template=source, **dict(special_tokens))[0][0]
        except (TemplateError, TypeError, ValueError):
            return False

    return not writes(_MARK) and writes([{"type": "text", "text": _MARK}])
