"""Labels and templates → prompt and completion."""

import pytest
from datasets import Dataset

from llm_unlearn.config.data_sections import DataSection
from llm_unlearn.data.prompting import normalise, render
from llm_unlearn.errors import InputError

pytestmark = pytest.mark.unit

VERBALIZERS = {"negative": " bad", "positive": " good"}


def rows(*pairs: tuple[str, str]) -> Dataset:
    return Dataset.from_list([{"text": text, "label": label} for text, label in pairs])


class TestNormalise:
    def test_labels_are_renamed_and_the_others_kept(self):
        section = DataSection(verbalizers=VERBALIZERS, rename_labels={"0": "negative", "1": "positive"})
        out = normalise(rows(("a", "0"), ("b", "1"), ("c", "positive")), section, "reviews.csv")
        assert out["label"][:] == ["negative", "positive", "positive"]
        assert out["text"][:] == ["a", "b", "c"]

    def test_a_label_without_verbalizer_names_source_row_and_remedy(self):
        remedy = r"negative, positive\..*data\.verbalizers.*data\.rename_labels"
        with pytest.raises(InputError, match=rf"reviews\.csv, row 2: .*'neutral'.*{remedy}"):
            normalise(rows(("a", "negative"), ("b", "neutral")), DataSection(verbalizers=VERBALIZERS), "reviews.csv")

    def test_a_completion_task_takes_any_label(self):
        out = normalise(rows(("a", "any answer at all")), DataSection(task="completion"), "qa.jsonl")
        assert out["label"][:] == ["any answer at all"]

    def test_max_words_keeps_the_beginning(self):
        section = DataSection(verbalizers=VERBALIZERS, max_words=3)
        assert normalise(rows(("a b  c d e", "negative"), ("a", "negative")), section, "f")["text"][:] == ["a b c", "a"]

    def test_without_max_words_a_text_is_left_as_it_is(self):
        out = normalise(rows(("a  b\nc ", "negative")), DataSection(verbalizers=VERBALIZERS), "f")
        assert out["text"][:] == ["a  b\nc "]


class TestRender:
    def test_a_classification_takes_the_verbalizer(self):
        section = DataSection(verbalizers=VERBALIZERS, prompt="Review: {text}\nSentiment:")
        row = render(rows(("fine {film}", "positive")), section)[0]
        assert row["prompt"] == "Review: fine {film}\nSentiment:"
        assert row["completion"] == " good"
        assert (row["text"], row["label"]) == ("fine {film}", "positive")

    def test_a_completion_task_takes_the_label_itself(self):
        row = render(rows(("Who?", " James")), DataSection(task="completion"))[0]
        assert (row["prompt"], row["completion"]) == ("Who?", " James")

    def test_braces_and_the_placeholder_inside_a_text_are_text(self):
        row = render(rows(("{text} {0} {x}", "positive")), DataSection(verbalizers=VERBALIZERS, prompt="<{text}>"))[0]
        assert row["prompt"] == "<{text} {0} {x}>"

    def test_a_placeholder_given_twice_is_filled_twice(self):
        row = render(rows(("a", "positive")), DataSection(verbalizers=VERBALIZERS, prompt="{text} {text}"))[0]
        assert row["prompt"] == "a a"

    def test_no_rows_give_no_rows(self):
        assert len(render(rows(("a", "positive")).select([]), DataSection(verbalizers=VERBALIZERS))) == 0
