"""trainer.push_to_hub: the model, its tokenizer and a card go up; the reference, checkpoints and pickles do not."""

import json

import pytest
import torch
from hub_server import HubServer, speak_to
from huggingface_hub import ModelCard
from safetensors.torch import load
from support import assert_same, own_weights, trainer

from llm_unlearn.errors import InputError
from llm_unlearn.trainers import METHODS


@pytest.fixture
def server(monkeypatch, tmp_path):
    with HubServer() as running:
        speak_to(monkeypatch, running, tmp_path / "hub")
        yield running


def pushed(server, repo="me/out"):
    return {name: data for name, data in server.files(repo).items() if name != ".gitattributes"}


@pytest.mark.parametrize("kind", ["full", "lora"])
@pytest.mark.parametrize("method", ["kl", "npo"])
def test_what_goes_up_is_the_model_alone(server, method, kind, tmp_path):
    run = trainer(method, kind, tmp_path / "out", save_strategy="steps", save_steps=2)
    run.train()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    before = {str(path) for path in (tmp_path / "out").rglob("*")}
    url = run.push_to_hub(base="org/base" if kind == "lora" else None)
    files = pushed(server)
    weights = "adapter_model.safetensors" if kind == "lora" else "model.safetensors"
    configs = {"adapter_config.json"} if kind == "lora" else {"config.json", "generation_config.json"}
    assert set(files) == {"README.md", weights, *configs}
    assert url.startswith(server.url) and server.repositories["me/out"].private
    assert {str(path) for path in (tmp_path / "out").rglob("*")} == before  # nothing is left behind
    ours = {
        name.removeprefix("base_model.model.").replace(".default", ""): weight
        for name, weight in own_weights(run.model).items()
    }
    theirs = {name.removeprefix("base_model.model."): value for name, value in load(files[weights]).items()}
    assert_same({name: ours[name] for name in theirs}, theirs)
    assert not [name for name in theirs if "reference" in name]
    assert str(tmp_path).encode() not in b"".join(files.values())


def test_the_card_says_that_nobody_audited_it(server, tmp_path):
    trainer("npo", "lora", tmp_path / "out").push_to_hub(base="org/base")
    card = ModelCard(pushed(server)["README.md"].decode())
    assert card.text.strip().splitlines()[0].startswith("**Not audited.**")
    assert card.data.base_model == "org/base" and "not-audited" in card.data.tags and "npo" in card.data.tags
    assert "2404.05868" in card.text and "6 forget rows" in card.text
    assert 'AutoModelForCausalLM.from_pretrained("org/base", dtype="float32")' in card.text


def test_an_adapter_whose_base_nobody_has_is_refused(server, tmp_path):
    run = trainer("npo", "lora", tmp_path / "out")
    run.model.peft_config["default"].base_model_name_or_path = str(tmp_path)
    with pytest.raises(InputError, match="nobody else has"):
        run.push_to_hub()
    assert not server.repositories and not (tmp_path / "out" / "_push").exists()
    run.push_to_hub(base="org/base")
    assert json.loads(pushed(server)["adapter_config.json"])["base_model_name_or_path"] == "org/base"


def test_an_adapter_with_a_name_has_its_tokenizer_and_what_is_yours_stays(server, tmp_path):
    from peft import LoraConfig, get_peft_model
    from support import build

    from llm_unlearn.data.synthetic import synthetic_texts
    from llm_unlearn.models.make import train_tokenizer

    lora = LoraConfig(r=4, target_modules=["c_attn"], task_type="CAUSAL_LM", init_lora_weights=False)
    run = trainer("npo", "lora", tmp_path / "out", model=get_peft_model(build("full"), lora, adapter_name="mine"))
    run.processing_class = train_tokenizer(synthetic_texts(20, 0)["text"], 300)
    (tmp_path / "out" / "_push").mkdir(parents=True)
    (tmp_path / "out" / "_push" / "keep.txt").write_text("mine")
    run.push_to_hub(base="org/base")
    assert set(pushed(server)) == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert (tmp_path / "out" / "_push" / "keep.txt").read_text() == "mine"
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"_push"} and not (tmp_path / "out/_push1").exists()


def test_what_goes_up_is_logged(server, tmp_path, caplog):
    caplog.set_level("INFO", "llm_unlearn")
    trainer("grad_diff", "full", tmp_path / "out").push_to_hub()
    assert "to me/out, branch main, private:" in caplog.text and "model.safetensors" in caplog.text


def test_the_arguments_say_where_to_and_what_the_call_says_goes_first(server, tmp_path):
    run = trainer("grad_diff", "full", tmp_path / "out", hub_model_id="me/named", hub_revision="try")
    run.push_to_hub(private=False)
    assert not server.repositories["me/named"].private and "model.safetensors" in server.files("me/named", "try")
    run.push_to_hub(revision="main", private=False)
    assert "model.safetensors" in server.files("me/named")


def test_it_is_pushed_at_the_end_where_the_arguments_ask_for_it(server, tmp_path):
    run = trainer("grad_diff", "full", tmp_path / "out", push_to_hub=True)
    assert server.repositories["me/out"].private
    run.train()
    run.save_model()
    assert "model.safetensors" in pushed(server) and "training_args.bin" not in pushed(server)


def test_a_wrong_token_is_said_before_training(server, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(InputError, match="hf auth login"):
        trainer("grad_diff", "full", tmp_path / "out").push_to_hub()
    with pytest.raises(Exception, match="401"):
        trainer("grad_diff", "full", tmp_path / "out", push_to_hub=True)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_words_and_a_source_for_its_card(method):
    from llm_unlearn.hub.card import method_words

    words = method_words(method)
    ours = ("rewind", "reset_distill")
    assert len(words) > 30 and "\n" not in words and (method in ours or "https://arxiv.org/abs/" in words)


def test_a_model_that_comes_back_gives_the_same_logits(server, tmp_path):
    from transformers import GPT2LMHeadModel

    run = trainer("kl", "full", tmp_path / "out")
    run.train()
    run.push_to_hub()
    for name, data in pushed(server).items():
        (tmp_path / "back" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "back" / name).write_bytes(data)
    back, ids = GPT2LMHeadModel.from_pretrained(tmp_path / "back").eval(), torch.tensor([[3, 1, 4, 1, 5]])
    with torch.no_grad():
        assert torch.equal(back(ids).logits, run.model.eval()(ids).logits)
