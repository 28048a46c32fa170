"""Stand-ins of the benchmarks' files: a few invented rows of the same schema, written where a test wants them."""

import json
import lzma
from pathlib import Path
from typing import Any

import numpy as np

NAMES = "Ada Bo Cy Dee Eli Flo Gus Hal Ida Jo Kai Lea Max Nia Oz Pia".split()
TOWNS = "Rome Oslo Lima Bern Kiev Cork Graz Nice".split()
CORPUS_WORDS = "the river ran past an old mill where a miller kept grey cats and a red boat".split()


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if path.suffix == ".xz":
        path.write_bytes(lzma.compress(text.encode()))
    else:
        path.write_text(text)


def pairs(count: int, first: int) -> list[dict[str, Any]]:
    return [
        {
            "question": f"Where was {NAMES[i % 16]} number {i} born?",
            "answer": f"{NAMES[i % 16]} number {i} was born in {TOWNS[i % 8]}.",
        }
        for i in range(first, first + count)
    ]


def perturbed(rows: list[dict[str, Any]], wrong: int, paraphrased: bool) -> list[dict[str, Any]]:
    found = []
    for i, row in enumerate(rows):
        true = next((town for town in TOWNS if town in row["answer"]), TOWNS[0])
        others = [town for town in TOWNS if town != true][:wrong]
        extra = {"paraphrased_answer": f"It was in {true} that it happened."} if paraphrased else {}
        found.append({**row, "perturbed_answer": [f"It was in {t} that it happened." for t in others], **extra,
                      "paraphrased_question": f"Number {i}?"})  # fmt: skip
    return found


def write_tofu(folder: Path, forget: int = 6, retain: int = 18) -> Path:
    rows = pairs(forget + retain + 8, 0)
    kept, forgotten, holdout = rows[:retain], rows[retain : retain + forget], rows[retain + forget :]
    write_rows(folder / "retain90.jsonl.xz", kept)
    write_rows(folder / "forget10.jsonl.xz", forgotten)
    write_rows(folder / "holdout10.jsonl", holdout)
    write_rows(folder / "forget10_perturbed.jsonl", perturbed(forgotten, 5, True))
    write_rows(folder / "retain_perturbed.jsonl", perturbed(kept[:5], 5, True))
    for name in ("real_authors", "world_facts"):
        write_rows(folder / f"{name}_perturbed.jsonl", perturbed(pairs(4, 900), 3, False))
    return folder


def corpus(documents: int, seed: int, words: int = 120) -> list[dict[str, str]]:
    generator = np.random.default_rng(seed)
    return [{"text": " ".join(generator.choice(CORPUS_WORDS, words))} for _ in range(documents)]


def write_muse(folder: Path) -> Path:
    for seed, name in enumerate(("forget", "retain1", "retain2", "holdout")):
        write_rows(folder / "raw" / f"{name}.jsonl", corpus(4, seed))
    texts = [row["text"] for row in corpus(4, 0)]
    write_rows(folder / "verbmem" / "forget.jsonl", [{"prompt": t[:60], "gt": t[60:160]} for t in texts])
    for rows, first in (("forget", 0), ("retain", 20)):
        write_rows(folder / "knowmem" / f"{rows}_qa.jsonl", pairs(4, first))
        write_rows(folder / "knowmem" / f"{rows}_qa_icl.jsonl", pairs(2, first + 8))
    for seed, name in ((0, "forget"), (3, "holdout")):
        write_rows(folder / "privleak" / f"{name}.jsonl", corpus(6, seed, 40))
    return folder


def write_wmdp(folder: Path) -> Path:
    for seed, name in enumerate(("forget", "retain")):
        write_rows(folder / f"cyber-{name}-corpus.jsonl", corpus(3 + 6 * seed, seed))
    questions = [
        {"question": f"Which town is number {i}?", "choices": TOWNS[:4], "answer": i % 4} for i in range(8)
    ]  # fmt: skip
    write_rows(folder / "wmdp-cyber.jsonl", questions)
    return folder


WRITERS = {"tofu": write_tofu, "muse": write_muse, "wmdp": write_wmdp}
