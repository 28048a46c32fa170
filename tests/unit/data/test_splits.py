from collections import Counter
from itertools import chain

import numpy as np
import pytest
from datasets import Dataset

from llm_unlearn.data.splits import make_splits
from llm_unlearn.errors import InputError

SIZES = {"train_size": 60, "heldout_size": 20, "test_size": 30}


def rows(n, name="text", classes=2, labelled=True):
    columns = {"text": [f"{name} number {i}" for i in range(n)]}
    if labelled:
        columns["label"] = [f"class {i % classes}" for i in range(n)]
    return Dataset.from_dict(columns)


def ids(splits):
    return [list(part["example_id"]) for part in (splits.train, splits.heldout, splits.test)]


def texts(part):
    return {" ".join(text.casefold().split()) for text in part["text"]}


def test_sizes_ids_and_disjointness():
    train, test = rows(100), rows(50, "other")
    splits = make_splits(train, test, **SIZES, seed=0)
    assert [len(part) for part in ids(splits)] == [60, 20, 30]
    everything = list(chain(*ids(splits)))
    assert len(set(everything)) == 110
    assert splits.train.features["example_id"].dtype == "int64"
    source = list(train["text"]) + list(test["text"])  # an id is the position in train followed by test
    for part in (splits.train, splits.heldout, splits.test):
        assert [source[i] for i in part["example_id"]] == list(part["text"])
    assert splits.report == {
        "within_train": 0,
        "across_train_and_test": 0,
        "dropped_from_heldout": 0,
        "dropped_from_test": 0,
    }


def test_the_draw_depends_on_the_seed_alone():
    train, test = rows(100), rows(50, "other")
    first = ids(make_splits(train, test, **SIZES, seed=1))
    np.random.seed(7)
    assert ids(make_splits(train, test, **SIZES, seed=1)) == first
    assert ids(make_splits(train, test, **SIZES, seed=2)) != first
    np.random.seed(7)
    expected = np.random.random()
    np.random.seed(7)
    make_splits(train, test, **SIZES, seed=1)
    assert np.random.random() == expected


def test_a_smaller_train_is_a_subset_and_leaves_test_alone():
    train, test = rows(100), rows(50, "other")
    large = ids(make_splits(train, test, **SIZES, seed=0))
    small = ids(make_splits(train, test, **{**SIZES, "train_size": 31}, seed=0))
    assert set(small[0]) < set(large[0]) and small[2] == large[2]


def test_all_three_from_one_source():
    splits = make_splits(rows(110), None, **SIZES, seed=0)
    assert sorted(chain(*ids(splits))) == list(range(110))


@pytest.mark.parametrize("shares", [{"a": 0.5, "b": 0.5}, {"a": 0.9, "b": 0.1}, {"a": 0.6, "b": 0.3, "c": 0.1}])
def test_stratified_by_label(shares):
    labels = [label for label, share in shares.items() for _ in range(round(1000 * share))]
    train = Dataset.from_dict({"text": [f"text {i}" for i in range(1000)], "label": labels})
    splits = make_splits(train, None, train_size=500, heldout_size=100, test_size=200, seed=0)
    for part in (splits.train, splits.heldout, splits.test):
        counts = Counter(part["label"])
        for label, share in shares.items():
            assert abs(counts[label] - share * len(part)) <= 1.5, counts
    assert list(splits.train["label"]) != sorted(splits.train["label"])


def test_free_text_labels_and_no_labels_are_drawn_plainly():
    many = make_splits(rows(110, classes=21), None, **SIZES, seed=0)
    none = make_splits(rows(110, labelled=False), None, **SIZES, seed=0)
    assert ids(many) == ids(none)
    assert none.train.column_names == ["text", "example_id"]
    assert ids(make_splits(rows(110, classes=20), None, **SIZES, seed=0)) != ids(none)


@pytest.fixture
def repeated():
    """100 training rows: 80…99 repeat 0…19 but for case and spaces. Test repeats training rows 0…9."""
    train = [f"Text Number {i}" for i in range(80)] + [f" text  number\n{i} " for i in range(20)]
    test = [f"TEXT NUMBER {i}" for i in range(10)] + [f"other {i}" for i in range(40)]
    return [Dataset.from_dict({"text": t, "label": ["x", "y"] * (len(t) // 2)}) for t in (train, test)]


def test_repeated_texts_are_counted_and_kept_out(repeated):
    # Of 80 texts 20 stand twice, so some seed meets a repeat on the way to its 9 held-out rows.
    dropped = Counter()
    for seed in range(8):
        splits = make_splits(*repeated, train_size=71, heldout_size=9, test_size=40, seed=seed)
        assert splits.report["within_train"] == 20
        assert splits.report["across_train_and_test"] == 10
        assert [len(part) for part in ids(splits)] == [71, 9, 40]
        train, heldout, test = (texts(part) for part in (splits.train, splits.heldout, splits.test))
        assert not train & heldout and not (train | heldout) & test
        dropped.update(splits.report)
    assert dropped["dropped_from_heldout"] > 0 and dropped["dropped_from_test"] > 0


def test_repeated_texts_may_be_kept(repeated):
    splits = make_splits(*repeated, train_size=80, heldout_size=20, test_size=50, seed=0, keep_duplicates=True)
    assert [len(part) for part in ids(splits)] == [80, 20, 50]
    assert texts(splits.train) & texts(splits.test)
    assert splits.report == {
        "within_train": 20,
        "across_train_and_test": 10,
        "dropped_from_heldout": 0,
        "dropped_from_test": 0,
    }


def test_too_few_rows_name_the_field_and_the_number(repeated):
    with pytest.raises(InputError, match=r"data\.train_size: .*\b101 rows.*\b100"):
        make_splits(*repeated, train_size=101, heldout_size=0, test_size=0, seed=0)
    with pytest.raises(InputError, match=r"data\.heldout_size: .*\b60 rows.*\b50\.$"):
        make_splits(rows(100), None, train_size=50, heldout_size=60, test_size=0, seed=0)
    with pytest.raises(InputError, match=r"data\.test_size: .*\b50 rows.*\b40 \(10 more"):
        make_splits(*repeated, train_size=100, heldout_size=0, test_size=50, seed=0)


@pytest.mark.parametrize("field, size", [("train_size", 0), ("heldout_size", -1), ("test_size", -1)])
def test_impossible_sizes_name_the_field(field, size):
    with pytest.raises(InputError, match=rf"data\.{field}: {size} is too few"):
        make_splits(rows(200), None, **{**SIZES, field: size}, seed=0)


def test_labels_on_one_side_only_are_refused():
    with pytest.raises(InputError, match="labels"):
        make_splits(rows(100), rows(50, labelled=False), **SIZES, seed=0)


def test_on_imdb(real_data):
    from llm_unlearn.data.source_files import load_source

    train, test = (load_source(None, [real_data / "imdb" / f"{name}.jsonl.xz"]) for name in ("train", "test"))
    splits = make_splits(train, test, train_size=20_000, heldout_size=2_000, test_size=10_000, seed=0)
    assert splits.report["within_train"] >= 96
    assert 100 <= splits.report["across_train_and_test"] <= 150  # SOURCE.txt beside the data: 123 exact ones
    assert splits.report["dropped_from_heldout"] > 0 and splits.report["dropped_from_test"] > 0
    in_train, in_heldout, in_test = (texts(part) for part in (splits.train, splits.heldout, splits.test))
    assert not in_train & in_heldout and not (in_train | in_heldout) & in_test
    assert Counter(splits.train["label"]) == {"0": 10_000, "1": 10_000}
