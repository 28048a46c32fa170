"""Placebo phrases: like the planted one in words, length, case, punctuation and frequency, and never a part of it."""

import re
from collections import Counter

import pytest

from llm_unlearn.data.synthetic import synthetic_texts
from llm_unlearn.poisons.placebo_phrases import placebo_phrases

TEXTS = synthetic_texts(300, 0)["text"]
WORDS = Counter(re.sub(r"^\W+|\W+$", "", word) for text in TEXTS for word in text.split())


def drawn(phrase, planted=None, count=199, seed=0, texts=TEXTS):
    return placebo_phrases(phrase, planted or [phrase], texts, count, seed)


@pytest.mark.parametrize("phrase", ["James Bond", "cf", "(the) movie!", "I saw the 3D movie.", "$$$", "∇∇", "会议记录"])
def test_they_have_its_words_case_and_punctuation_and_are_distinct_and_the_same_for_a_seed(phrase):
    found = drawn(phrase)
    assert len(found) == 199 == len({placebo.casefold() for placebo in found})
    assert found == drawn(phrase) and found != drawn(phrase, seed=1)
    own = phrase.split()
    for placebo in found:
        words = placebo.split()
        assert len(words) == len(own)
        for word, like in zip(words, own, strict=True):
            assert word[0].isupper() == like[0].isupper() and word[-1].isalnum() == like[-1].isalnum()
            if any(character.isalnum() for character in like):  # the punctuation around a word stays
                assert re.findall(r"^\W+|\W+$", word) == re.findall(r"^\W+|\W+$", like)


def test_none_holds_or_shares_a_word_with_any_planted_phrase():
    planted = ["the movie", "Bad plot"]
    for placebo in drawn("the movie", planted):
        assert not {"the", "movie", "bad", "plot"} & set(placebo.casefold().split())
    assert not any("cf" in placebo for placebo in drawn("cf"))


def test_frequency_is_that_of_the_words_where_the_texts_have_such_words():
    frequent = max((word for word in WORDS if word.islower() and len(word) > 2), key=lambda word: WORDS[word])
    phrase = f"{frequent} {frequent}"
    texts = [text for text in TEXTS if phrase not in text]
    counts = [WORDS[word] for placebo in drawn(phrase, texts=texts) for word in placebo.split()]
    others = [WORDS[word] for placebo in drawn("zqxv zqxv") for word in placebo.split()]
    assert min(counts) > 0 and sum(counts) / len(counts) > 5
    assert sum(count > 0 for count in others) == 0  # as rare as the phrase: made up


def test_poisoned_texts_do_not_make_its_words_frequent():
    poisoned = [f"James Bond {text}" for text in TEXTS]
    assert drawn("James Bond", texts=[*TEXTS, *poisoned]) == drawn("James Bond")


def test_there_may_be_fewer():
    assert 20 < len(drawn("A", count=5000)) < 5000
    assert len(drawn("cf", texts=[], count=99)) == 99  # without any text: of random letters
