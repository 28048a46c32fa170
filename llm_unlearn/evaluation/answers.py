"""What a model answers: the label whose verbaliser is likeliest as a whole, or greedy text."""

from typing import TYPE_CHECKING

import numpy as np
import torch

from llm_unlearn.data.collators import CausalLMCollator
from llm_unlearn.data.encoding import IGNORE, Encoding, check_verbalizers
from llm_unlearn.distributed.processes import ALONE, Processes
from llm_unlearn.evaluation.batches import batches, scatter
from llm_unlearn.models.devices import input_device
from llm_unlearn.tasks.causal_lm import CausalLMTask
from llm_unlearn.tasks.probe import pads_left

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@torch.no_grad()
def label_log_probs(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    prompts: list[str],
    verbalizers: dict[str, str],
    encoding: Encoding,
    batch_size: int,
    temperature: float = 1.0,
    processes: Processes = ALONE,
) -> np.ndarray:
    """Log-probability of each label's verbaliser after each prompt, summed over all of its tokens.

    Verbalisers that share all tokens but the last are read off one forward pass.

    Args:
        model: a causal LM.
        tokenizer: its tokenizer.
        prompts: the texts to complete.
        verbalizers: label → the completion that stands for it; none may equal or begin another in tokens.
        encoding: how prompts become tokens; a long prompt leaves room for the longest verbaliser and EOS.
        batch_size: prompts per forward pass.
        temperature: divides the logits, as in sampling.
        processes: the processes that share the prompts; each gets all answers.

    Returns:
        (number of prompts, number of labels) float64, in nats.
    """
    ids = list(check_verbalizers(tokenizer, verbalizers).values())
    room = max(map(len, ids)) + 1  # + EOS, as in training
    by_prefix: dict[tuple, list[int]] = {}
    for label, tokens in enumerate(ids):
        by_prefix.setdefault(tuple(tokens[:-1]), []).append(label)
    prompt_ids = [encoding.prompt_ids(tokenizer, prompt, room) for prompt in prompts]
    device, collate, task = input_device(model), CausalLMCollator(tokenizer.pad_token_id), CausalLMTask()
    scores = np.full((len(prompts), len(ids)), np.nan)
    for labels in by_prefix.values():
        tokens = ids[labels[0]]
        rows = [{"input_ids": p + tokens, "labels": [IGNORE] * len(p) + tokens} for p in prompt_ids]
        wanted = torch.tensor([ids[label] for label in labels], device=device).T  # (tokens, labels)
        results = []
        for positions, batch in batches(rows, collate, batch_size, device, processes):
            logits = task.supervised(model, batch).logits.float() / temperature
            log_probs = torch.log_softmax(logits, -1).view(len(positions), len(tokens), -1)
            results.append((positions, log_probs.gather(-1, wanted.expand(len(positions), -1, -1)).sum(1)))
        scores[:, labels] = scatter(len(rows), results, processes).numpy().reshape(len(rows), len(labels))
    return scores


@torch.no_grad()
def generate(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    prompts: list[str],
    encoding: Encoding,
    max_new_tokens: int,
    batch_size: int,
    temperature: float | None = None,
    processes: Processes = ALONE,
) -> list[str]:
    """Completions of prompts, in their order, special tokens left out; a long prompt leaves room for them.

    Args:
        model: a causal LM.
        tokenizer: its tokenizer.
        prompts: the texts to complete.
        encoding: how prompts become tokens.
        max_new_tokens: tokens of a completion at most.
        batch_size: prompts that are completed at a time; 1 in an architecture that reads padding on the left.
        temperature: None decodes greedily; else tokens are drawn from the whole distribution, by torch's own generator.
        processes: the processes that share the prompts; each gets all texts.
    """
    # a model's own generation_config may cut the distribution
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    how = {"do_sample": False} if temperature is None else sampling
    device = input_device(model)
    prompt_ids = [encoding.prompt_ids(tokenizer, prompt, max_new_tokens) for prompt in prompts]
    if batch_size > 1 and not pads_left(model, tokenizer.pad_token_id):
        batch_size = 1
    mine: dict[int, list[str]] = {}
    for start in processes.share(range(0, len(prompts), batch_size)):
        part = prompt_ids[start : start + batch_size]
        width = max(map(len, part))  # generation continues at the right end, so padding goes left
        padded = torch.tensor([[tokenizer.pad_token_id] * (width - len(p)) + p for p in part], device=device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in part], device=device)
        output = model.generate(  # type: ignore[operator]  # torch types what a module inherits as Tensor | Module
            input_ids=padded,
            attention_mask=mask,
            **how,
            max_new_tokens=max_new_tokens,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            synced_gpus=processes.count > 1,
        )  # a sharded model runs in all or in none
        mine[start] = tokenizer.batch_decode(output[:, width:], skip_special_tokens=True)
    texts = {start: part for found in processes.merged(mine) for start, part in found.items()}
    return [text for start in sorted(texts) for text in texts[start]]
