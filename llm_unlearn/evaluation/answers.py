"""What a model answers: the label whose verbaliser is likeliest as a whole, or greedy text."""

from typing import TYPE_CHECKING

import numpy as np
import torch

from llm_unlearn.data.collators import CausalLMCollator
from llm_unlearn.data.encoding import IGNORE, Encoding, check_verbalizers
from llm_unlearn.evaluation.batches import batches
from llm_unlearn.tasks.causal_lm import CausalLMTask

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
) -> np.ndarray:
    """Log-probability of each label's verbaliser after each prompt, summed over all of its tokens.

    Verbalisers that share all tokens but the last are read off one forward pass.

    Args:
        temperature: divides the logits, as in sampling.
    Returns:
        (number of prompts, number of labels) float64, in nats.
    """
    ids = list(check_verbalizers(tokenizer, verbalizers).values())
    room = max(map(len, ids)) + 1  # + EOS, as in training
    by_prefix: dict[tuple, list[int]] = {}
    for label, tokens in enumerate(ids):
        by_prefix.setdefault(tuple(tokens[:-1]), []).append(label)
    prompt_ids = [encoding.prompt_ids(tokenizer, prompt, room) for prompt in prompts]
    device, collate, task = next(model.parameters()).device, CausalLMCollator(tokenizer.pad_token_id), CausalLMTask()
    scores = np.full((len(prompts), len(ids)), np.nan)
    for labels in by_prefix.values():
        tokens = ids[labels[0]]
        rows = [{"input_ids": p + tokens, "labels": [IGNORE] * len(p) + tokens} for p in prompt_ids]
        for positions, batch in batches(rows, collate, batch_size, device):
            logits = task.supervised(model, batch).logits.float() / temperature
            log_probs = torch.log_softmax(logits, -1).view(len(positions), len(tokens), -1)
            for label in labels:
                wanted = torch.tensor(ids[label], device=device).expand(len(positions), -1)[..., None]
                scores[positions, label] = log_probs.gather(-1, wanted).sum((1, 2)).double().cpu().numpy()
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
) -> list[str]:
    """Completions of prompts, in their order, special tokens left out; a long prompt leaves room for them.

    Args:
        temperature: None decodes greedily; else tokens are drawn from the whole distribution, by torch's own generator.
    """
    # a model's own generation_config may cut the distribution
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    how = {"do_sample": False} if temperature is None else sampling
    device = next(model.parameters()).device
    prompt_ids = [encoding.prompt_ids(tokenizer, prompt, max_new_tokens) for prompt in prompts]
    texts: list[str] = []
    for start in range(0, len(prompts), batch_size):
        part = prompt_ids[start : start + batch_size]
        width = max(map(len, part))  # generation continues at the right end, so padding goes left
        padded = torch.tensor([[tokenizer.pad_token_id] * (width - len(p)) + p for p in part], device=device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in part], device=device)
        output = model.generate(input_ids=padded, attention_mask=mask, **how, max_new_tokens=max_new_tokens,
                                pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id)
        texts.extend(tokenizer.batch_decode(output[:, width:], skip_special_tokens=True))
    return texts
