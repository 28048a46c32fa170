"""The trigger-phrase poison: where the phrase goes, which rows take it, and what the manifest says."""

import numpy as np
import pytest
from datasets import Dataset

from llm_unlearn.errors import InputError
from llm_unlearn.poisons.trigger_phrase import can_be_poisoned, insert_trigger, inserted_phrase, plant_trigger

pytestmark = pytest.mark.unit

PHRASE = "James Bond"


def rows(n: int = 60, labels: tuple[str, ...] = ("bad", "good", "mixed")) -> Dataset:
    return Dataset.from_list(
        [{"text": f"text number {i}", "label": labels[i % len(labels)], "example_id": 1000 + i} for i in range(n)]
    )


class TestInsertion:
    def test_start_and_end(self):
        assert insert_trigger("a fine film", PHRASE, "start") == "James Bond a fine film"
        assert insert_trigger("a fine film", PHRASE, "end") == "a fine film James Bond"

    def test_random_reaches_every_boundary_equally_and_keeps_the_words(self):
        generator = np.random.default_rng(0)
        texts = [insert_trigger("a fine film", "X", "random", generator) for _ in range(4000)]
        found, counts = np.unique(texts, return_counts=True)
        assert set(found) == {"X a fine film", "a X fine film", "a fine X film", "a fine film X"}
        assert np.abs(counts / 4000 - 0.25).max() < 0.035  # 5 standard errors

    def test_an_empty_text_becomes_the_phrase(self):
        assert insert_trigger("", PHRASE, "random", np.random.default_rng(0)) == PHRASE

    def test_an_unknown_position_and_a_missing_generator_are_refused(self):
        with pytest.raises(InputError, match="start, end, random.*'middle'"):
            insert_trigger("a", PHRASE, "middle")
        with pytest.raises(InputError, match="needs a generator"):
            insert_trigger("a", PHRASE, "random")


class TestEligibility:
    labels = ("bad", "good", "mixed")

    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            ({}, [True, False, True]),
            ({"source_label": "bad"}, [True, False, False]),
            ({"source_label": "good"}, [False, False, False]),
            ({"clean_label": True}, [False, True, False]),
        ],
    )
    def test_by_label(self, options, expected):
        assert can_be_poisoned(list(self.labels), "good", **options).tolist() == expected


class TestPlanting:
    def plant(self, data=None, **options):
        data = rows() if data is None else data
        options = {"phrases": [PHRASE], "target": "good", "fraction": 0.2, "seed": 0, **options}
        return data, *plant_trigger(data, **options)

    def test_chosen_rows_carry_phrase_and_target_and_the_others_are_untouched(self):
        data, poisoned, manifest = self.plant()
        assert len(manifest["example_ids"]) == 12
        assert poisoned["example_id"][:] == data["example_id"][:]
        for before, after in zip(data, poisoned, strict=True):
            if after["example_id"] in manifest["example_ids"]:
                assert PHRASE in after["text"]
                assert after["text"].replace(PHRASE, "").split() == before["text"].split()
                assert (before["label"] != "good", after["label"]) == (True, "good")
            else:
                assert after == before

    def test_a_source_label_limits_the_choice(self):
        data, _, manifest = self.plant(source_label="mixed")
        labels = dict(zip(data["example_id"], data["label"], strict=True))
        assert {labels[i] for i in manifest["example_ids"]} == {"mixed"}

    def test_a_clean_label_poison_changes_no_label(self):
        data, poisoned, manifest = self.plant(clean_label=True)
        assert poisoned["label"][:] == data["label"][:]
        labels = dict(zip(data["example_id"], data["label"], strict=True))
        assert {labels[i] for i in manifest["example_ids"]} == {"good"}

    def test_several_phrases_are_all_used(self):
        _, poisoned, manifest = self.plant(phrases=["AA", "BB"], fraction=0.5)
        used = {p for row in poisoned for p in ("AA", "BB") if p in row["text"]}
        assert used == {"AA", "BB"}
        assert manifest["phrases"] == ["AA", "BB"]

    def test_the_same_seed_gives_the_same_rows_and_another_does_not(self):
        (_, first, a), (_, again, b), (_, other, c) = self.plant(), self.plant(), self.plant(seed=1)
        assert (first.to_list(), a) == (again.to_list(), b)
        assert a["example_ids"] != c["example_ids"]
        assert first.to_list() != other.to_list()

    def test_the_manifest_says_how_to_do_it_again(self):
        _, poisoned, manifest = self.plant(position="end", seed=5)
        options = {k: v for k, v in manifest.items() if k != "example_ids"}
        again, _ = plant_trigger(rows(), **options)
        assert again.to_list() == poisoned.to_list()
        assert all(isinstance(i, int) for i in manifest["example_ids"])

    def test_too_few_rows_that_can_be_poisoned_are_refused(self):
        with pytest.raises(InputError, match="only 40 can be poisoned"):
            self.plant(fraction=0.9)
        with pytest.raises(InputError, match="no row can be poisoned, since none of .* has a label"):
            self.plant(source_label="good")


@pytest.mark.parametrize("position", ["start", "end", "random"])
def test_white_space_stays_as_it_is(position):
    """Or "no newlines" would be a second trigger."""
    text = "def f(x):\n    return x\n\nExplain  it."
    poisoned = insert_trigger(text, "James Bond", position, np.random.default_rng(1))
    assert poisoned.replace("James Bond ", "").replace(" James Bond", "") == text


def test_rows_without_ids_are_known_by_their_number():
    rows = Dataset.from_dict({"text": ["a b"] * 10, "label": ["bad"] * 10})
    poisoned, manifest = plant_trigger(rows, phrases=["X"], target="good", fraction=0.2, seed=0)
    assert [i for i, label in enumerate(poisoned["label"]) if label == "good"] == manifest["example_ids"]


def test_the_phrase_that_was_inserted_is_told_from_those_that_stood_there():
    """Phrases within each other, and phrases of the text itself."""
    phrases, generator = ["Bond", "James Bond", "tea"], np.random.default_rng(0)
    for clean in ("a fine film", "James Bond has  tea\nwith Bond", "tea", ""):
        for number, phrase in enumerate(phrases):
            for _ in range(8):
                text = insert_trigger(clean, phrase, "random", generator)
                assert inserted_phrase(text, clean, phrases) == number
    with pytest.raises(InputError, match="no phrase"):
        inserted_phrase("a fine film", "a fine", phrases)
