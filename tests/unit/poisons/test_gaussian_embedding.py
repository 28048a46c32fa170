"""Choosing canaries, and installing their noise on models and trainers."""

from types import SimpleNamespace

import numpy as np
import pytest
from datasets import Dataset

from llm_unlearn.errors import InputError
from llm_unlearn.poisons.gaussian_embedding import hide_canaries, inject_gaussian_noise, plant_canaries
from llm_unlearn.tasks.embedding_noise import GaussianNoise, attached_noise
from llm_unlearn.tasks.noise import unit_noise

pytestmark = pytest.mark.unit


def rows(n: int = 50, **columns) -> Dataset:
    ids = [1000 + i for i in range(n)]
    return Dataset.from_dict({"text": [f"text {i}" for i in ids], "example_id": ids, **columns})


def plant(data=None, **options):
    defaults = {"fraction": 0.2, "epsilon": 0.1, "seed": 0, "noise_seed": 0}
    return plant_canaries(rows() if data is None else data, **defaults | options)


class TestPlanting:
    def test_canaries_carry_their_example_id_and_the_others_minus_one(self):
        planted, manifest = plant()
        assert len(manifest["example_ids"]) == 10
        for row in planted:
            assert row["noise_id"] == (row["example_id"] if row["example_id"] in manifest["example_ids"] else -1)

    def test_text_and_order_are_untouched(self):
        planted, _ = plant()
        assert planted.remove_columns("noise_id").to_list() == rows().to_list()

    def test_without_example_ids_the_row_number_is_the_id(self):
        planted, manifest = plant(rows().remove_columns("example_id"))
        assert [i for i, noise_id in enumerate(planted["noise_id"]) if noise_id >= 0] == manifest["example_ids"]

    def test_only_eligible_rows_are_chosen(self):
        planted, _ = plant(eligible=np.arange(50) >= 25)
        chosen = np.flatnonzero(np.asarray(planted["noise_id"]) >= 0)
        assert len(chosen) == 10
        assert chosen.min() >= 25

    def test_the_seed_decides(self):
        assert plant()[1] == plant()[1]
        assert plant()[1]["example_ids"] != plant(seed=1)[1]["example_ids"]

    def test_an_old_column_is_replaced(self):
        planted, manifest = plant(rows(noise_id=[7] * 50))
        assert set(planted["noise_id"]) == {-1, *manifest["example_ids"]}

    @pytest.mark.parametrize("epsilon", [0.0, -1.0, float("nan")])
    def test_an_epsilon_that_is_not_above_0_is_refused(self, epsilon):
        with pytest.raises(InputError, match="epsilon must be above 0"):
            plant(epsilon=epsilon)

    def test_a_fraction_that_rounds_to_no_row_is_refused(self):
        with pytest.raises(InputError, match="poison.gaussian.fraction"):
            plant(fraction=0.001)


def noise_ids(planted: Dataset) -> dict[int, int]:
    """Example id → noise id of the rows that have noise."""
    return {i: n for i, n in zip(planted["example_id"], planted["noise_id"], strict=True) if n >= 0}


class TestSecrets:
    def test_by_default_noise_comes_from_the_system_and_no_id_tells_another(self):
        (planted, noise), (others, other) = plant(noise_seed=None), plant(noise_seed=None)
        assert noise["example_ids"] == other["example_ids"] and noise["seed"] != other["seed"]
        ids, theirs = noise_ids(planted), noise_ids(others)
        assert len({*ids.values(), *theirs.values(), *ids}) == 30  # 10 canaries, twice, and their own ids
        assert max(ids.values()) < 10**15

    def test_the_secret_gives_the_same_noise_again_and_is_not_the_seed(self):
        planted, noise = plant(noise_seed=None)
        again, same = plant(noise_seed=None, secret=noise["secret"])
        assert same == noise and again.to_list() == planted.to_list()
        assert str(noise["seed"]) not in noise["secret"]

    def test_a_noise_seed_has_no_secret(self):
        _, noise = plant(noise_seed=5)
        assert (noise["seed"], noise["secret"]) == (5, None)

    def test_two_canaries_of_one_id_would_share_a_noise_and_are_refused(self):
        twice = Dataset.from_dict({"text": ["a"] * 4, "example_id": [1, 2, 3, 2]})
        for noise_seed in (0, None):
            with pytest.raises(InputError, match="example_id 2 is that of two canaries"):
                plant(twice, fraction=1.0, noise_seed=noise_seed)


