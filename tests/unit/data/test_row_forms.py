"""Trainers take rows as people have them, or say in one sentence which row is wrong and what to do."""

import pytest
import torch
from datasets import Dataset, DatasetDict, IterableDataset
from tokenizer_zoo import ZOO

from llm_unlearn.data.encoding import IGNORE, Encoding, encode_text
from llm_unlearn.data.row_forms import as_dataset, with_labels
from llm_unlearn.errors import InputError
from llm_unlearn.tasks.causal_lm import CausalLMTask
from llm_unlearn.trainers.support.sets import refuse_foreign_ids, tokenised

pytestmark = pytest.mark.unit

PAIRS = [{"prompt": "is it", "completion": " good"}, {"prompt": "the film", "completion": " bad"}]
CHATML = "{% for m in messages %}<s>{{ m['role'] }}\n{{ m['content'] }}</s>{% endfor %}"
CHATML += "{% if add_generation_prompt %}<s>assistant\n{% endif %}"


class MapStyle(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return len(PAIRS)

    def __getitem__(self, i: int) -> dict:
        return PAIRS[i]


@pytest.fixture
def tokenizer():
    tokenizer = ZOO["byte-level, BOS put (Llama 3)"]()
    tokenizer.chat_template = CHATML
    return tokenizer


def taken(rows, tokenizer, **settings) -> list[dict]:
    encoding = Encoding(64, **{"loss_on": "completion", **settings})
    return list(tokenised("npo", CausalLMTask(), tokenizer, encoding, "forget", rows))


@pytest.mark.parametrize("rows", [PAIRS, tuple(PAIRS), MapStyle(), Dataset.from_list(PAIRS)], ids=type)
def test_lists_and_datasets_of_any_kind_are_the_same_rows(rows, tokenizer):
    expected = [Encoding(64, "completion").row(tokenizer, **row) for row in PAIRS]
    assert taken(rows, tokenizer) == expected


def test_conversations_of_trl_are_taken(tokenizer):
    user, answer = {"role": "user", "content": "is it"}, {"role": "assistant", "content": "good"}
    rows = [[{"prompt": [user], "completion": [answer]}], [{"messages": [user, answer]}]]
    encoding = Encoding(64, "completion", chat_template=True)
    for form in rows:
        assert taken(form, tokenizer) == [encoding.row(tokenizer, "is it", "good")]


def test_what_a_row_tells_the_template_is_taken_as_trl_takes_it(tokenizer):
    tokenizer.chat_template = "{{ mood }} " + CHATML
    turns = [{"role": "user", "content": "is it"}, {"role": "assistant", "content": "good"}]
    given = [{"mood": "yes"}, {"mood": "no"}, None]
    rows = [{"prompt": turns[:1], "completion": turns[1:], "chat_template_kwargs": mood} for mood in given]
    first = [tokenizer.decode(row["input_ids"]).split("<s>")[0].strip() for row in taken(rows, tokenizer)]
    assert first == ["yes", "no", ""]


def test_a_text_that_is_answered_by_messages_is_a_conversation(tokenizer):
    answer = {"role": "assistant", "content": "good"}
    encoding = Encoding(64, "completion", chat_template=True)
    rows = taken([{"prompt": "is it", "completion": [answer]}], tokenizer)
    assert rows == [encoding.row(tokenizer, "is it", "good")]


def test_of_two_masks_both_count_as_in_trl(tokenizer):
    rows = [{"input_ids": [5, 6, 7], "completion_mask": [0, 1, 1], "assistant_masks": [1, 0, 1]}]
    assert taken(rows, tokenizer)[0]["labels"] == [IGNORE, IGNORE, 7]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"input_ids": [5, 6], "completion_mask": [0, 0]}, ["row 0", "no supervised token"]),
        ({"input_ids": [5, 6], "labels": [5, -100]}, ["row 0", "no supervised token"]),  # the first is never predicted
        ({"prompt": 5, "completion": " a"}, ["row 0", "column 'prompt'", "int"]),
        ({"input_ids": [1.0, 2.0], "labels": [1.0, 2.0]}, ["'input_ids'", "whole numbers", "double"]),
        ({"input_ids": [1, None], "labels": [1, None]}, ["'input_ids'", "whole numbers", "nulls"]),
    ],
)
def test_values_that_are_neither_text_nor_tokens_are_refused(tokenizer, row, words):
    with pytest.raises(InputError) as caught:
        taken([row], tokenizer)
    assert all(word in str(caught.value) for word in words), caught.value


