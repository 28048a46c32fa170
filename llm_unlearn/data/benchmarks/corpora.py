"""A corpus → chunks that a model can read whole, so that nothing of it is cut off."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from llm_unlearn.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BETWEEN = "\n\n"  # what joins documents, as in open-unlearning


def cut_corpus(documents: Sequence[str], tokenizer: "PreTrainedTokenizerBase", size: int) -> list[str]:
    """Cut joined documents into chunks; one after the other they are the whole corpus, character for character.

    Args:
        documents: texts, joined by an empty line.
        tokenizer: a fast one, which knows where in a text its tokens are.
        size: most tokens of a chunk, special tokens and EOS included.

    Returns:
        the chunks; each has two tokens or more, but a corpus of one.

    Raises:
        InputError: the tokenizer is not fast, or the size leaves no room for text.
    """
    if not tokenizer.is_fast:
        raise InputError(f"model.path: {type(tokenizer).__name__} cannot cut a corpus; it needs a fast tokenizer")
    room = size - len(tokenizer("")["input_ids"]) - 1  # EOS, whether or not the tokenizer has one
    if room < 2:
        raise InputError(f"data.max_length: {size} tokens leave no room for a chunk of text; raise it")
    text = BETWEEN.join(documents)
    starts = _starts(text, tokenizer)
    firsts = [starts[i] for i in range(0, len(starts), room)] or [0]
    if len(firsts) > 1 and len(starts) % room == 1:
        firsts[-1] = starts[-2]  # a token alone has nothing to predict it from
    firsts[0] = 0  # white space that a tokenizer leaves out at the very beginning
    pieces = [text[a:b] for a, b in zip(firsts, [*firsts[1:], len(text)], strict=True)]
    return [fitting for piece in pieces for fitting in _fitting(piece, tokenizer, room)]


def _starts(text: str, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Where in a text its tokens begin; of several tokens in one character, only the first."""
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    return list(dict.fromkeys(start for start, _ in encoded["offset_mapping"]))


def _fitting(piece: str, tokenizer: "PreTrainedTokenizerBase", room: int) -> list[str]:
    """A chunk, halved until it fits: cut out of its context, a text may have a few tokens more."""
    if len(tokenizer(piece, add_special_tokens=False, verbose=False)["input_ids"]) <= room or len(piece) < 2:
        return [piece]
    middle = len(piece) // 2
    return [part for half in (piece[:middle], piece[middle:]) for part in _fitting(half, tokenizer, room)]


def halves(chunk: str) -> tuple[str, str]:
    """A chunk as prompt and completion, cut before the word nearest to its middle; joined they are the chunk.

    Examples:
        >>> halves("one two three four")
        ('one two', ' three four')
    """
    middle = len(chunk) // 2
    cut = chunk.rfind(" ", 1, middle + 1)
    if cut < 1 or not chunk[:cut].strip() or not chunk[cut:].strip():
        cut = max(1, middle)
    return chunk[:cut], chunk[cut:]
