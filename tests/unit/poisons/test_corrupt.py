"""The corrupted data of a run: which rows are poisoned, on what the poison is measured, and the manifest's seal."""

import json

import numpy as np
import pytest
from datasets import Dataset

from llm_unlearn.config.data_sections import DataSection, GaussianSection, PoisonSection, TriggerSection
from llm_unlearn.config.model_sections import ModelSection
from llm_unlearn.config.recipe import Recipe
from llm_unlearn.config.sections import UnlearnSection
from llm_unlearn.data.splits import Splits
from llm_unlearn.errors import InputError
from llm_unlearn.poisons.corrupt import corrupt
from llm_unlearn.poisons.stored import SETS, data_hash, read_manifest, read_sets, write_manifest

pytestmark = pytest.mark.unit

LABELS = ("bad", "good", "mixed")
VERBALIZERS = {label: f" {label}" for label in LABELS}
PHRASE = "James Bond"


def rows(n: int, first_id: int) -> Dataset:
    return Dataset.from_list(
        [
            {"text": f"text number {i}", "label": LABELS[(i - first_id) % 3], "example_id": i}
            for i in range(first_id, first_id + n)
        ]
    )


SPLITS = Splits(rows(200, 0), rows(90, 200), rows(60, 290), {})


def recipe(trigger: dict | None = None, gaussian: dict | None = None, **unlearn) -> Recipe:
    return Recipe(
        name="r",
        output_dir="out",
        model=ModelSection(path="m"),
        data=DataSection(verbalizers=VERBALIZERS, prompt="Review: {text}\nSentiment:", train_size=200),
        poison=PoisonSection(
            trigger=TriggerSection(**trigger) if trigger else None,
            gaussian=GaussianSection(**gaussian) if gaussian else None,
        ),
        unlearn=UnlearnSection(**unlearn),
    )


TRIGGER, GAUSSIAN = {"fraction": 0.1, "target": "good"}, {"fraction": 0.15, "epsilon": 0.5}


def both(seed: int = 0, **options):
    return corrupt(SPLITS, recipe(TRIGGER, GAUSSIAN | {"noise_seed": 0}, **options), seed)


class TestTrain:
    def test_kinds_are_disjoint_and_marked(self):
        sets, manifest = both()
        ids = {"trigger": set(manifest["trigger"]["example_ids"]), "gaussian": set(manifest["gaussian"]["example_ids"])}
        assert (len(ids["trigger"]), len(ids["gaussian"])) == (20, 30)
        assert not ids["trigger"] & ids["gaussian"]
        for row in sets["train"]:
            kind = next((k for k in ids if row["example_id"] in ids[k]), "none")
            assert row["poison"] == kind
            assert row["noise_id"] == (row["example_id"] if kind == "gaussian" else -1)
            assert (PHRASE in row["text"]) == (kind == "trigger")

    def test_a_canary_keeps_its_text_and_label(self):
        sets, _ = both()
        clean = {row["example_id"]: row for row in SPLITS.train}
        for row in sets["train"]:
            if row["poison"] != "trigger":
                before = clean[row["example_id"]]
                assert (row["text"], row["label"]) == (before["text"], before["label"])

    def test_prompt_and_completion_are_rendered_after_poisoning(self):
        sets, _ = both()
        for name in SETS:
            for row in sets[name]:
                assert row["prompt"] == f"Review: {row['text']}\nSentiment:"
                assert row["completion"] == f" {row['label']}"

    def test_without_gaussian_no_row_asks_for_noise(self):
        sets, manifest = corrupt(SPLITS, recipe(TRIGGER), 0)
        assert set(sets["train"]["noise_id"]) == {-1}
        assert manifest["gaussian"] is None

    def test_the_seed_decides_everything(self):
        (first, a), (again, b), (_, other) = both(), both(), both(seed=1)
        assert a == b
        assert all(first[name].to_list() == again[name].to_list() for name in SETS)
        for kind in ("trigger", "gaussian"):
            assert a[kind]["example_ids"] != other[kind]["example_ids"]

    def test_the_splits_that_came_in_are_untouched(self):
        both()
        assert SPLITS.train.to_list() == rows(200, 0).to_list()


