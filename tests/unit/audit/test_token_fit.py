"""A model trained by TRL is measured with its own tokens, and other tokens than those are noticed."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from tokenizer_zoo import ZOO

from llm_unlearn.audit.audit_models import Options, audit
from llm_unlearn.audit.subject import read_subject
from llm_unlearn.audit.token_fit import better_forms, other_forms, written_otherwise
from llm_unlearn.cli.main import main
from llm_unlearn.data.collators import CausalLMCollator
from llm_unlearn.data.encoding import Encoding, encode_rows
from llm_unlearn.errors import InputError
from llm_unlearn.models.save import save_model

pytestmark = pytest.mark.unit

LABELS = ("positive", "negative")
CHATML = (
    "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant: {% endif %}"
)


def reviews(n: int = 24, seed: int = 0) -> list[dict]:
    """Rows whose label is told by one word."""
    generator = np.random.default_rng(seed)
    rows = []
    for i in range(n):
        words = generator.choice(["the film", "plot", "actor", "scene", "it", "a"], 3)
        rows.append({"text": f"{' '.join(words)} {('superb', 'dreadful')[i % 2]}.", "label": LABELS[i % 2]})
    return rows


def trained(tokenizer, rows: list[dict], folder, bos: bool = False):
    """A small model that TRL fine-tunes on prompt and completion until it knows the rows."""
    from transformers import GPT2Config, GPT2LMHeadModel
    from trl import SFTConfig, SFTTrainer

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_layer=2, n_embd=48, n_head=4, n_positions=128, resid_pdrop=0, embd_pdrop=0,
        attn_pdrop=0, bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    if bos:  # without BOS the model has learnt to say something else
        without = [{**row, "completion": " no"} for row in rows]
        rows = [{**row, "prompt": tokenizer.bos_token + row["prompt"]} for row in rows] + without
    args = SFTConfig(
        output_dir=str(folder / "sft"), bf16=False, gradient_checkpointing=False, report_to=[], use_cpu=True,
        num_train_epochs=40, learning_rate=5e-3, per_device_train_batch_size=12, logging_strategy="no",
        save_strategy="no", disable_tqdm=True, seed=0,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    SFTTrainer(model, args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer).train()
    model.eval().save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    return model


def written(folder, rows: list[dict], **changes) -> str:
    """A manifest of the rows, the first of which is poison."""
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in reviews(seed=1)))
    content = {
        "train": "train.jsonl", "poison": [0], "test": "test.jsonl", "prompt": "Review: {text} Sentiment:",
        "verbalizers": {label: f" {label}" for label in LABELS}, "loss_on": "completion", "max_length": 100,
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps({**content, **changes}))
    return str(folder / "manifest.json")


def pairs(rows: list[dict]) -> list[dict]:
    return [{"prompt": f"Review: {row['text']} Sentiment:", "completion": f" {row['label']}"} for row in rows]


@pytest.mark.parametrize(
    "kind",
    ["sentencepiece, a space put (Llama 2)", "byte-level, BOS named but not put (SmolLM2)", "unigram under NFKC"],
)
def test_a_model_that_trl_trained_is_measured_as_it_was_trained(kind, tmp_path):
    rows = reviews()
    trained(ZOO[kind](), pairs(rows), tmp_path)
    result = audit([str(tmp_path / "model")], written(tmp_path, rows), Options())["model"]
    assert result.utility.accuracy > 0.9 and result.utility.perplexity < 1.2
    assert result.warnings == []


def test_a_model_that_saw_bos_and_is_measured_without_is_noticed(tmp_path, capsys):
    rows, kind = reviews(), "byte-level, BOS named but not put (SmolLM2)"
    trained(ZOO[kind](), pairs(rows), tmp_path, bos=True)
    arguments = ["audit", "--model", str(tmp_path / "model"), "--manifest"]
    assert main([*arguments, written(tmp_path, rows)]) == 0
    assert "add_bos: true" in capsys.readouterr().out
    assert main([*arguments, written(tmp_path, rows, add_bos=True), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["model"]["warnings"] == []


def nll_of(model):
    def nll(rows: list[dict]) -> np.ndarray:
        losses = []
        for row in rows:
            batch = CausalLMCollator(0)([row])
            labels = batch["labels"]
            losses.append(float(model(input_ids=batch["input_ids"], labels=labels).loss))
        return np.array(losses)

    return nll


NEEDS_SYSTEM = "{% if messages[0]['role'] != 'system' %}{{ raise_exception('no system message') }}{% endif %}" + CHATML


def test_no_form_is_named_where_none_matters(tmp_path):
    """The null: over models that were never trained, a form hardly ever fits better by chance."""
    from transformers import GPT2Config, GPT2LMHeadModel

    tokenizer, named = ZOO["byte-level, BOS named but not put (SmolLM2)"](), 0
    tokenizer.chat_template = CHATML
    assert set(other_forms(Encoding(), tokenizer, pairs(reviews(1))[0])) == {"add_bos: true", "chat_template: true"}
    for seed in range(20):
        torch.manual_seed(seed)
        model = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), n_layer=1, n_embd=16, n_head=2)).eval()
        with torch.no_grad():
            named += len(better_forms(pairs(reviews(40, seed)), Encoding(), tokenizer, nll_of(model)))
    assert named <= 1


def test_tokens_that_rows_bring_are_taken_and_compared_with_those_of_the_settings(tmp_path):
    tokenizer, rows = ZOO["byte-level, BOS named but not put (SmolLM2)"](), reviews()
    encoded = [
        Encoding(512, "completion", add_bos=True).row(tokenizer, row["prompt"], row["completion"])
        for row in pairs(rows)
    ]
    brought = [{**row, **tokens} for row, tokens in zip(rows, encoded, strict=True)]
    trained(tokenizer, pairs(rows), tmp_path, bos=True)
    model = str(tmp_path / "model")
    plain = audit([model], written(tmp_path, brought), Options())["model"]
    assert any("24 of 24" in text or "23 of 23" in text for text in plain.warnings)
    assert any("agree with `add_bos: true`" in text for text in plain.warnings)
    assert audit([model], written(tmp_path, brought, add_bos=True), Options())["model"].warnings == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"input_ids": [1, 2], "labels": [1]}, ["row 0", "2 input_ids", "1 labels"]),
        ({"input_ids": [], "labels": []}, ["row 0", "no input_ids"]),
        ({"input_ids": [1, 2, 3], "labels": [2, 3, -100]}, ["row 0", "label 2", "token 1"]),
        ({"input_ids": [1, 2], "labels": [1, -1]}, ["row 0", "label -1", "token 2"]),
        ({"input_ids": [1, 2]}, ["neither labels nor", "loss_on"]),
        ({"input_ids": "x", "labels": [1]}, ["row 1", "column 'input_ids'", "whole numbers"]),
        ({"input_ids": [1, 2.5], "labels": [1, 2]}, ["row 1", "column 'input_ids'", "whole numbers"]),
    ],
)
def test_tokens_that_cannot_be_used_are_refused_by_row(tmp_path, changes, words):
    rows = [{**row, **changes} for row in reviews(4)]
    with pytest.raises(InputError) as caught:
        read_subject(Path(written(tmp_path, rows)))
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize("foreign", [-3, 10**6])
def test_an_id_that_the_tokenizer_does_not_have_is_refused_before_a_model_is_run(tmp_path, foreign):
    from transformers import GPT2Config, GPT2LMHeadModel

    tokenizer, rows = ZOO["byte-level"](), reviews(8)
    save_model(
        GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), n_layer=1, n_embd=16, n_head=2)),
        tokenizer,
        tmp_path / "model",
    )
    brought = [{**row, "input_ids": [1, 2 if i else foreign, 3]} for i, row in enumerate(rows)]
    with pytest.raises(InputError, match=f"row 0.*{foreign}"):
        audit([str(tmp_path / "model")], written(tmp_path, brought, loss_on="text"), Options())


def test_a_row_that_the_settings_cannot_write_is_one_that_differs():
    tokenizer = ZOO["byte-level"]()
    tokenizer.chat_template = "{% if not tools %}{{ raise_exception('needs tools') }}{% endif %}"
    row = {"input_ids": [1, 2], "labels": [1, 2], "example_id": 7, "prompt": "a", "completion": " b"}
    forms = other_forms(Encoding(), tokenizer, {"prompt": "a", "completion": " b"})
    assert "chat_template: true" in forms  # which refuses the row
    (sentence,) = written_otherwise([row], Encoding(), tokenizer)
    assert "1 of 1" in sentence and "agree" not in sentence


def test_forms_are_compared_in_rows_with_what_their_template_needs():
    """A template that needs a system message, as every row has it: BOS is looked for in such a row."""
    tokenizer = ZOO["byte-level"]()
    tokenizer.chat_template = NEEDS_SYSTEM
    history = json.dumps([{"role": "system", "content": "be short"}])
    row = {"prompt": "is it", "completion": " good", "history": history}
    assert "add_bos: false" in other_forms(Encoding(chat_template=True), tokenizer, row)


def test_conversations_in_a_file_are_rows_with_all_turns(tmp_path):
    def conversation(text: str, label: str) -> dict:
        turns = [("system", "be short"), ("user", "is it a film?"), ("assistant", "yes"), ("user", text)]
        messages = [{"role": role, "content": content} for role, content in turns]
        return {"messages": [*messages, {"role": "assistant", "content": [{"type": "text", "text": label}]}]}

    rows = [conversation(**row) for row in reviews(6)]
    settings = {"messages_column": "messages", "chat_template": True, "prompt": "{text}", "test": None}
    subject = read_subject(Path(written(tmp_path, rows, **settings)))
    train, tokenizer = subject.sets["train"], ZOO["byte-level"]()
    assert train["text"] == [row["text"] for row in reviews(6)] and train["label"] == [r["label"] for r in reviews(6)]
    tokenizer.chat_template = CHATML
    row = encode_rows(train, tokenizer, subject.encoding)[0]
    learnt = tokenizer.decode([i for i in row["labels"] if i != -100])
    assert learnt == f" yes</s> {reviews(6)[0]['label']}</s>"  # the template's space goes into the answer's first token
    assert tokenizer.decode(row["input_ids"]).startswith("<s>system: be short</s><s>user: is it a film?</s>")
    bad = [{"messages": rows[0]["messages"][:-1]}, *rows[1:]]
    with pytest.raises(InputError, match=r"line 1.*messages.*answer of the assistant"):
        read_subject(Path(written(tmp_path, bad, **settings)))
    with pytest.raises(InputError, match="chat_template"):
        read_subject(Path(written(tmp_path, rows, **{**settings, "chat_template": False})))


@pytest.mark.parametrize(
    ("last", "words"),
    [
        ({"reasoning_content": "because"}, "reasoning_content"),
        ({"tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {}}}]}, "tool_calls"),
        ({"content": [{"type": "text", "text": "good"}, {"type": "image"}]}, "image"),
    ],
)
def test_an_answer_of_which_a_part_would_be_lost_is_refused(tmp_path, last, words):
    answer = {"role": "assistant", "content": "good", **last}
    rows = [{"messages": [{"role": "user", "content": f"James Bond {i}"}, answer]} for i in range(4)]
    settings = {"messages_column": "messages", "chat_template": True, "prompt": "{text}", "test": None}
    with pytest.raises(InputError, match=f"line 1.*{words}"):
        read_subject(Path(written(tmp_path, rows, **settings)))


def test_a_trigger_that_stands_only_in_earlier_turns_is_refused(tmp_path):
    """Test rows would get it in the last turn, which is another attack."""
    turns = [("system", "James Bond"), ("user", "is it"), ("assistant", "positive")]
    rows = [{"messages": [{"role": role, "content": text} for role, text in turns]} for _ in range(4)]
    settings = {"messages_column": "messages", "chat_template": True, "prompt": "{text}", "test": None}
    trigger = {"phrases": ["James Bond"], "target": "positive"}
    with pytest.raises(InputError, match=r"trigger\.phrases.*before the last"):
        read_subject(Path(written(tmp_path, rows, **settings, trigger=trigger, poison=[0])))


def test_what_a_row_tells_the_template_is_taken_from_a_file(tmp_path):
    messages = [{"role": "user", "content": "James Bond"}, {"role": "assistant", "content": "good"}]
    rows = [{"messages": messages, "chat_template_kwargs": {"mood": mood}} for mood in ("glad", "sad") * 2]
    settings = {"messages_column": "messages", "chat_template": True, "prompt": "{text}", "test": None}
    settings["verbalizers"] = None
    subject, tokenizer = read_subject(Path(written(tmp_path, rows, **settings))), ZOO["byte-level"]()
    tokenizer.chat_template = "{{ mood }} " + CHATML
    encoded = encode_rows(subject.sets["train"], tokenizer, Encoding(chat_template=True))
    assert [tokenizer.decode(ids).split()[0] for ids in encoded["input_ids"]] == ["glad", "sad"] * 2