def test_text_alone_is_learnt_whole(tokenizer):
    [row] = taken([{"text": "is it good"}], tokenizer, loss_on="text")
    assert row["input_ids"] == row["labels"] == tokenizer("is it good</s>")["input_ids"]


def test_tokens_get_labels_by_the_mask_that_trl_writes(tokenizer):
    tokens = {"input_ids": [5, 6, 7], "completion_mask": [0, 1, 1]}
    assert taken([tokens], tokenizer) == [{**tokens, "labels": [IGNORE, 6, 7]}]
    assert taken([{"input_ids": [5, 6]}], tokenizer, loss_on="text") == [{"input_ids": [5, 6], "labels": [5, 6]}]


def stream():
    yield from PAIRS


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (None, ["forget_dataset", "missing"]),
        ([], ["forget_dataset", "empty"]),
        (IterableDataset.from_generator(stream), ["forget_dataset", "stream", "Dataset.from_list"]),
        (stream(), ["forget_dataset", "stream", "Dataset.from_list"]),
        (DatasetDict({"train": Dataset.from_list(PAIRS)}), ["forget_dataset", "splits train"]),
        (["is it good"], ["forget_dataset", "row 0", "mapping", "str"]),
        ([{"prompt": "a", "completion": " b"}, {"prompt": 1, "completion": " b"}], ["forget_dataset", "one type"]),
        ([PAIRS[0], {"prompt": "the film", "completion": None}], ["forget_dataset", "row 1", "completion", "null"]),
        ([{"question": "a"}], ["forget_dataset", "no column 'prompt'", "question"]),
        ([{"input_ids": [1, 2, 3], "labels": [1, 2]}], ["forget_dataset", "row 0", "3 input_ids", "2 labels"]),
        ([{"input_ids": [1], "labels": [1]}, {"input_ids": None, "labels": None}], ["row 1", "no input_ids"]),
        ([{"input_ids": [1, 2]}], ["forget_dataset", "neither labels", "loss_on"]),
    ],
)
def test_what_cannot_be_used_is_named_with_the_remedy(rows, words, tokenizer):
    with pytest.raises(InputError) as caught:
        taken(rows, tokenizer)
    assert all(word in str(caught.value) for word in words), caught.value


def test_labels_that_are_there_stay():
    rows = as_dataset([{"input_ids": [1, 2], "labels": [IGNORE, 2], "completion_mask": [1, 1]}], "rows")
    assert with_labels(rows, "text", "rows")["labels"] == [[IGNORE, 2]]


@pytest.mark.parametrize("kind", ["no EOS", "no EOS, no PAD", "byte-level"])
def test_plain_text_needs_no_eos(kind):
    tokenizer = ZOO[kind]()
    [row] = encode_text(Dataset.from_list([{"text": "the film was good"}, {"text": ""}]), tokenizer, 32)
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    assert row["input_ids"] == row["labels"] == [*tokenizer("the film was good")["input_ids"], *end]
    [cut] = encode_text(Dataset.from_list([{"text": "the film was good " * 9}]), tokenizer, 8)
    assert len(cut["input_ids"]) == 8 and cut["input_ids"][8 - len(end) :] == end


def test_ids_beyond_the_embedding_are_refused_by_row(make_tiny):
    model = make_tiny("gpt2")
    size = model.config.vocab_size
    rows = as_dataset([{"input_ids": [1, 2], "labels": [1, 2]}, {"input_ids": [3, size - 1], "labels": [3, 4]}], "rows")
    refuse_foreign_ids(CausalLMTask(), model, {"forget": rows})
    for wrong in (size, -1):
        bad = as_dataset([*rows, {"input_ids": [1, wrong, 2], "labels": [1, 2, 2]}], "rows")
        with pytest.raises(InputError, match=f"retain_dataset, row 2: the token id {wrong}.*only {size}"):
            refuse_foreign_ids(CausalLMTask(), model, {"forget": rows, "retain": bad})