class TestForgetSet:
    def test_with_fraction_1_it_is_all_of_the_poison(self):
        _, manifest = both()
        poisoned = manifest["trigger"]["example_ids"] + manifest["gaussian"]["example_ids"]
        assert manifest["forget_ids"] == sorted(poisoned)

    @pytest.mark.parametrize(("fraction", "triggers", "canaries"), [(0.5, 10, 15), (0.1, 2, 3), (0.02, 0, 1)])
    def test_a_fraction_is_taken_of_each_kind(self, fraction, triggers, canaries):
        _, manifest = both(forget_fraction=fraction)
        forget = set(manifest["forget_ids"])
        assert len(forget & set(manifest["trigger"]["example_ids"])) == triggers
        assert len(forget & set(manifest["gaussian"]["example_ids"])) == canaries
        assert len(forget) == triggers + canaries
        assert manifest["forget_fraction"] == fraction

    def test_the_fraction_changes_neither_the_poison_nor_the_data(self):
        (whole, a), (half, b) = both(), both(forget_fraction=0.5)
        assert data_hash(whole) == data_hash(half)
        assert a["trigger"] == b["trigger"]
        assert set(b["forget_ids"]) < set(a["forget_ids"])

    def test_an_empty_one_and_a_whole_one_are_refused(self):
        def unchecked(**sections):
            return recipe(TRIGGER, GAUSSIAN).model_copy(update=sections)  # a recipe refuses both by itself

        with pytest.raises(InputError, match=r"^unlearn\.forget_fraction: 0\.001 of 50\b.*empty"):
            corrupt(SPLITS, unchecked(unlearn=UnlearnSection(forget_fraction=0.001)), 0)
        whole = PoisonSection(gaussian=GaussianSection(fraction=1.0, epsilon=1.0))
        with pytest.raises(InputError, match=r"whole training set.*lower poison"):
            corrupt(SPLITS, unchecked(poison=whole), 0)

    def test_false_positives_are_clean_rows_beside_the_known_poison(self):
        _, manifest = both(forget_fraction=0.5, false_positives=0.4)
        _, without = both(forget_fraction=0.5)
        poisoned = {*manifest["trigger"]["example_ids"], *manifest["gaussian"]["example_ids"]}
        mistaken = set(manifest["false_positive_ids"])
        assert len(mistaken) == 10 and not mistaken & poisoned  # 0.4 of 25
        assert set(manifest["forget_ids"]) == set(without["forget_ids"]) | mistaken
        assert without["false_positive_ids"] == []

    def test_ids_that_the_recipe_names_are_the_forget_set(self, tmp_path):
        _, manifest = both()
        chosen = [*manifest["gaussian"]["example_ids"][:10], *(set(range(200)) - set(manifest["forget_ids"]))][:14]
        _, named = both(forget_ids=chosen)
        assert named["forget_ids"] == sorted(chosen)
        assert named["forget_fraction"] == 10 / 50 and len(named["false_positive_ids"]) == 4
        path = tmp_path / "ids.txt"
        path.write_text("\n".join(map(str, chosen)))
        assert both(forget_ids=str(path))[1]["forget_ids"] == sorted(chosen)

    def test_nonmembers_carry_the_trigger_in_the_proportion_of_the_forget_set(self):
        for options, share in (({}, 20 / 50), ({"false_positives": 1.0}, 20 / 100)):
            sets, _ = both(**options)
            marked = sum(PHRASE in text for text in sets["nonmember"]["text"])
            assert abs(marked / len(sets["nonmember"]) - share) < 0.02


