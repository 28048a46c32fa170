"""Load what a recipe's `data` section describes: the labelled splits and the unlabelled text."""

from typing import TYPE_CHECKING

from llm_unlearn.config.data_sections import EMBEDDED
from llm_unlearn.data.instructions import synthetic_instructions
from llm_unlearn.data.prompting import normalise
from llm_unlearn.data.source_files import load_source
from llm_unlearn.data.splits import Splits, split_section
from llm_unlearn.data.synthetic import synthetic_reviews, synthetic_texts
from llm_unlearn.errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset

    from llm_unlearn.config.data_sections import DataSection

UNLABELLED_OFFSET = 500_000  # the unlabelled synthetic texts have another seed than the labelled ones


def load_splits(section: "DataSection", seed: int) -> Splits:
    """Load the labelled data and split it by seed; `make_splits` says how duplicates are handled."""

    def load(files: list[str] | None, split: str | None) -> "Dataset":
        columns = columns_of(section)
        source = None if section.files else section.source
        rows = load_source(source, files, split=split, config_name=section.config_name, columns=columns)
        origin = ", ".join(files) if files else f"{section.source} ({split})"
        rows = normalise(rows, section, origin)
        if section.task == "classification" and len(rows) > 1 and len(classes := set(rows["label"])) == 1:
            raise InputError(
                f"{origin}: every row has the label '{classes.pop()}' (data.label_column: {section.label_column}); "
                "give rows of at least two labels"
            )
        return rows

    test = None
    if section.is_embedded:
        n = section.train_size + section.heldout_size + section.test_size
        train = normalise(_embedded(section, n, seed), section, f"{section.source} ({section.train_split})")
    else:
        train = load(section.files, section.train_split)
        if section.test_files or (not section.files and section.test_split):
            test = load(section.test_files, section.test_split)
    return split_section(train, test, section, seed)


def _embedded(section: "DataSection", n: int, seed: int) -> "Dataset":
    """Rows of an embedded generator: some more than the n that are needed, so that duplicates can be replaced."""
    if section.source == "instructions":  # of which a fifth repeat
        return synthetic_instructions(n + n // 2 + 50, seed)
    return synthetic_reviews(n + n // 20 + 10, seed, label_noise=section.label_noise)


def columns_of(section: "DataSection") -> dict[str, str | None]:
    """Our names → the source's columns, as `load_source` takes them."""
    if section.messages_column:
        return {"messages": section.messages_column}
    return {"text": section.text_column, "label": section.label_column}


def load_unlabelled(section: "DataSection", n: int, seed: int) -> "Dataset":
    """The first n unlabelled texts for pre-training a small base, in one column, `text`."""
    if section.unlabelled_files or section.source not in EMBEDDED:
        source = None if section.unlabelled_files else section.source
        rows = load_source(
            source,
            section.unlabelled_files,
            split=section.unlabelled_split,
            config_name=section.config_name,
            columns={"text": section.text_column},
        )
        rows = rows.shuffle(seed=seed)
    elif section.files:
        raise InputError("data.unlabelled_files: give files of unlabelled text to pre-train a base on")
    elif section.source == "instructions":
        rows = synthetic_instructions(n, seed + UNLABELLED_OFFSET)
        rows = rows.map(lambda row: {"text": f"{row['text']} {row['label']}"}, remove_columns="label")
    else:
        rows = synthetic_texts(n, seed + UNLABELLED_OFFSET)
    return rows.select(range(min(n, len(rows))))
