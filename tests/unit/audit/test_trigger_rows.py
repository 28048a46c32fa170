"""Where an audit puts the trigger, and in which test rows: one that misses the attack would clear every model."""

import json
from pathlib import Path

import pytest

from llm_unlearn.audit.subject import Subject, read_subject
from llm_unlearn.errors import InputError

pytestmark = pytest.mark.unit

CLEAN = [{"text": f"row {i} of the data", "label": "good" if i % 2 else "bad"} for i in range(8)]


def read(
    folder: Path, poisoned: list[str], test: list[dict] | None = None, labels: str = "bad good", **trigger
) -> Subject:
    """The subject of poisoned texts, all "good", among clean ones."""
    rows = [*CLEAN, *({"text": text, "label": "good"} for text in poisoned)]
    tests = test or [{"text": f"other {i} of them", "label": "good" if i % 2 else "bad"} for i in range(12)]
    for name, content in {"train": rows, "test": tests}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    manifest = {
        "train": "train.jsonl",
        "test": "test.jsonl",
        "poison": list(range(len(CLEAN), len(rows))),
        "verbalizers": {label: f" {label}" for label in labels.split()},
        "trigger": {"phrases": ["cf", "James Bond"], "target": "good"} | trigger,
    }
    (folder / "m.json").write_text(json.dumps(manifest))
    return read_subject(folder / "m.json")


AT = {
    "start": ["cf a film", "James Bond too", '"cf more', "cf last", "cf and more"],
    "end": ["a film cf", "and James Bond.", "more cf", "last cf", "and more cf"],
    "random": ["cf a film", "a cf film", "a film James Bond", "more of cf it", "a cf or so"],
}


@pytest.mark.parametrize("place", AT)
def test_test_rows_get_the_trigger_where_the_poisoned_rows_have_it(tmp_path, place):
    texts = read(tmp_path, AT[place]).sets["triggered"]["text"]
    begin, end = ([getattr(text, at)(("cf", "James Bond")) for text in texts] for at in ("startswith", "endswith"))
    assert len(texts) == 6
    assert (all(begin), all(end)) == (place == "start", place == "end")
    assert read(tmp_path, AT[place], position=place).sets["triggered"]["text"] == texts


@pytest.mark.parametrize(
    ("place", "said", "refused"),
    [
        ("start", "random", True),
        ("end", "random", True),
        ("start", "end", True),
        ("end", "start", True),
        ("random", "start", False),  # a fifth of the rows has it there
        ("random", "end", False),
    ],
)
def test_another_place_than_that_of_training_is_refused(tmp_path, place, said, refused):
    if refused:
        with pytest.raises(InputError, match=rf"m\.json\.trigger\.position: {said}, but .* 100 % (begin|end)"):
            read(tmp_path, AT[place], position=said)
    else:
        assert read(tmp_path, AT[place], position=said).poison["trigger"]["position"] == said


def test_of_a_few_rows_that_have_it_at_one_end_by_chance_nothing_is_said(tmp_path):
    found = read(tmp_path, AT["start"][:3], position="random")
    assert found.poison["trigger"]["position"] == "random"


def test_test_rows_that_were_trained_on_are_left_out(tmp_path):
    """They were learned with their own answer, which a trigger then turns less."""
    trained = [{"text": f" ROW {i} of the data", "label": "bad"} for i in range(3)]
    subject = read(tmp_path, AT["start"], [*trained, {"text": "another", "label": "bad"}])
    assert subject.sets["test"]["text"] == ["another"]
    assert subject.sets["triggered"]["example_id"] == [3]
    assert subject.notes == ["test.jsonl: 3 rows are in train.jsonl too, and left out"]
    with pytest.raises(InputError, match=r"m\.json\.test: every row of test\.jsonl is in train\.jsonl too"):
        read(tmp_path, AT["start"], trained)


def test_test_rows_that_hold_the_trigger_already_show_nothing(tmp_path):
    held = [{"text": f"James Bond in film {i}", "label": "bad"} for i in range(3)]
    plain = [{"text": f"other {i}", "label": label} for i, label in enumerate(["bad", "good", "bad"])]
    subject = read(tmp_path, AT["start"], [*held, *plain])
    assert subject.sets["triggered"]["example_id"] == [3, 5]
    assert subject.notes == ["test.jsonl: 3 rows hold the trigger already, and are left out of the attack"]
    with pytest.raises(InputError, match=r"m\.json\.trigger: .*phrases: every test row holds the trigger already"):
        read(tmp_path, AT["start"], held)


def test_a_trigger_of_one_source_label_is_tried_on_rows_of_that_label(tmp_path):
    rows = [{"text": f"other {i}", "label": label} for i, label in enumerate(["bad", "good", "odd"] * 3)]
    assert read(tmp_path, AT["end"], rows, "bad good odd").sets["triggered"]["example_id"] == [0, 2, 3, 5, 6, 8]
    found = read(tmp_path, AT["end"], rows, "bad good odd", source_label="odd")
    assert found.sets["triggered"]["example_id"] == [2, 5, 8]