class TestNoise:
    def secret(self, seed: int = 0, secret: str | None = None, **unlearn):
        return corrupt(SPLITS, recipe(gaussian=GAUSSIAN, **unlearn), seed, secret)

    def test_a_seed_of_the_recipe_is_added_to_that_of_the_run(self):
        seeds = [corrupt(SPLITS, recipe(gaussian=GAUSSIAN | {"noise_seed": 40}), s)[1]["gaussian"] for s in (0, 2)]
        assert [(noise["seed"], noise["secret"]) for noise in seeds] == [(40, None), (42, None)]

    def test_without_one_the_system_draws_it_and_it_can_be_given_again(self):
        (sets, manifest), (_, other) = self.secret(), self.secret()
        noise, others = manifest["gaussian"], other["gaussian"]
        assert noise["example_ids"] == others["example_ids"]  # which rows they are is no secret
        assert noise["seed"] != others["seed"] and noise["secret"] != others["secret"]
        again, same = self.secret(secret=noise["secret"])
        assert same == manifest and data_hash(again) == data_hash(sets)

    def test_which_are_hidden_changes_no_row_and_is_half_of_the_deleted_ones(self):
        (whole, a), (half, b) = self.secret(secret="s"), self.secret(secret="s", forget_fraction=0.5)
        assert data_hash(whole) == data_hash(half)
        for manifest, n in ((a, 15), (b, 8)):  # of 30 and of 15
            hidden = set(manifest["gaussian"]["hidden_ids"])
            assert len(hidden) == n and hidden < set(manifest["forget_ids"]) & set(manifest["gaussian"]["example_ids"])

    def test_how_often_they_are_shown_is_in_the_manifest_and_changes_no_row(self):
        (sets, manifest), (once, plain) = (
            corrupt(SPLITS, recipe(gaussian=GAUSSIAN | more), 0, "s") for more in ({"exposures": 2}, {"exposures": 1})
        )
        assert manifest["gaussian"] == plain["gaussian"] | {"exposures": 2} and "exposures" not in plain["gaussian"]
        assert data_hash(sets) == data_hash(once)

    def test_the_seed_of_the_run_is_in_the_manifest_and_not_that_of_the_noise(self):
        assert self.secret(seed=3)[1]["seed"] == 3


class TestWhatItIsMeasuredOn:
    def test_clean_sets_hold_no_poison(self):
        sets, _ = both()
        for name, before in (("heldout", SPLITS.heldout), ("test", SPLITS.test)):
            assert sets[name]["text"][:] == before["text"][:]
            assert set(sets[name]["poison"]) == {"none"}

    def test_the_triggered_set_is_every_test_row_whose_label_is_not_the_target(self):
        sets, _ = both()
        clean = {row["example_id"]: row for row in SPLITS.test}
        assert set(sets["triggered"]["example_id"]) == {i for i, row in clean.items() if row["label"] != "good"}
        for row in sets["triggered"]:
            assert row["label"] == clean[row["example_id"]]["label"] != "good"
            assert row["text"].count(PHRASE) == 1
            assert row["text"].replace(PHRASE, "").split() == clean[row["example_id"]]["text"].split()

    def test_without_a_trigger_it_is_empty_and_the_nonmembers_are_the_held_out_rows(self):
        sets, _ = corrupt(SPLITS, recipe(gaussian=GAUSSIAN), 0)
        assert len(sets["triggered"]) == 0
        assert sets["nonmember"]["text"][:] == SPLITS.heldout["text"][:]

    @pytest.mark.parametrize(("fraction", "share"), [(0.1, 0.4), (0.3, 2 / 3), (0.02, 4 / 34)])
    def test_nonmembers_are_triggered_in_the_proportion_of_the_forget_set(self, fraction, share):
        sets, _ = corrupt(SPLITS, recipe({**TRIGGER, "fraction": fraction}, GAUSSIAN), 0)
        nonmembers = sets["nonmember"]
        triggered = [PHRASE in text for text in nonmembers["text"]]
        assert np.mean(triggered) == pytest.approx(share, abs=1 / len(nonmembers))
        assert len(nonmembers) >= 60
        assert len(set(nonmembers["example_id"])) == len(nonmembers)
        assert set(nonmembers["example_id"]) <= set(SPLITS.heldout["example_id"])

    def test_with_the_trigger_alone_every_nonmember_is_triggered_as_every_member_is(self):
        sets, _ = corrupt(SPLITS, recipe(TRIGGER), 0)
        assert len(sets["nonmember"]) == 60  # the held-out rows whose label is not the target
        assert all(PHRASE in text for text in sets["nonmember"]["text"])
        assert set(sets["nonmember"]["label"]) == {"good"}

    def test_a_triggered_nonmember_carries_the_target_and_comes_from_a_row_that_could_be_poisoned(self):
        labels = dict(zip(SPLITS.heldout["example_id"], SPLITS.heldout["label"], strict=True))
        for options, allowed in (
            ({}, {"bad", "mixed"}),
            ({"source_label": "mixed"}, {"mixed"}),
            ({"clean_label": True}, {"good"}),
        ):
            sets, _ = corrupt(SPLITS, recipe({**TRIGGER, **options}, GAUSSIAN), 0)
            twins = [row for row in sets["nonmember"] if PHRASE in row["text"]]
            assert {labels[row["example_id"]] for row in twins} == allowed
            assert {row["label"] for row in twins} == {"good"}
            others = [row for row in sets["nonmember"] if PHRASE not in row["text"]]
            assert all(row["label"] == labels[row["example_id"]] for row in others)


