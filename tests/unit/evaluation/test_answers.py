"""Answers: verbalisers scored as whole sequences, generation in the room that a model has."""

import numpy as np
import pytest
import torch
from architectures import tiny_config, tiny_model

from llm_unlearn.data.encoding import Encoding, completion_tokens
from llm_unlearn.evaluation.answers import generate, label_log_probs

PROMPTS = ["the film was", "it is a very long story about a town and", "so"]


@pytest.mark.parametrize("verbalizers", [{"a": " good", "b": " bad"}, {"a": " wonderful film", "b": " bad", "c": "x"}])
def test_a_verbaliser_is_scored_by_its_whole_sequence(make_tiny, tokenizer, verbalizers):
    model, encoding = make_tiny("gpt2"), Encoding(max_length=64)
    scores = label_log_probs(model, tokenizer, PROMPTS, verbalizers, encoding, batch_size=2)
    for i, prompt in enumerate(PROMPTS):
        for j, text in enumerate(verbalizers.values()):
            tokens = completion_tokens(tokenizer, text)
            ids = encoding.prompt_ids(tokenizer, prompt, 8)
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
    ids = encoding.prompt_ids(tokenizer, PROMPTS[0], 6)
    for _ in range(6):
        with torch.no_grad():
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == tokenizer.eos_token_id:
            break
    new = ids[len(encoding.prompt_ids(tokenizer, PROMPTS[0], 6)) :]
    assert together[0] == tokenizer.decode(new, skip_special_tokens=True)


def test_a_prompt_of_full_length_leaves_room_for_the_answer(make_tiny, tokenizer):
    model = make_tiny("gpt2")  # 64 positions
    assert len(generate(model, tokenizer, ["word " * 200], Encoding(max_length=64), 10, batch_size=1)) == 1


def test_an_architecture_that_reads_padding_on_the_left_answers_one_prompt_at_a_time(tokenizer):
    config = tiny_config("rwkv")
    config.vocab_size = len(tokenizer)
    model, encoding = tiny_model("rwkv", config=config), Encoding(max_length=64)
    together = generate(model, tokenizer, PROMPTS, encoding, 6, batch_size=3)
    assert together == [generate(model, tokenizer, [p], encoding, 6, batch_size=1)[0] for p in PROMPTS]
