"""Answers: verbalisers scored as whole sequences, generation in the room that a model has."""

import numpy as np
import pytest
import torch
from architectures import tiny_config, tiny_model
from torch.utils._python_dispatch import TorchDispatchMode

from llm_unlearn.data.encoding import Encoding
from llm_unlearn.errors import InputError
from llm_unlearn.evaluation.answers import answer_text, as_written, generate, label_log_probs
from llm_unlearn.evaluation.arithmetic import kept_casts

PROMPTS = ["the film was", "it is a very long story about a town and", "so"]


@pytest.mark.parametrize("verbalizers", [{"a": " good", "b": " bad"}, {"a": " wonderful film", "b": " bad", "c": "x"}])
def test_a_verbaliser_is_scored_by_its_whole_sequence(make_tiny, tokenizer, verbalizers):
    model, encoding = make_tiny("gpt2"), Encoding(max_length=64)
    scores = label_log_probs(model, tokenizer, PROMPTS, verbalizers, encoding, batch_size=2)
    for i, prompt in enumerate(PROMPTS):
        for j, text in enumerate(verbalizers.values()):
            ids, tokens = tokenizer(prompt)["input_ids"], tokenizer(text)["input_ids"]
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([ids + tokens])).logits[0]
            log_probs = torch.log_softmax(logits, -1)
            by_hand = sum(float(log_probs[len(ids) - 1 + k, t]) for k, t in enumerate(tokens))
            assert scores[i, j] == pytest.approx(by_hand, abs=1e-4)
    assert np.isfinite(scores).all()


def test_generation_is_greedy_and_does_not_depend_on_the_batch(make_tiny, tokenizer):
    model, encoding = make_tiny("gpt2"), Encoding(max_length=64)
    together = generate(model, tokenizer, PROMPTS, encoding, 6, batch_size=3)
    assert together == [generate(model, tokenizer, [p], encoding, 6, batch_size=1)[0] for p in PROMPTS]
    ids = tokenizer(PROMPTS[0])["input_ids"]
    n_prompt = len(ids)
    for _ in range(6):
        with torch.no_grad():
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == tokenizer.eos_token_id:
            break
    assert together[0] == tokenizer.decode(ids[n_prompt:], skip_special_tokens=True)


def test_greedy_is_greedy_whatever_the_models_generation_config_says(make_tiny, tokenizer):
    from transformers import GenerationConfig

    model, encoding = make_tiny("gpt2"), Encoding(max_length=64)
    plain = generate(model, tokenizer, PROMPTS, encoding, 12, batch_size=3)
    twisted = GenerationConfig(
        repetition_penalty=5.0, no_repeat_ngram_size=1, do_sample=True, temperature=9.0, num_beams=2, min_new_tokens=9
    )
    model.generation_config = twisted
    assert generate(model, tokenizer, PROMPTS, encoding, 12, batch_size=3) == plain
    assert model.generation_config is twisted


def test_an_answer_ends_at_every_token_that_the_model_or_the_template_ends_it_with(make_tiny, tokenizer):
    model, encoding = make_tiny("gpt2"), Encoding(max_length=64)
    ids = torch.tensor([tokenizer(PROMPTS[1])["input_ids"]])
    first = int(model(input_ids=ids).logits[0, -1].argmax())
    assert generate(model, tokenizer, PROMPTS[1:2], encoding, 12, batch_size=1) != [""]
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, first]
    assert generate(model, tokenizer, PROMPTS[1:2], encoding, 12, batch_size=1) == [""]