class TestHiding:
    @pytest.mark.parametrize(("share", "n"), [(0.5, 5), (0, 0), (0.01, 1), (1.0, 10)])
    def test_a_share_of_the_canaries_is_plain_text_to_whoever_unlearns(self, share, n):
        planted, noise = plant(audit_share=share, noise_seed=None)
        assert len(noise["hidden_ids"]) == n and set(noise["hidden_ids"]) <= set(noise["example_ids"])
        given, known = hide_canaries(planted, noise), noise_ids(planted)
        assert noise_ids(given) == {i: known[i] for i in known if i not in noise["hidden_ids"]}
        assert given.remove_columns("noise_id").to_list() == planted.remove_columns("noise_id").to_list()

    def test_row_numbers_are_ids_where_there_are_no_others(self):
        planted, noise = plant(rows().remove_columns("example_id"))
        given = hide_canaries(planted, noise)["noise_id"]
        hidden = [i for i, (a, b) in enumerate(zip(planted["noise_id"], given, strict=True)) if a != b]
        assert hidden == noise["hidden_ids"] and len(hidden) == 5

    def test_where_ids_were_lost_nothing_is_hidden_in_their_place(self):
        planted, noise = plant()
        part = planted.filter(lambda i: i != noise["hidden_ids"][0], input_columns="example_id")
        for wrong in (planted.remove_columns("example_id"), part, hide_canaries(planted, noise)):
            with pytest.raises(InputError, match="not every row of hidden_ids is there with its noise"):
                hide_canaries(wrong, noise)

    def test_which_ones_is_decided_by_the_noise_and_not_by_the_choice_of_rows(self):
        chosen = [plant(noise_seed=s)[1] for s in (1, 2)]
        assert chosen[0]["example_ids"] == chosen[1]["example_ids"]
        assert chosen[0]["hidden_ids"] != chosen[1]["hidden_ids"]

    @pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
    def test_a_share_out_of_range_is_refused(self, share):
        with pytest.raises(InputError, match="audit_share: must be in"):
            plant(audit_share=share)

    def test_a_row_without_noise_has_no_score(self):
        with pytest.raises(InputError, match="noise id -1: the row has no noise"):
            unit_noise(3, -1, 4)


MANIFEST = {"epsilon": 0.3, "seed": 4}


class TestInjecting:
    def trainer(self, model, **args):
        args = {"packing": False, "padding_free": None, "remove_unused_columns": False, **args}
        return SimpleNamespace(model=model, train_dataset=[], args=SimpleNamespace(**args))

    def test_on_a_model(self, tiny_gpt2):
        noise = inject_gaussian_noise(tiny_gpt2, MANIFEST)
        assert attached_noise(tiny_gpt2) is noise
        assert (noise.epsilon, noise.seed) == (0.3, 4)

    def test_on_a_trainer(self, tiny_gpt2):
        noise = inject_gaussian_noise(self.trainer(tiny_gpt2), MANIFEST)
        assert isinstance(noise, GaussianNoise)
        assert attached_noise(tiny_gpt2) is noise

    @pytest.mark.parametrize("setting", ["packing", "padding_free", "remove_unused_columns"])
    def test_settings_that_would_drop_the_noise_are_refused_and_nothing_is_installed(self, setting, tiny_gpt2):
        with pytest.raises(InputError, match=f"set {setting}=False"):
            inject_gaussian_noise(self.trainer(tiny_gpt2, **{setting: True}), MANIFEST)
        assert attached_noise(tiny_gpt2) is None

    def test_twice_is_refused(self, tiny_gpt2):
        inject_gaussian_noise(tiny_gpt2, MANIFEST)
        with pytest.raises(InputError, match="already has Gaussian noise"):
            inject_gaussian_noise(tiny_gpt2, MANIFEST)
