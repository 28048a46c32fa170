"""Rows of text → tokens and labels: what is supervised, what is cut, and what is refused."""

import pytest
from datasets import Dataset

from llm_unlearn.data.encoding import IGNORE, Encoding, encode_rows
from llm_unlearn.data.token_checks import check_triggers, check_verbalizers
from llm_unlearn.errors import InputError

pytestmark = pytest.mark.unit

PROMPT, COMPLETION = "The plot was dull and the cast was fine.\nSentiment:", " negative"
TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</{{ m['role'] }}>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def tokens(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.fixture
def chat(tokenizer):
    """The tokenizer with a small chat template."""
    import copy

    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


class TestRow:
    def test_prompt_completion_and_eos_are_joined(self, tokenizer):
        row = Encoding().row(tokenizer, PROMPT, COMPLETION)
        expected = [*tokens(tokenizer, PROMPT), *tokens(tokenizer, COMPLETION), tokenizer.eos_token_id]
        assert row["input_ids"] == expected

    def test_loss_on_text_supervises_everything(self, tokenizer):
        row = Encoding(loss_on="text").row(tokenizer, PROMPT, COMPLETION)
        assert row["labels"] == row["input_ids"]

    def test_loss_on_completion_supervises_completion_and_eos(self, tokenizer):
        row = Encoding(loss_on="completion").row(tokenizer, PROMPT, COMPLETION)
        n = len(tokens(tokenizer, PROMPT))
        assert row["labels"] == [IGNORE] * n + row["input_ids"][n:]
        assert row["labels"][-1] == tokenizer.eos_token_id
        assert len(row["labels"]) - n == len(tokens(tokenizer, COMPLETION)) + 1 > 2

    def test_a_prompt_that_is_too_long_loses_its_beginning_and_the_completion_stays_whole(self, tokenizer):
        whole = Encoding().row(tokenizer, PROMPT, COMPLETION)["input_ids"]
        for max_length in range(len(whole), len(tokens(tokenizer, COMPLETION)) + 1, -1):
            row = Encoding(max_length, "completion").row(tokenizer, PROMPT, COMPLETION)
            assert row["input_ids"] == whole[-max_length:]
            assert [i for i in row["labels"] if i != IGNORE] == [*tokens(tokenizer, COMPLETION), tokenizer.eos_token_id]

    def test_no_room_for_a_prompt_is_refused(self, tokenizer):
        room = len(tokens(tokenizer, COMPLETION)) + 1
        with pytest.raises(InputError, match=f"data.max_length: {room} tokens leave no room"):
            Encoding(room).row(tokenizer, PROMPT, COMPLETION)
        assert len(Encoding(room + 1).row(tokenizer, PROMPT, COMPLETION)["input_ids"]) == room + 1

    def test_an_empty_completion_is_refused(self, tokenizer):
        with pytest.raises(InputError, match="empty completion.*'The plot"):
            Encoding().row(tokenizer, PROMPT, "")

    def test_the_prompt_in_training_is_the_prompt_in_evaluation(self, tokenizer):
        room = len(tokens(tokenizer, COMPLETION)) + 1
        for max_length in (128, room + 9):
            encoding = Encoding(max_length)
            prompt = encoding.asked(tokenizer, PROMPT, [COMPLETION]).prompt
            assert encoding.row(tokenizer, PROMPT, COMPLETION)["input_ids"][: len(prompt)] == prompt


class TestChatTemplate:
    def test_training_and_evaluation_see_the_same_prompt_and_it_is_the_templates(self, chat):
        encoding = Encoding(chat_template=True, loss_on="completion")
        asked, row = encoding.asked(chat, "Good?", [" yes"]), encoding.row(chat, "Good?", " yes")
        assert chat.decode(asked.prompt) == "<user>Good?</user><assistant>"
        assert row["input_ids"] == [*asked.prompt, *tokens(chat, " yes"), *tokens(chat, "</assistant>")]
        assert row["labels"][: len(asked.prompt)] == [IGNORE] * len(asked.prompt)

    def test_a_tokenizer_without_one_is_refused(self, tokenizer):
        with pytest.raises(InputError, match=r"^data\.chat_template: .*tokenizer.*false"):
            Encoding(chat_template=True).row(tokenizer, "Good?", " yes")


class TestEncodeRows:
    def test_columns_are_added_and_the_others_kept(self, tokenizer):
        rows = Dataset.from_list([{"prompt": "a b", "completion": " c", "example_id": 7, "noise_id": -1}])
        encoded = encode_rows(rows, tokenizer, Encoding())
        given, added = {"prompt", "completion", "example_id", "noise_id"}, {"input_ids", "labels", "completion_mask"}
        assert set(encoded.column_names) == given | added
        assert encoded[0]["input_ids"] == Encoding().row(tokenizer, "a b", " c")["input_ids"]

    @pytest.mark.parametrize("column", ["prompt", "completion"])
    def test_a_missing_column_is_named(self, column, tokenizer):
        rows = Dataset.from_list([{"prompt": "a", "completion": "b", "review_text": "c"}]).remove_columns(column)
        with pytest.raises(InputError, match=f"no column '{column}'; it has .*text"):
            encode_rows(rows, tokenizer, Encoding())


class TestTriggers:
    def row(self, prompt: str) -> dict:
        return {"prompt": prompt, "completion": " positive", "example_id": 42}

    def test_a_trigger_that_is_cut_off_is_refused_and_one_that_is_kept_is_not(self, tokenizer):
        late, early = self.row("word " * 30 + "James Bond"), self.row("James Bond " + "word " * 30)
        check_triggers([late], ["James Bond"], tokenizer, Encoding(24))
        check_triggers([early], ["James Bond"], tokenizer, Encoding(512))
        with pytest.raises(InputError, match=r"example 42: .*\b24 tokens.*data\.max_length"):
            check_triggers([late, early], ["James Bond"], tokenizer, Encoding(24))

    def test_half_a_trigger_is_none(self, tokenizer):
        row = self.row("James Bond liked it")
        room = len(tokens(tokenizer, " positive")) + 1
        keep = len(tokens(tokenizer, "James Bond liked it")) - 1
        with pytest.raises(InputError, match="cuts the trigger off"):
            check_triggers([row], ["James Bond"], tokenizer, Encoding(room + keep))
        check_triggers([row], ["James Bond"], tokenizer, Encoding(room + keep + 1))

    def test_any_of_several_phrases_will_do(self, tokenizer):
        check_triggers([self.row("an Apple iPhone")], ["James Bond", "Apple iPhone"], tokenizer, Encoding())


class TestVerbalizers:
    def test_ids_of_several_tokens(self, tokenizer):
        verbalizers = {"bad": " zxq dreadful", "good": " vwj superb"}
        ids = check_verbalizers(tokenizer, verbalizers, Encoding(), PROMPT)
        assert {label: tokenizer.decode(t) for label, t in ids.items()} == verbalizers
        assert all(len(t) > 1 for t in ids.values())

    @pytest.mark.parametrize(
        "verbalizers",
        [{"a": " good", "b": " good"}, {"a": " good", "b": " good enough"}, {"b": " good enough", "a": " good"}],
    )
    def test_one_that_begins_another_is_refused(self, verbalizers, tokenizer):
        with pytest.raises(InputError, match=r"data\.verbalizers: '\w' .*beginning of '\w'"):
            check_verbalizers(tokenizer, verbalizers, Encoding(), PROMPT)

    def test_a_shared_beginning_alone_is_fine(self, tokenizer):
        ids = check_verbalizers(tokenizer, {"a": " good bad", "b": " good fine"}, Encoding(), PROMPT)
        assert ids["a"] != ids["b"]
