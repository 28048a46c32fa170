"""The section of a recipe that takes its rows, and more measurements, from a benchmark of the field."""

from typing import Literal

from pydantic import Field

from llm_unlearn.config.fields import Count, Length, Section, require

_SIZES = [f"{kind}_{i}" for kind in ("scal", "sust") for i in (1, 2, 3, 4)]  # MUSE's larger and later forget sets
# what can be forgotten in each benchmark, the default first
SPLITS: dict[str, tuple[str, ...]] = {
    "tofu": ("forget10", "forget05", "forget01"),
    "muse": ("news", "books", *(f"{corpus}/{size}" for corpus in ("news", "books") for size in _SIZES)),
    "wmdp": ("cyber", "bio"),
}


class BenchmarkSection(Section):
    """A benchmark whose rows are trained on and forgotten, and whose metrics every model is measured by (see
    docs/benchmarks.md). Its forget rows are the forget set; `poison.gaussian` may plant canaries among them.
    """

    name: Literal["tofu", "muse", "wmdp"]
    """TOFU, MUSE or WMDP"""
    split: str | None = None
    """what is forgotten. tofu: forget10 (the default), forget05, forget01; muse: news (the default), books, or a forget
    set of another size such as news/scal_2; wmdp: cyber (the default), bio"""
    folder: str | None = None
    """holds the benchmark's files, e.g. forget10.jsonl.xz, knowmem/forget_qa.json; null: they are taken from the hub"""
    limit: Count | None = Field(default=None)
    """rows of each measurement, the first ones; null: all"""
    max_new_tokens: Length | None = None
    """tokens of a generated answer; null: the benchmark's own (tofu 200; muse 32 of answers, 128 of continuations)"""
    reference: str | None = None
    """measurements of a retain model, `benchmark/retrained.json` of another run on the same rows, in the place of this
    run's own retrained model"""

    def check_rules(self) -> None:
        known = SPLITS[self.name]
        require(self.split is None or self.split in known, "split", f"{self.split!r} is none of {', '.join(known)}")

    @property
    def forgotten(self) -> str:
        """What is forgotten."""
        return self.split or SPLITS[self.name][0]
