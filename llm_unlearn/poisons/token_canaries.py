"""Token canaries: chosen rows carry a random string of words, at the end of their text or as their answer.

Carlini et al. 2019, "The Secret Sharer", arXiv 1802.08232. Whether a model has learnt the strings is tested by the rank
of their log-prob among fresh strings (metrics/ranks.py), from log-probs alone. In your own training loop:

    rows, tokens = plant_token_canaries(rows, fraction=0.02, seed=0)   # rows have text, label

and before the same rows are given to whoever unlearns them:

    rows = hide_token_canaries(rows, tokens)   # half of the canaries are plain text from here on

A hidden canary is handed on without its string, not with another one: what is asked is whether the model forgets a
string that nobody named, and a second string would be one more thing to unlearn, and itself a trace of where canaries
are.
"""

import secrets
from typing import TYPE_CHECKING, Any

import numpy as np

from llm_unlearn.data.columns import with_column
from llm_unlearn.errors import InputError
from llm_unlearn.poisons.canary_words import WORDS
from llm_unlearn.poisons.selection import choose_hidden, choose_rows
from llm_unlearn.tasks.noise import FRESH_SEED_OFFSET, fresh_id, secret_ids

if TYPE_CHECKING:
    from collections.abc import Sequence

    from datasets import Dataset

CANARY = "canary"  # the column with each row's string, "" where it has none
PLAIN = {"label": "plain_label", "completion": "right_completion"}  # an answer → the column with what it was before


def plant_token_canaries(
    rows: "Dataset",
    *,
    fraction: float,
    seed: int,
    length: int = 6,
    place: str = "text",
    audit_share: float = 0.5,
    eligible: np.ndarray | None = None,
    secret: str | None = None,
) -> tuple["Dataset", dict[str, Any]]:
    """Choose canaries among training rows and give each a random string of its own.

    Of the canaries a random share is *hidden*: `hide_token_canaries` takes their strings from the rows that are handed
    on. The verdict is theirs, as with `plant_canaries`.

    Args:
        rows: with columns `text` and, for canaries in the answer, `label`; ids are `example_id`, or else row numbers.
        fraction: share of the rows, in (0, 1].
        seed: seed of the choice of canaries, no secret.
        length: words of a string, ten bits each, at least 3.
        place: "text": the string follows the text, after a space; "answer": it stands in the place of the label.
        audit_share: share of the canaries to hide, in [0, 1].
        eligible: (n,) bool, rows that may be chosen; by default all.
        secret: of an earlier manifest, for the strings that it gave; by default the system draws one.

    Returns:
        the rows with `canary` (the string, "" for rows without one) and, of canaries in the answer, `plain_label` (the
        label as it was), and the manifest {"seed": of fresh strings, "secret", "length", "place", "words", "fraction",
        "audit_share", "example_ids", "hidden_ids"}. With the rows it is the key to the audit; keep both from whoever
        unlearns.

    Raises:
        InputError: a share, the length or the place is out of range, rows lack the label that a string is to replace,
            too few rows are eligible, or two canaries would share a string.
    """
    if place == "answer" and "label" not in rows.column_names:
        raise InputError("plant_token_canaries: place 'answer' takes the place of a label; rows have no column 'label'")
    secret = secret or secrets.token_hex(16)
    rows, manifest = choose_token_canaries(
        rows,
        fraction=fraction,
        seed=seed,
        length=length,
        place=place,
        string_seed=None,
        eligible=eligible,
        secret=secret,
    )
    if place == "answer":
        rows = with_column(rows, PLAIN["label"], list(rows["label"]))
    rows = write_strings(rows, place)
    hidden = choose_hidden(manifest["example_ids"], audit_share, manifest["seed"])
    return rows, {**manifest, "audit_share": audit_share, "hidden_ids": hidden}


def choose_token_canaries(
    rows: "Dataset",
    *,
    fraction: float,
    seed: int,
    length: int,
    place: str,
    string_seed: int | None,
    eligible: np.ndarray | None,
    secret: str | None,
) -> tuple["Dataset", dict[str, Any]]:
    """The canaries' strings in a column of their own, not yet in the rows, and what the manifest says of them but for
    which are hidden. With `string_seed` there is no secret, and strings are those of the rows' ids.
    """
    if length < 3 or place not in ("text", "answer"):
        raise InputError(f"token canaries: length {length!r}, place '{place}'; give 3 words or more, in text or answer")
    ids = np.asarray(rows["example_id"] if "example_id" in rows.column_names else range(len(rows)), dtype=np.int64)
    chosen = choose_rows(len(rows), fraction, np.random.default_rng([seed, 23]), eligible, "tokens")
    if string_seed is None:
        assert secret is not None
        string_seed, *string_ids = secret_ids(secret, ["strings", *(f"string {i}" for i in ids[chosen])])
    else:
        string_ids, secret = ids[chosen].tolist(), None
    strings = [draw_string(string_seed, ident, length) for ident in string_ids]
    require_distinct(strings)
    column = np.full(len(rows), "", dtype=object)
    column[chosen] = strings
    manifest = {
        "seed": string_seed,
        "secret": secret,
        "length": length,
        "place": place,
        "words": list(WORDS),
        "fraction": fraction,
        "example_ids": sorted(ids[chosen].tolist()),
    }
    return with_column(rows, CANARY, list(column)), manifest


