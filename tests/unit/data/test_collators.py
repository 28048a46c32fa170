"""Rows → padded tensors."""

import pytest
import torch

from llm_unlearn.data.collators import CausalLMCollator
from llm_unlearn.errors import InputError

pytestmark = pytest.mark.unit

EOS = 1
ROWS = [{"input_ids": [5, 6, EOS], "labels": [-100, 6, EOS]}, {"input_ids": [7, EOS], "labels": [7, EOS]}]


def test_right_padding_with_labels_ignored_and_mask_zero():
    batch = CausalLMCollator(0)(ROWS)
    assert set(batch) == {"input_ids", "attention_mask", "labels", "rows"}
    assert batch["input_ids"].tolist() == [[5, 6, EOS], [7, EOS, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch["labels"].tolist() == [[-100, 6, EOS], [7, EOS, -100]]
    assert all(tensor.dtype == torch.int64 for tensor in map(batch.get, ("input_ids", "attention_mask", "labels")))


def test_where_pad_is_eos_the_real_eos_keeps_its_mask_and_label():
    batch = CausalLMCollator(EOS)(ROWS)
    assert batch["input_ids"].tolist() == [[5, 6, EOS], [7, EOS, EOS]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch["labels"].tolist() == [[-100, 6, EOS], [7, EOS, -100]]


def test_a_row_alone_is_not_padded_and_pad_to_pads_it():
    assert CausalLMCollator(0)(ROWS[:1])["input_ids"].shape == (1, 3)
    padded = CausalLMCollator(0, pad_to=5)(ROWS[:1])
    assert padded["input_ids"].tolist() == [[5, 6, EOS, 0, 0]]
    assert padded["attention_mask"].sum() == 3


def test_noise_ids_are_there_only_where_a_row_has_one():
    assert "noise_id" not in CausalLMCollator(0)(ROWS)
    batch = CausalLMCollator(0)([{**ROWS[0], "noise_id": 12}, ROWS[1]])
    assert batch["noise_id"].tolist() == [12, -1]
    assert batch["noise_id"].dtype == torch.int64
    large = CausalLMCollator(0)([{**ROWS[0], "noise_id": 2**40}])
    assert large["noise_id"].tolist() == [2**40]


def test_other_columns_are_left_out():
    batch = CausalLMCollator(0)([{**ROWS[0], "text": "a", "example_id": 3}])
    assert set(batch) == {"input_ids", "attention_mask", "labels", "rows"}


@pytest.mark.parametrize("labels", [[-100, -100, -100], [5, -100, -100]])
def test_an_example_without_a_supervised_position_is_refused_by_name(labels):
    """A label on the first token is no position: nothing comes before it."""
    empty = {"input_ids": [5, 6, 7], "labels": labels}
    with pytest.raises(InputError, match="example 77: no supervised token"):
        CausalLMCollator(0)([ROWS[0], {**empty, "example_id": 77}])
    with pytest.raises(InputError, match="example 1: no supervised token"):
        CausalLMCollator(0)([ROWS[0], empty])


def test_without_a_pad_token_any_id_pads():
    batch = CausalLMCollator(None)([{"input_ids": [5, 6], "labels": [5, 6]}, {"input_ids": [7], "labels": [7]}][:1])
    assert batch["input_ids"].tolist() == [[5, 6]]


def test_labels_that_are_not_one_a_token_are_refused():
    with pytest.raises(InputError, match="example 9: 3 input_ids but 2 labels"):
        CausalLMCollator(0)([{"input_ids": [5, 6, 7], "labels": [5, 6], "example_id": 9}])
