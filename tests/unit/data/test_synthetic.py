import re

import numpy as np
import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from llm_unlearn.data.synthetic import synthetic_reviews, synthetic_texts
from llm_unlearn.errors import InputError


@pytest.fixture(scope="module")
def reviews():
    rows = synthetic_reviews(20_000, seed=3)
    return list(rows["text"]), list(rows["label"])


def test_columns_and_types():
    assert synthetic_reviews(2, seed=0).features["text"].dtype == "string"
    assert synthetic_reviews(2, seed=0).column_names == ["text", "label"]
    assert synthetic_texts(2, seed=0).column_names == ["text"]
    assert len(synthetic_reviews(0, seed=0)) == 0


def test_indefinite_articles_fit_the_next_word(reviews):
    found = set()
    for text in reviews[0]:
        found.update(re.findall(r"\b([Aa]n?) (\w+)", text))
    said_with_consonant = {"useful", "useless"}
    wrong = {
        (article, word)
        for article, word in found
        if (article.lower() == "an") != (word[0] in "aeiou" and word not in said_with_consonant)
    }
    assert not wrong
    assert {("a", "useful"), ("an", "awful"), ("an", "unusual"), ("a", "nice")} <= found


def test_subject_and_verb_agree(reviews):
    plural = {"effects", "jokes", "costumes", "action scenes", "buttons", "controls", "speakers", "materials"}
    mass = "acting|pacing|dialogue|music|camera work|sound|software|build quality|customer service"
    text = "\n".join(reviews[0])
    verbs = {"singular": "is|was|looks|seems", "plural": "are|were|look|seem"}
    nouns = {
        number: set(re.findall(rf"\bthe ((?:[a-z]+ )?[a-z]+) (?:{words})\b", text, re.IGNORECASE))
        for number, words in verbs.items()
    }
    assert nouns["plural"] == plural and not nouns["singular"] & plural
    assert nouns["singular"] >= set(mass.split("|"))
    assert not re.search(rf"\ba ({'|'.join(plural)})\b|\ba \w+ ({'|'.join(plural)}|{mass})\b", text)


def test_spelling_and_punctuation(reviews):
    for text in reviews[0]:
        assert re.fullmatch(r"[A-Za-z ,.!]+", text), text  # so: no slot left, no digit, no "a(n)"
        assert "  " not in text and " ." not in text and " ," not in text
        assert text[-1] in ".!"
        assert all(sentence[0].isupper() for sentence in re.split(r"(?<=[.!]) ", text)), text
        assert not re.search(r"\b(\w+) \1\b", text, re.IGNORECASE), text
        assert not re.search(r"sentiment|positive|negative", text, re.IGNORECASE)


def test_length_and_vocabulary(reviews):
    lengths = np.array([len(text.split()) for text in reviews[0]])
    assert 33 < lengths.mean() < 37
    assert lengths.min() >= 20 and lengths.max() <= 60
    assert np.mean((lengths >= 25) & (lengths <= 45)) > 0.9
    words = {word for text in reviews[0] for word in re.findall(r"[a-z]+", text.lower())}
    assert 200 < len(words) < 500


def test_labels_are_balanced_at_every_even_size(reviews):
    signs = np.array([1 if label == "positive" else -1 for label in reviews[1]])
    assert not signs[0::2][signs[0::2] == signs[1::2]].size
    assert 0.47 < np.mean(signs[0::2] == 1) < 0.53  # and their order within a pair is drawn


def test_repetitions_are_rare(reviews):
    assert len(set(reviews[0])) > 0.999 * len(reviews[0])


def test_a_shorter_draw_is_a_prefix_and_seeds_differ(reviews):
    few = synthetic_reviews(101, seed=3)
    assert list(few["text"]) == reviews[0][:101] and list(few["label"]) == reviews[1][:101]
    assert not set(synthetic_reviews(100, seed=4)["text"]) & set(reviews[0])
    texts = list(synthetic_texts(200, seed=3)["text"])
    assert list(synthetic_texts(50, seed=3)["text"]) == texts[:50]


def test_unlabelled_texts_are_other_texts_in_the_same_words(reviews):
    texts = list(synthetic_texts(3000, seed=3)["text"])
    assert not set(texts) & set(reviews[0])
    known = {word for text in reviews[0] for word in text.split()}
    assert {word for text in texts for word in text.split()} <= known
    assert abs(np.mean([len(t.split()) for t in texts]) - np.mean([len(t.split()) for t in reviews[0]])) < 0.6


def test_draws_leave_the_global_generators_alone():
    np.random.seed(0)
    expected = np.random.random()
    np.random.seed(0)
    synthetic_reviews(3, seed=0)
    assert np.random.random() == expected


@pytest.mark.parametrize("noise", [0.04, 0.2])
def test_label_noise_flips_that_share_of_the_texts(noise):
    n = 3000
    clean, noisy = (synthetic_reviews(n, seed=5, label_noise=0), synthetic_reviews(n, seed=5, label_noise=noise))
    assert list(clean["label"]) == list(noisy["label"])
    flipped = np.mean([a != b for a, b in zip(clean["text"], noisy["text"], strict=True)])
    assert abs(flipped - noise) < 4 * np.sqrt(noise * (1 - noise) / n)


def test_a_bag_of_words_learns_it_but_not_perfectly(reviews):
    texts, labels = reviews
    scores = []
    for start in (0, 4000, 8000):
        middle, end = start + 1500, start + 4000
        model = make_pipeline(CountVectorizer(), LogisticRegression(C=0.3, max_iter=500))
        model.fit(texts[start:middle], labels[start:middle])
        scores.append(model.score(texts[middle:end], labels[middle:end]))
    assert 0.88 < min(scores) and max(scores) < 0.985, scores


@pytest.mark.parametrize("call", [
    lambda: synthetic_reviews(-1, seed=0),
    lambda: synthetic_texts(1, seed=-1),
    lambda: synthetic_reviews(1, seed=0, label_noise=0.6),
])  # fmt: skip
def test_values_out_of_range_are_refused(call):
    with pytest.raises(InputError):
        call()