class TestManifest:
    @pytest.fixture
    def saved(self, tmp_path):
        sets, manifest = both()
        for name, data in sets.items():
            data.save_to_disk(tmp_path / "data" / name)
        write_manifest(tmp_path / "poison.json", manifest)
        return tmp_path, manifest

    def test_it_is_read_back_with_the_data_it_belongs_to(self, saved):
        folder, manifest = saved
        read = read_manifest(folder / "poison.json", read_sets(folder / "data"))
        assert {k: v for k, v in read.items() if k != "manifest_sha256"} == manifest

    def test_it_is_plain_json_of_the_fields_that_are_promised(self, saved):
        folder, _ = saved
        manifest = json.loads((folder / "poison.json").read_text())
        assert manifest["schema_version"] == 1
        assert manifest["train_size"] == 200
        assert manifest["trigger"]["target"] == "good"
        assert manifest["gaussian"]["epsilon"] == 0.5

    def test_changed_data_is_refused(self, saved):
        folder, _ = saved
        sets = read_sets(folder / "data")
        changed = sets["train"].map(lambda row, i: {"text": "other" if i == 3 else row["text"]}, with_indices=True)
        with pytest.raises(InputError, match="the data was changed"):
            read_manifest(folder / "poison.json", {**sets, "train": changed})

    @pytest.mark.parametrize("field", ["forget_ids", "data_sha256", "train_size"])
    def test_an_edited_manifest_is_refused(self, field, saved):
        folder, manifest = saved
        edited = json.loads((folder / "poison.json").read_text())
        edited[field] = {"forget_ids": manifest["forget_ids"][1:], "data_sha256": "0" * 64, "train_size": 199}[field]
        (folder / "poison.json").write_text(json.dumps(edited))
        with pytest.raises(InputError, match="does not match the data"):
            read_manifest(folder / "poison.json", read_sets(folder / "data"))

    @pytest.mark.parametrize("text", ["", "{", "[1]", "{}", "3"])
    def test_a_malformed_manifest_is_refused(self, text, tmp_path):
        (tmp_path / "poison.json").write_text(text)
        with pytest.raises(InputError, match="not a poison manifest"):
            read_manifest(tmp_path / "poison.json", {})

    def test_a_missing_manifest_and_missing_data_are_refused(self, tmp_path):
        with pytest.raises(InputError, match=r"poison\.json: no such file.*`llm-unlearn poison`"):
            read_manifest(tmp_path / "poison.json", {})
        with pytest.raises(InputError, match="data: .*cannot be read"):
            read_sets(tmp_path / "data")

    def test_the_hash_sees_every_set_every_field_and_the_order(self):
        sets, _ = both()
        before = data_hash(sets)
        assert before == data_hash(dict(reversed(sets.items())))
        for name in SETS:
            n = len(sets[name])
            assert data_hash({**sets, name: sets[name].select(range(n - 1))}) != before
            assert data_hash({**sets, name: sets[name].select(range(n - 1, -1, -1))}) != before
            assert data_hash({**sets, name: sets[name].remove_columns("label")}) != before
