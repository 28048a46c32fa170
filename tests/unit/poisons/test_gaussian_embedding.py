"""Choosing canaries, and installing their noise on models and trainers."""

from types import SimpleNamespace

import numpy as np
import pytest
from datasets import Dataset

from llm_unlearn.errors import InputError
from llm_unlearn.poisons.gaussian_embedding import inject_gaussian_noise, plant_canaries
from llm_unlearn.tasks.embedding_noise import GaussianNoise, attached_noise

pytestmark = pytest.mark.unit


def rows(n: int = 50, **columns) -> Dataset:
    ids = [1000 + i for i in range(n)]
    return Dataset.from_dict({"text": [f"text {i}" for i in ids], "example_id": ids, **columns})


def plant(data=None, **options):
    return plant_canaries(rows() if data is None else data, **{"fraction": 0.2, "epsilon": 0.1, "seed": 0, **options})


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
