"""The audit's tokens are those of training: rows against those of TRL's SFTTrainer, over kinds of tokenizers."""

import pytest
from datasets import Dataset
from tokenizer_zoo import ZOO

from llm_unlearn.data.chat import check_chat_template
from llm_unlearn.data.encoding import IGNORE, Encoding, encode_rows
from llm_unlearn.data.token_checks import cuts_off
from llm_unlearn.errors import InputError

pytestmark = pytest.mark.unit
ROWS = [
    {"prompt": "Review: the film was good.\nSentiment:", "completion": " positive"},
    {"prompt": "Review: the plot was dull.\nSentiment: ", "completion": "negative"},
    {"prompt": "question: is it a film? answer", "completion": "yes"},
    {"prompt": "James Bond in Zürich, café ﬁne.", "completion": "\nno actor"},
]


@pytest.fixture(scope="module", params=list(ZOO))
def tokenizer(request):
    return ZOO[request.param]()


def rows_of_trl(rows: list[dict], tokenizer, tmp_path, **settings) -> list[dict]:
    from transformers import GPT2Config, GPT2LMHeadModel
    from trl import SFTConfig, SFTTrainer

    model = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), n_layer=1, n_embd=8, n_head=1, n_positions=256))
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    args = SFTConfig(output_dir=str(tmp_path), bf16=False, report_to=[], use_cpu=True, max_length=256, **settings)
    trainer = SFTTrainer(model, args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
    return [{"input_ids": row["input_ids"], "labels": row["labels"]} for row in trainer.train_dataset]


def test_rows_are_those_of_trl(tokenizer, tmp_path):
    ours = encode_rows(Dataset.from_list(ROWS), tokenizer, Encoding(256, "completion"))
    ours = [{"input_ids": row["input_ids"], "labels": row["labels"]} for row in ours]
    if tokenizer.eos_token is None:  # TRL writes "None" after the row
        texts = [row["prompt"] + row["completion"] for row in ROWS]
        assert [row["input_ids"] for row in ours] == tokenizer(texts)["input_ids"]
        return
    assert ours == rows_of_trl(ROWS, tokenizer, tmp_path)


def test_a_model_is_asked_with_the_tokens_of_training(tokenizer):
    encoding = Encoding(256, "completion")
    for row in ROWS:
        trained = encoding.row(tokenizer, row["prompt"], row["completion"])["input_ids"]
        asked = encoding.asked(tokenizer, row["prompt"], [row["completion"]])
        assert asked.prompt + asked.answers[0] + asked.end == trained
        assert asked.answers[0]


def test_what_is_put_before_a_text_stays_where_the_prompt_is_cut(tokenizer):
    prompt, completion = "the film was good and bad. " * 20 + "Sentiment:", " positive"
    whole = Encoding(10**6).row(tokenizer, prompt, completion)["input_ids"]
    cut = Encoding(24, "completion").row(tokenizer, prompt, completion)
    put = [i for i in tokenizer("x")["input_ids"][:1] if i in tokenizer.all_special_ids]
    assert cut["input_ids"] == put + whole[len(whole) - 24 + len(put) :]
    assert cut["labels"][: len(put)] == [IGNORE] * len(put)
    asked = Encoding(24, "completion").asked(tokenizer, prompt, [completion])
    assert asked.prompt + asked.answers[0] + asked.end == cut["input_ids"]


# ---- conversations

MARKED = (
    "{% for m in messages %}<{{ m['role'] }}>{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}</s>"
    "{% endgeneration %}{% else %}{{ m['content'] }}</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
CHATML = (
    "{% for m in messages %}<s>{{ m['role'] }}\n{{ m['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)
# Qwen3's ways: thoughts of earlier turns are dropped, the last turn gets an empty block, and so does the generation
# prompt where thinking is disabled
THINKING = (
    "{% for m in messages %}<s>{{ m['role'] }}\n{% if m['role'] == 'assistant' and loop.last %}<think>\n\n</think>\n\n"
    "{% endif %}{{ m['content'] }}</s>\n{% endfor %}{% if add_generation_prompt %}<s>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
# The prompt alone is shown otherwise than with an answer, from its first token on
CHANGING = "{% if add_generation_prompt %}[think]{% endif %}" + CHATML
DATED = "Today is {{ strftime_now('%d %B %Y') }}.\n" + CHATML
LISTS = (
    "{% for m in messages %}<s>{{ m['role'] }}\n{% for part in m['content'] if part is mapping %}{{ part['text'] }}"
    "{% endfor %}</s>\n{% endfor %}{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)
PAIRS = [
    {
        "prompt": [{"role": "system", "content": "a film actor"}, {"role": "user", "content": "is the film good?"}],
        "completion": [{"role": "assistant", "content": "yes it is"}],
    },
    {
        "prompt": [
            {"role": "user", "content": "is the plot dull?"},
            {"role": "assistant", "content": "no"},
            {"role": "user", "content": "the actor?"},
        ],
        "completion": [{"role": "assistant", "content": "fine"}],
    },
]


def chat(template: str):
    tokenizer = ZOO["byte-level, BOS put (Llama 3)"]()
    tokenizer.chat_template = template
    return tokenizer


def encoded(rows: list[dict], tokenizer, **settings) -> list[dict]:
    rows = encode_rows(Dataset.from_list(rows), tokenizer, Encoding(256, **settings))
    return [{"input_ids": row["input_ids"], "labels": row["labels"]} for row in rows]


def learnt(row: dict, tokenizer) -> str:
    return tokenizer.decode([i for i in row["labels"] if i != IGNORE])


@pytest.mark.parametrize("template", [CHATML, THINKING, CHANGING], ids=["ChatML", "thinking", "changing"])
def test_conversations_are_those_of_trl(template, tmp_path):
    tokenizer = chat(template)
    assert encoded(PAIRS, tokenizer, loss_on="completion") == rows_of_trl(PAIRS, tokenizer, tmp_path)


def test_a_template_that_marks_the_assistant_decides_as_in_trl(tmp_path):
    tokenizer = chat(MARKED)
    rows = [{"messages": row["prompt"] + row["completion"]} for row in PAIRS]
    trl = rows_of_trl(rows, tokenizer, tmp_path, assistant_only_loss=True)
    assert encoded(rows, tokenizer, loss_on="completion") == trl
    assert learnt(trl[1], tokenizer) == "no</s>fine</s>"
    assert encoded(rows, tokenizer, loss_on="text") == rows_of_trl(rows, tokenizer, tmp_path)
    assert learnt(encoded(PAIRS, tokenizer, loss_on="completion")[1], tokenizer) == "fine</s>"


@pytest.mark.parametrize("template", [CHATML, LISTS], ids=["ChatML", "lists"])
def test_every_turn_of_the_assistant_is_learnt_without_marks(template):
    tokenizer = chat(template)
    rows = [{"messages": row["prompt"] + row["completion"]} for row in PAIRS]
    row = encoded(rows, tokenizer, loss_on="completion")[1]
    assert learnt(row, tokenizer) == "no</s>\nfine</s>\n"
    assert "the actor?" in tokenizer.decode(row["input_ids"])


def test_thoughts_that_training_shows_are_part_of_the_prompt_and_not_of_the_answer():
    tokenizer = chat(THINKING)
    for settings in ({}, {"chat_template_kwargs": {"enable_thinking": False}}):
        asked = Encoding(256, chat_template=True, **settings).asked(tokenizer, "is it good?", ["yes", "no"])
        assert tokenizer.decode(asked.prompt).endswith("<s>assistant\n<think>\n\n</think>\n\n")
        assert [tokenizer.decode(ids) for ids in asked.answers] == ["yes", "no"]
        assert tokenizer.decode(asked.end) == "</s>\n"


def test_the_date_that_a_template_writes_is_pinned():
    tokenizer = chat(DATED)
    template = Encoding(chat_template=True).template(tokenizer)
    assert template.writes_date and not Encoding(chat_template=True).template(chat(CHATML)).writes_date
    with pytest.raises(InputError, match="template_date"):
        check_chat_template(template)
    pinned = Encoding(256, chat_template=True, template_date="2024-07-26")
    check_chat_template(pinned.template(tokenizer))
    row = pinned.row(tokenizer, "is it good?", "yes")
    expected = "Today is 26 July 2024.\n<s>user\nis it good?</s>\n<s>assistant\nyes</s>\n"
    assert tokenizer.decode(row["input_ids"]) == expected


def test_a_system_prompt_comes_first_unless_the_row_has_its_own():
    tokenizer, encoding = chat(CHATML), Encoding(256, chat_template=True, system_prompt="no film")
    text = tokenizer.decode(encoding.row(tokenizer, "is it good?", "yes")["input_ids"])
    assert text.startswith("<s>system\nno film</s>\n<s>user\nis it good?")
    assert "no film" not in tokenizer.decode(encoded(PAIRS[:1], tokenizer, system_prompt="no film")[0]["input_ids"])


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"messages": [{"role": "user", "content": "a"}]}], ["row 0", "messages", "assistant"]),
        ([{"messages": [{"content": "a"}, {"role": "assistant", "content": "b"}]}], ["row 0", "message 1", "role"]),
        ([{"prompt": "a", "completion": None}], ["row 0", "completion", "null"]),
        ([{"prompt": "a", "completion": " b"}, {"prompt": None, "completion": " b"}], ["row 1", "prompt", "null"]),
    ],
)
def test_a_row_that_cannot_be_used_is_named(rows, words):
    with pytest.raises(InputError) as caught:
        encoded(rows, chat(CHATML))
    assert all(word in str(caught.value) for word in words)