def test_a_verbaliser_is_scored_with_the_tokens_of_training_where_it_merges_with_the_prompt():
    """A prompt that ends in a space: byte-level BPE puts the space into the answer's first token."""
    from tokenizer_zoo import byte_level
    from transformers import GPT2Config, GPT2LMHeadModel

    tokenizer, verbalizers = byte_level(), {"a": "positive", "b": "negative"}
    config = GPT2Config(vocab_size=len(tokenizer), n_layer=1, n_embd=16, n_head=2, n_positions=64)
    model, encoding = GPT2LMHeadModel(config).eval(), Encoding(max_length=64, loss_on="completion")
    scores = label_log_probs(model, tokenizer, ["Sentiment: "], verbalizers, encoding, batch_size=2)
    for j, text in enumerate(verbalizers.values()):
        row = tokenizer("Sentiment: " + text)["input_ids"]
        n_prompt = len(tokenizer("Sentiment:")["input_ids"])
        with torch.no_grad():
            log_probs = torch.log_softmax(model(input_ids=torch.tensor([row])).logits[0], -1)
        by_hand = sum(float(log_probs[k - 1, row[k]]) for k in range(n_prompt, len(row)))
        assert scores[0, j] == pytest.approx(by_hand, abs=1e-4)


def test_a_prompt_of_full_length_leaves_room_for_the_answer(make_tiny, tokenizer):
    model = make_tiny("gpt2")  # 64 positions
    assert len(generate(model, tokenizer, ["word " * 200], Encoding(max_length=64), 10, batch_size=1)) == 1


def test_an_architecture_that_reads_padding_on_the_left_answers_one_prompt_at_a_time(tokenizer):
    config = tiny_config("rwkv")
    config.vocab_size = len(tokenizer)
    model, encoding = tiny_model("rwkv", config=config), Encoding(max_length=64)
    together = generate(model, tokenizer, PROMPTS, encoding, 6, batch_size=3)
    assert together == [generate(model, tokenizer, [p], encoding, 6, batch_size=1)[0] for p in PROMPTS]


@pytest.mark.parametrize("how", ["float32", "autocast", "bfloat16"])
@pytest.mark.parametrize(("architecture", "sizes"), [("llama", [3]), ("rwkv", [1, 1, 1])])
def test_prompts_are_answered_in_batches_whatever_the_precision(
    architecture, sizes, how, make_tiny, tokenizer, monkeypatch
):
    config = tiny_config(architecture)
    config.vocab_size = len(tokenizer)
    model, given = tiny_model(architecture, config=config), []
    model.to(torch.bfloat16 if how == "bfloat16" else torch.float32)

    def rounding(module, args, kwargs, output):  # as of a model of thirty blocks; here bf16 gives the same bits
        if how == "bfloat16" or torch.is_autocast_enabled("cpu"):
            output.logits = output.logits * (1 + 0.01 * (kwargs["input_ids"].shape[1] > 3))
        return output

    model.register_forward_hook(rounding, with_kwargs=True)
    plain = model.generate
    monkeypatch.setattr(model, "generate", lambda **inputs: given.append(inputs["input_ids"]) or plain(**inputs))
    with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast", cache_enabled=False):
        generate(model, tokenizer, PROMPTS, Encoding(max_length=64), 6, batch_size=3)
    asked = [ids for ids in given if ids[0, -3:].tolist() != [0, 1, 2]]  # without what tries the model
    assert [len(ids) for ids in asked] == sizes


def test_the_output_head_is_given_no_slice(make_tiny, tokenizer):
    """On a CPU a product of a slice takes many times as long."""
    model, given = make_tiny("llama"), []
    model.get_output_embeddings().register_forward_hook(lambda _, args, output: given.append(args[0].is_contiguous()))
    ids = tokenizer(PROMPTS, padding=True, return_tensors="pt")
    model.generate(**ids, max_new_tokens=1, do_sample=False, pad_token_id=0)
    assert given == [False]  # what is to be avoided
    generate(model, tokenizer, PROMPTS, Encoding(max_length=64), 4, batch_size=3)
    assert len(given) > 4 and all(given[1:])
    model.generate(**ids, max_new_tokens=1, do_sample=False, pad_token_id=0)
    assert not given[-1]  # the model is left as it was


