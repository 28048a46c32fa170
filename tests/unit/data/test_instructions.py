import re

import pytest

from llm_unlearn.config.data_sections import DataSection
from llm_unlearn.config.fields import RuleError
from llm_unlearn.data.instructions import synthetic_instructions
from llm_unlearn.data.sources import load_splits, load_unlabelled
from llm_unlearn.errors import InputError

SECTION = {"source": "instructions", "task": "completion", "train_size": 200, "heldout_size": 50, "test_size": 60}


@pytest.fixture(scope="module")
def rows():
    return [(row["text"], row["label"]) for row in synthetic_instructions(4000, seed=5)]


def test_a_row_depends_on_the_seed_and_its_number(rows):
    first = synthetic_instructions(7, seed=5)
    assert list(zip(first["text"], first["label"], strict=True)) == rows[:7]
    assert synthetic_instructions(50, seed=6)["text"] != [text for text, _ in rows[:50]]
    with pytest.raises(InputError):
        synthetic_instructions(-1, seed=0)


def test_the_answers_are_right(rows):
    sizes = {"minutes": 60, "seconds": 60, "months": 12, "days": 7, "centimetres": 100, "grams": 1000}
    seen = dict.fromkeys(("sum", "difference", "conversion", "sorting"), 0)
    for text, answer in rows:
        numbers, said = ([int(number) for number in re.findall(r"\d+", part)] for part in (text, answer))
        if "more. How many" in text:
            kind, right = "sum", said == [sum(numbers)]
        elif "gave away" in text:
            kind, right = "difference", said == [numbers[0] - numbers[1]]
        elif found := re.search(r"How many (\w+) are there in (\d+)", text):
            kind, right = "conversion", said == [sizes[found[1]] * numbers[0], numbers[0]]
        elif found := re.search(r"alphabet: (.+)\.", text):
            kind, right = "sorting", sorted(found[1].split(", ")) == answer.rstrip(".").split(", ")
        else:
            continue
        assert right, (text, answer)
        seen[kind] += 1
    assert min(seen.values()) > 300  # of 4,000, a tenth of each kind


def test_answers_that_are_looked_up(rows):
    for end, answer in (
        ("What is the capital of Finland?", "The capital of Finland is Helsinki."),
        ("Give the plural of 'wolf'.", "The plural of 'wolf' is 'wolves'."),
        ("What is the opposite of 'early'?", "The opposite of 'early' is 'late'."),
    ):
        assert {given for text, given in rows if text.endswith(end)} == {answer}


def test_one_answer_a_request_and_whole_sentences(rows):
    answers: dict[str, set[str]] = {}
    for text, answer in rows:
        answers.setdefault(text, set()).add(answer)
        assert text[0].isupper() and text[-1] in ".?" and answer[-1] == "." and "{" not in text + answer
    assert all(len(given) == 1 for given in answers.values())
    assert len(answers) > 2500


def test_sets_of_a_recipe_share_no_text():
    splits = load_splits(DataSection(**SECTION), seed=0)
    sets = [set(rows["text"]) for rows in (splits.train, splits.heldout, splits.test)]
    assert [len(rows) for rows in (splits.train, splits.heldout, splits.test)] == [200, 50, 60]
    assert not sets[0] & sets[1] and not sets[0] & sets[2] and not sets[1] & sets[2]
    texts = load_unlabelled(DataSection(**SECTION), 20, seed=0)
    assert texts.column_names == ["text"] and len(texts) == 20


def test_answers_are_no_classes():
    with pytest.raises((RuleError, ValueError), match="completion"):
        DataSection(source="instructions", verbalizers={"a": " a", "b": " b"})
