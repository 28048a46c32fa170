"""What a benchmark trains on, what it asks to forget, and what it measures: its parts, put together."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from llm_unlearn.data.benchmarks.corpora import cut_corpus, halves
from llm_unlearn.data.benchmarks.parts import CHOICE, TEXT, TEXTS, Part, read_part
from llm_unlearn.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from llm_unlearn.config.benchmark_fields import BenchmarkSection
    from llm_unlearn.config.data_sections import DataSection
    from llm_unlearn.data.splits import Splits

FORGET = "in_forget_set"  # the column of training rows that says so
_PAIR = {"question": TEXT, "answer": TEXT}
_WRONG = {**_PAIR, "perturbed_answer": TEXTS}
_PERTURBED = {**_WRONG, "paraphrased_answer": TEXT}
_RAW = {"text": TEXT}


@dataclass(frozen=True)
class BenchmarkParts:
    """Where the rows of a benchmark are.

    Args:
        roles: forget, retain, holdout, test → the parts whose rows are it; without a part for holdout or test these
            rows are spare ones of retain.
        measured: what is measured → its part.
        corpus: whether training rows are a corpus in chunks; else they are questions with answers.
    """

    roles: dict[str, list[Part]]
    measured: dict[str, Part]
    corpus: bool

    @property
    def all(self) -> list[Part]:
        return [*(part for parts in self.roles.values() for part in parts), *self.measured.values()]


def _tofu(split: str) -> BenchmarkParts:
    def part(name: str, columns: dict[str, str]) -> Part:
        return Part(name, columns, "locuslab/TOFU", name, "train")

    share = split.removeprefix("forget")
    others = {name: part(f"{name}_perturbed", _WRONG) for name in ("real_authors", "world_facts")}
    return BenchmarkParts(
        roles={
            "forget": [part(split, _PAIR)],
            "retain": [part(f"retain{100 - int(share)}", _PAIR)],
            "holdout": [part(f"holdout{share}", _PAIR)],
            "test": [part(f"{name}_perturbed", _PAIR) for name in others],
        },
        measured={
            "forget": part(f"{split}_perturbed", _PERTURBED),
            "retain": part("retain_perturbed", _PERTURBED),
            **others,
        },
        corpus=False,
    )


def _muse(split: str) -> BenchmarkParts:
    corpus, _, other = split.partition("/")

    def part(config: str, name: str, columns: dict[str, str]) -> Part:
        return Part(f"{config}/{name}", columns, f"muse-bench/MUSE-{corpus.capitalize()}", config, name)

    forget = part(other.split("_")[0], f"forget_{other.split('_')[1]}", _RAW) if other else part("raw", "forget", _RAW)
    return BenchmarkParts(
        roles={
            "forget": [forget],
            "retain": [part("raw", "retain1", _RAW)],
            "holdout": [part("raw", "holdout", _RAW)],
            "test": [part("raw", "retain2", _RAW)],
        },
        measured={
            "verbmem": part("verbmem", "forget", {"prompt": TEXT, "gt": TEXT}),
            **{
                f"{rows}_{kind}": part("knowmem", f"{rows}_{kind}", _PAIR)
                for rows in ("forget", "retain")
                for kind in ("qa", "qa_icl")
            },
            "privleak_forget": part("privleak", "forget", _RAW),
            "privleak_holdout": part("privleak", "holdout", _RAW),
        },
        corpus=True,
    )


def _wmdp(split: str) -> BenchmarkParts:
    def part(kind: str) -> Part:
        # the biology forget corpus stands apart on the hub, where access to it must be asked for
        hub = "cais/wmdp-bio-forget-corpus" if (split, kind) == ("bio", "forget") else "cais/wmdp-corpora"
        name = f"{split}-{kind}-corpus"
        return Part(name, _RAW, hub, None if hub.endswith("forget-corpus") else name, "train")

    questions = Part(f"wmdp-{split}", {"question": TEXT, "choices": TEXTS, "answer": CHOICE}, "cais/wmdp",
                     f"wmdp-{split}", "test")  # fmt: skip
    return BenchmarkParts({"forget": [part("forget")], "retain": [part("retain")]}, {"questions": questions}, True)


_PARTS: dict[str, Callable[[str], BenchmarkParts]] = {"tofu": _tofu, "muse": _muse, "wmdp": _wmdp}


def parts_of(section: "BenchmarkSection") -> BenchmarkParts:
    """Where the rows of a recipe's benchmark are."""
    return _PARTS[section.name](section.forgotten)