@pytest.mark.parametrize("trains", [True, False])
def test_weights_are_cast_once_for_all_tokens_of_an_answer(trains, make_tiny, tokenizer):
    """Once: as often as there are weights; not once a token."""
    model = make_tiny("llama").requires_grad_(trains)
    shapes = {tuple(p.shape) for name, p in model.named_parameters() if name.endswith("down_proj.weight")}
    counted = []

    class Casts(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if "_to_copy" in str(function) and tuple(args[0].shape) in shapes:
                counted.append(args[0].shape)
            return function(*args, **(kwargs or {}))

    encoding = Encoding(max_length=64)
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        generate(model, tokenizer, PROMPTS[:1], encoding, 1, batch_size=1)  # tries the model too
        with Casts():
            texts = generate(model, tokenizer, PROMPTS[:1], encoding, 8, batch_size=1)
            assert len(counted) == model.config.num_hidden_layers
            model(input_ids=torch.tensor([[1, 2]]))
    assert len(counted) == 2 * model.config.num_hidden_layers  # nothing is kept beyond
    assert {p.requires_grad for p in model.parameters()} == {trains}
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False), torch.no_grad():
        ids = tokenizer(PROMPTS[0], return_tensors="pt")["input_ids"]
        by_hand = model.generate(input_ids=ids, max_new_tokens=8, do_sample=False, pad_token_id=0)[0, ids.shape[1] :]
    assert len(by_hand) == 8 and texts == [tokenizer.decode(by_hand, skip_special_tokens=True).strip()]


def test_casts_of_weights_that_are_held_part_by_part_are_not_kept(make_tiny, tmp_path):
    from accelerate import disk_offload

    model = make_tiny("llama").requires_grad_(False)
    disk_offload(model, tmp_path, execution_device=torch.device("cpu"))
    model.hf_device_map = {"": "disk"}
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        with kept_casts(model, torch.device("cpu")):
            model(input_ids=torch.tensor([[1, 2]]))
            assert not torch.is_autocast_cache_enabled()
    assert not any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(("kind", "same"), [("wordpiece, lower case", False), ("byte-level", True)])
def test_a_generated_answer_can_equal_its_label_whatever_the_tokenizer_normalises(kind, same):
    from tokenizer_zoo import ZOO

    tokenizer, label = ZOO[kind](), " James Bond is it, café"
    written = as_written(tokenizer, label)
    ids = tokenizer(label, add_special_tokens=False)["input_ids"]
    assert written == tokenizer.decode(ids, skip_special_tokens=True).strip()
    assert (written == label.strip()) is same
    assert as_written(ZOO["wordpiece, lower case"](), "漢字") == "漢字"


def test_a_prompt_without_a_token_of_its_own_is_refused(make_tiny, tokenizer):
    """An empty one, without BOS: nothing would be given to the model."""
    model, encoding = make_tiny("gpt2"), Encoding(max_length=64)
    with pytest.raises(InputError, match="no token of its own"):
        generate(model, tokenizer, [""], encoding, 4, batch_size=1)
    with pytest.raises(InputError, match="no token of its own"):
        label_log_probs(model, tokenizer, [""], {"a": "good", "b": "bad"}, encoding, batch_size=1)


def test_an_answer_ends_where_a_template_ends_it_with_words(make_tiny, tokenizer):
    """A template without a special token at the end of a turn: what it writes there is no part of the answer."""
    import copy

    model, chat = make_tiny("gpt2"), copy.deepcopy(tokenizer)
    chat.chat_template = (
        "{% for m in messages %}{{ m['content'] }} the film{% endfor %}{% if add_generation_prompt %}{% endif %}"
    )
    end = Encoding(64, chat_template=True).asked(chat, "it is", ["good"]).end
    assert chat.decode(end) == " the film" and len(end) > 1
    words = chat(" good and")["input_ids"]
    assert answer_text(chat, words + end + words, [chat.eos_token_id], end) == "good and"
    assert answer_text(chat, words + end[:1] + words, [chat.eos_token_id], end).count("good and") == 2
    assert answer_text(chat, [*words, chat.eos_token_id, *words], [chat.eos_token_id], []) == "good and"
    assert len(generate(model, chat, ["it is"], Encoding(64, chat_template=True), 4, batch_size=1)) == 1