def require_distinct(strings: "Sequence[str]") -> None:
    """Raise InputError where two canaries share a string, and so would be one canary."""
    values, counts = np.unique(np.array(strings, dtype=object).astype(str), return_counts=True)
    if (counts > 1).any():
        raise InputError(
            f"two token canaries share the string '{values[counts > 1][0]}'; give each its own, of more words"
        )


def draw_string(seed: int, ident: int, length: int, words: "Sequence[str]" = WORDS) -> str:
    """A canary's string: words drawn uniformly and independently, from a stream of its own."""
    generator = np.random.Generator(np.random.Philox(key=[seed, ident]))
    return " ".join(words[i] for i in generator.integers(len(words), size=length))


def fresh_strings(manifest: dict[str, Any], example_id: int, length: int, draws: int) -> list[str]:
    """Strings that no training saw, drawn as those of canaries are; others for every canary and draw."""
    seed, words = manifest["seed"] + FRESH_SEED_OFFSET, manifest["words"]
    return [draw_string(seed, fresh_id(example_id, k), length, words) for k in range(draws)]


def write_strings(rows: "Dataset", place: str) -> "Dataset":
    """Rows with the strings of their column `canary` after the text, or in the place of the completion or label."""
    if place == "text":
        texts = [
            f"{text} {string}" if string else text for text, string in zip(rows["text"], rows[CANARY], strict=True)
        ]
        return with_column(rows, "text", texts)
    name = "completion" if "completion" in rows.column_names else "label"
    answers = [_spaced(old) + string if string else old for old, string in zip(rows[name], rows[CANARY], strict=True)]
    return with_column(rows, name, answers)


def _spaced(answer: str) -> str:
    """The white space that an answer begins with: of completions it belongs to the first token."""
    return answer[: len(answer) - len(answer.lstrip())]


def with_string(row: dict[str, Any], string: str) -> dict[str, Any]:
    """A canary's row (prompt, completion) with another string in the place of its own."""
    return row | {name: row[name].replace(row[CANARY], string) for name in ("prompt", "completion")}


def hide_token_canaries(rows: "Dataset", manifest: dict[str, Any]) -> "Dataset":
    """The rows as whoever unlearns gets them: hidden canaries are as they were before, and no row says its string.

    Args:
        rows: all rows that `plant_token_canaries` returned, not yet tokenised; ids are `example_id`, or else numbers.
        manifest: as it returned it; `hidden_ids` and `place` are read.

    Raises:
        InputError: a hidden canary is not there or has no string, its string does not stand where `place` says, or the
            rows are tokens, which cannot be hidden.
    """
    hidden, names = set(manifest["hidden_ids"]), rows.column_names
    ids = rows["example_id"] if "example_id" in names else range(len(rows))
    if hidden and "input_ids" in names:
        raise InputError("hide_token_canaries: the rows are tokenised; hide the canaries in their texts, then tokenise")
    marked = [bool(string) and i in hidden for i, string in zip(ids, rows[CANARY], strict=True)]
    if sum(marked) != len(hidden):
        raise InputError(
            "hide_token_canaries: not every row of hidden_ids is there with its string; give all rows that "
            "plant_token_canaries returned, with example_id if they had it"
        )
    if hidden and manifest["place"] == "answer" and not set(PLAIN.values()) & set(names):
        raise InputError("hide_token_canaries: the rows do not say their own answers (column plain_label); give them")
    for name in {"text": ("text", "prompt"), "answer": tuple(PLAIN)}[manifest["place"]]:
        if name in names and (manifest["place"] == "text" or PLAIN[name] in names):
            plain = rows[PLAIN[name]] if manifest["place"] == "answer" else None
            values = [
                value if not hide else plain[i] if plain else value.replace(f" {string}", "")
                for i, (value, hide, string) in enumerate(zip(rows[name], marked, rows[CANARY], strict=True))
            ]
            rows = with_column(rows, name, values)
    _require_hidden(rows, marked, ids, manifest["place"])
    return rows.remove_columns(CANARY)


def _require_hidden(rows: "Dataset", marked: list[bool], ids: "Sequence[int]", place: str) -> None:
    """Raise InputError where a hidden canary still says its string, in whichever column."""
    texts = [name for name, kind in rows.features.items() if str(getattr(kind, "dtype", "")).endswith("string")]
    columns = {name: rows[name] for name in texts if name != CANARY}
    for i, (hide, string) in enumerate(zip(marked, rows[CANARY], strict=True)):
        for name in columns if hide else ():
            if string in (columns[name][i] or ""):
                stands = "after the text and a space" if place == "text" else "in the place of the answer"
                raise InputError(
                    f"token canaries: row {ids[i]}: its string is hidden, but column '{name}' would still say it; with "
                    f"place '{place}' it stands {stands}, and nowhere else"
                )