def check_parts(section: "BenchmarkSection", read: bool = False) -> None:
    """Raise InputError where a local file of the benchmark is missing or, with `read`, a row of any part is wrong."""
    for part in parts_of(section).all:
        if read:
            read_part(part, section.folder)
        elif section.folder is not None:
            part.local(section.folder)


def measured_rows(section: "BenchmarkSection") -> dict[str, list[dict[str, Any]]]:
    """What is measured → its rows, at most `limit` of each; few-shot examples are all read."""
    found = {}
    for name, part in parts_of(section).measured.items():
        found[name] = read_part(part, section.folder, None if name.endswith("_icl") else section.limit)
    return found


def benchmark_splits(
    section: "BenchmarkSection", data: "DataSection", seed: int, tokenizer: "PreTrainedTokenizerBase"
) -> "Splits":
    """The rows of a benchmark as training, held-out and test rows, columns text, label, example_id and, of training
    rows, FORGET.

    All forget rows are trained on; retain rows fill up `data.train_size`, drawn by the seed, as are held-out and test
    rows. Of a corpus a row is a chunk of at most `data.max_length` tokens, half of it prompt.

    Args:
        section: the recipe's `benchmark`.
        data: its `data`, for sizes and length.
        seed: of the draws.
        tokenizer: of the model, which says how long a chunk is.

    Raises:
        InputError: naming what is wrong in a file, or the size for which there are too few rows.
    """
    from datasets import Dataset

    from llm_unlearn.data.splits import Splits

    parts = parts_of(section)
    pools = {
        role: _rows([row for part in found for row in read_part(part, section.folder)], parts.corpus, data, tokenizer)
        for role, found in parts.roles.items()
    }
    sizes = {"retain": data.train_size - len(pools["forget"]), "holdout": data.heldout_size, "test": data.test_size}
    if sizes["retain"] < 1:
        raise InputError(
            f"data.train_size: {data.train_size} rows, but {len(pools['forget'])} of them are to be forgotten and at "
            f"least one retained ({section.name}, {section.forgotten}); raise it"
        )
    drawn, spare = dict[str, list[tuple[str, str]]](), dict[str, list[tuple[str, str]]]()
    for stream, (role, size) in enumerate(sizes.items()):
        pool = pools[role] if role in pools else spare["retain"]
        order = np.random.default_rng([seed, 50 + stream]).permutation(len(pool))
        if size > len(pool):
            field = {"retain": "train_size", "holdout": "heldout_size", "test": "test_size"}[role]
            least = len(pools["forget"]) if role == "retain" else 0
            raise InputError(f"data.{field}: asks for {size + least} rows, but there are {len(pool) + least}; lower it")
        drawn[role] = [pool[i] for i in sorted(order[:size])]
        spare["retain" if role not in pools else role] = [pool[i] for i in sorted(order[size:])]
    make, first = partial(_dataset, Dataset), 0
    train = make([*pools["forget"], *drawn["retain"]], first)
    train = train.add_column(FORGET, [i < len(pools["forget"]) for i in range(len(train))])
    heldout = make(drawn["holdout"], len(train))
    test = make(drawn["test"], len(train) + len(heldout))
    counted = ("within_train", "across_train_and_test", "dropped_from_heldout", "dropped_from_test")
    return Splits(train, heldout, test, dict.fromkeys(counted, 0))


def _rows(
    rows: list[dict[str, Any]], corpus: bool, data: "DataSection", tokenizer: "PreTrainedTokenizerBase"
) -> list[tuple[str, str]]:
    """(text, label) of questions with answers, or of the chunks of a corpus."""
    if corpus:
        return [halves(chunk) for chunk in cut_corpus([row["text"] for row in rows], tokenizer, data.max_length)]
    return [(row["question"], row["answer"]) for row in rows]


def _dataset(make: Any, rows: list[tuple[str, str]], first: int) -> Any:
    ids = np.arange(first, first + len(rows), dtype=np.int64)
    return make.from_dict({"text": [t for t, _ in rows], "label": [a for _, a in rows], "example_id": ids})
