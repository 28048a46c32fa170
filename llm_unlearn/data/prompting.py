"""Rows with text and label → rows with prompt and completion, by the recipe's template and verbalizers."""

from typing import TYPE_CHECKING

from llm_unlearn.errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset

    from llm_unlearn.config.data_sections import DataSection


def normalise(rows: "Dataset", section: "DataSection", source: str) -> "Dataset":
    """Apply `rename_labels` and `max_words` to raw rows, before they are split or poisoned.

    Args:
        rows: with columns `text` and `label`.
        section: the recipe's `data` section.
        source: origin of the rows, for error messages.

    Returns:
        rows with columns `text` and `label`.

    Raises:
        InputError: a label has no verbalizer; the message names source and row. Or rows are conversations and no chat
            template is to write them.
    """
    if "history" in rows.column_names and not section.chat_template:
        raise InputError(
            f"{source}: the rows are conversations, which only a chat template writes; set data.chat_template"
        )

    def normalised(row: dict, index: int) -> dict:
        label = section.rename_labels.get(row["label"], row["label"])
        if section.task == "classification" and label not in section.verbalizers:
            raise InputError(
                f"{source}, row {index + 1}: label '{label}' has no verbalizer; known: "
                f"{', '.join(section.verbalizers)}. Add it to data.verbalizers, or map it with data.rename_labels"
            )
        text = row["text"]
        if section.max_words is not None:
            text = " ".join(text.split()[: section.max_words])
        return {"text": text, "label": label}

    return rows.map(normalised, with_indices=True, desc="normalise")


def render(rows: "Dataset", section: "DataSection") -> "Dataset":
    """Add the columns `prompt` and `completion` to rows with text and label."""

    def rendered(row: dict) -> dict:
        classify = section.task == "classification"
        completion = section.verbalizers[row["label"]] if classify else row["label"]
        return {"prompt": section.prompt.replace("{text}", row["text"]), "completion": completion}

    return rows.map(rendered, desc="render prompts")