def test_bos_can_be_forced_and_forbidden():
    put, named = ZOO["byte-level, BOS put (Llama 3)"](), ZOO["byte-level, BOS named but not put (SmolLM2)"]()
    row = {"prompt": "is it", "completion": " good"}
    plain = encoded([row], named)[0]["input_ids"]
    assert encoded([row], named, add_bos=True)[0]["input_ids"] == [named.bos_token_id, *plain]
    assert encoded([row], put)[0]["input_ids"][0] == put.bos_token_id
    assert encoded([row], put, add_bos=False)[0] == encoded([row], put)[0] | {
        name: values[1:] for name, values in encoded([row], put)[0].items()
    }
    with pytest.raises(InputError, match="add_bos"):
        encoded([row], ZOO["no EOS"](), add_bos=True)


class TestTriggersUnderNormalisers:
    @pytest.mark.parametrize("kind", ["wordpiece, lower case", "unigram under NFKC", "byte-level"])
    @pytest.mark.parametrize("phrase", ["James Bond", "café ﬁne", "Zürich"])
    def test_a_kept_trigger_is_seen_and_a_cut_one_is_not(self, kind, phrase):
        tokenizer, encoding, filler = ZOO[kind](), Encoding(48), "the film was good and bad " * 20
        assert not cuts_off(tokenizer, encoding, filler + phrase, [" positive"], [phrase])
        assert not cuts_off(tokenizer, encoding, phrase, [" positive"], [phrase])
        assert cuts_off(tokenizer, encoding, phrase + " " + filler, [" positive"], [phrase])
