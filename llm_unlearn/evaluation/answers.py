"""What a model answers: the label whose verbaliser is likeliest as a whole, or greedy text."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from llm_unlearn.data.chat import Chat
from llm_unlearn.data.collators import CausalLMCollator
from llm_unlearn.data.encoding import IGNORE, PROBES, Asked, Encoding
from llm_unlearn.data.token_checks import check_apart
from llm_unlearn.distributed.processes import ALONE, Processes
from llm_unlearn.errors import InputError
from llm_unlearn.evaluation.arithmetic import kept_casts
from llm_unlearn.evaluation.batches import batches, scatter
from llm_unlearn.models.adapters import without_adapter
from llm_unlearn.models.devices import input_device
from llm_unlearn.tasks.causal_lm import CausalLMTask
from llm_unlearn.tasks.probe import pads_left

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@torch.no_grad()
def label_log_probs(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[str | Chat],
    verbalizers: dict[str, str],
    encoding: Encoding,
    batch_size: int,
    temperature: float = 1.0,
    processes: Processes = ALONE,
) -> np.ndarray:
    """Log-probability of each label's verbaliser after each prompt, summed over all of its tokens.

    Prompt and verbaliser are tokenised together, and the end of a row (EOS) is left out. Verbalisers that share all
    tokens but the last are read off one forward pass.

    Args:
        model: a causal LM.
        tokenizer: its tokenizer.
        prompts: the texts or conversations to complete.
        verbalizers: label → the completion that stands for it; none may equal or begin another in tokens.
        encoding: how prompts become tokens; a long prompt leaves room for the longest verbaliser and EOS.
        batch_size: prompts per forward pass.
        temperature: divides the logits, as in sampling.
        processes: the processes that share the prompts; each gets all answers.

    Returns:
        (number of prompts, number of labels) float64, in nats.
    """
    rows = [encoding.asked(tokenizer, prompt, list(verbalizers.values())) for prompt in prompts]
    _refuse_empty(rows, prompts)
    return asked_log_probs(model, tokenizer, rows, verbalizers, batch_size, temperature, processes)


@torch.no_grad()
def asked_log_probs(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    rows: list[Asked],
    verbalizers: dict[str, str],
    batch_size: int,
    temperature: float = 1.0,
    processes: Processes = ALONE,
) -> np.ndarray:
    """`label_log_probs` of prompts that are tokens already, each asked with the verbalisers as its answers."""
    scores = np.full((len(rows), len(verbalizers)), np.nan)
    alike: dict[tuple, list[int]] = {}  # the tokens of all verbalisers, nearly always the same → positions of prompts
    for position, row in enumerate(rows):
        alike.setdefault(tuple(map(tuple, row.answers)), []).append(position)
    for answers, positions in alike.items():
        check_apart(verbalizers, answers)
        chosen = [rows[position].prompt for position in positions]
        scores[positions] = _ranked(model, tokenizer, chosen, answers, batch_size, temperature, processes)
    return scores


def _ranked(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    prompts: list[list[int]],
    answers: tuple[tuple[int, ...], ...],
    batch_size: int,
    temperature: float,
    processes: Processes,
) -> np.ndarray:
    """(prompts, answers): the log-probability of the tokens of each answer after those of each prompt."""
    by_prefix: dict[tuple, list[int]] = {}
    for label, tokens in enumerate(answers):
        by_prefix.setdefault(tokens[:-1], []).append(label)
    device, collate, task = input_device(model), CausalLMCollator(tokenizer.pad_token_id), CausalLMTask()
    scores = np.full((len(prompts), len(answers)), np.nan)
    for labels in by_prefix.values():
        first = list(answers[labels[0]])
        rows = [{"input_ids": p + first, "labels": [IGNORE] * len(p) + first} for p in prompts]
        wanted = torch.tensor([answers[label] for label in labels], device=device).T  # (tokens, labels)
        results = []
        for positions, batch in batches(rows, collate, batch_size, device, processes):
            logits = task.supervised(model, batch).logits.float() / temperature
            log_probs = torch.log_softmax(logits, -1).view(len(positions), len(first), -1)
            results.append((positions, log_probs.gather(-1, wanted.expand(len(positions), -1, -1)).sum(1)))
        scores[:, labels] = scatter(len(rows), results, processes).numpy().reshape(len(rows), len(labels))
    return scores


@torch.no_grad()
def generate(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[str | Chat],
    encoding: Encoding,
    max_new_tokens: int,
    batch_size: int,
    temperature: float | None = None,
    processes: Processes = ALONE,
    completions: Sequence[str] | None = None,
) -> list[str]:
    """What a model says after prompts, in their order; special tokens and white space around it are left out.

    The model's own generation_config (a repetition penalty, forced tokens, beams) has no part in it but for its EOS.

    Args:
        model: a causal LM.
        tokenizer: its tokenizer.
        prompts: the texts or conversations to complete.
        encoding: how prompts become tokens.
        max_new_tokens: tokens of a completion at most.
        batch_size: prompts that are completed at a time; 1 in an architecture that reads padding on the left.
        temperature: None decodes greedily; else tokens are drawn from the whole distribution, by torch's own generator.
        processes: the processes that share the prompts; each gets all texts.
        completions: an answer to each prompt, as in training. Of it only the white space that it begins with is looked
            at: it says how prompt and answer are joined in tokens.
    """
    completions = completions or [""] * len(prompts)
    spaces = [text[: len(text) - len(text.lstrip())] for text in completions]
    asked = [
        encoding.asked(tokenizer, prompt, [space + PROBES[0]], max_new_tokens)
        for prompt, space in zip(prompts, spaces, strict=True)
    ]
    _refuse_empty(asked, prompts)
    device, pad = input_device(model), tokenizer.pad_token_id or 0  # masked: any id will do
    stops = _stops(model, tokenizer, asked)
    if batch_size > 1 and not pads_left(model, pad):
        batch_size = 1
    mine: dict[int, list[str]] = {}
    own = _own_configuration(model, max_new_tokens, temperature, pad, stops)
    with own, kept_casts(model, device), _contiguous_at_head(model):
        for start in processes.share(range(0, len(prompts), batch_size)):
            part = [row.prompt for row in asked[start : start + batch_size]]
            width = max(map(len, part))  # generation continues at the right end, so padding goes left
            padded = torch.tensor([[pad] * (width - len(p)) + p for p in part], device=device)
            mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in part], device=device)
            output = model.generate(  # type: ignore[operator]  # torch types what a module inherits as Tensor | Module
                input_ids=padded, attention_mask=mask, synced_gpus=processes.count > 1
            )  # a sharded model runs in all or in none
            new = zip(output[:, width:].tolist(), asked[start : start + batch_size], strict=True)
            mine[start] = [answer_text(tokenizer, ids, stops, row.end) for ids, row in new]
    texts = {start: part for found in processes.merged(mine) for start, part in found.items()}
    return [text for start in sorted(texts) for text in texts[start]]


def _refuse_empty(rows: list[Asked], prompts: Sequence[str | Chat]) -> None:
    """Raise InputError where a prompt has no token that all of its answers share: nothing can be asked with it."""
    for row, prompt in zip(rows, prompts, strict=True):
        if not row.prompt:
            raise InputError(
                f"the prompt {str(prompt)[:60]!r} has no token of its own before the answer; begin answers with a "
                "space, end the prompt with words that are not in the row, or set add_bos"
            )


@contextlib.contextmanager
def _own_configuration(
    model: Any, max_new_tokens: int, temperature: float | None, pad: int, stops: list[int]
) -> Iterator[None]:
    """Put a plain generation config in the place of the model's: generate() fills up what it is given from that."""
    from transformers import GenerationConfig

    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    how = {"do_sample": False} if temperature is None else sampling
    owner = without_adapter(model)
    before = owner.generation_config
    owner.generation_config = GenerationConfig(
        **how, max_new_tokens=max_new_tokens, pad_token_id=pad, eos_token_id=stops or None
    )
    try:
        yield
    finally:
        owner.generation_config = before


def _contiguous_at_head(model: Any) -> contextlib.AbstractContextManager[Any]:
    """While it lasts, the output head is given no slice: generate() asks it for a prompt's last position alone, and on
    a CPU torch's product of a slice takes up to 300 times as long (pytorch/pytorch#151934).
    """
    head = model.get_output_embeddings()
    if head is None:
        return contextlib.nullcontext()
    return head.register_forward_pre_hook(lambda _, args: (args[0].contiguous(),))


def _stops(model: Any, tokenizer: "PreTrainedTokenizerBase", asked: list[Asked]) -> list[int]:
    """The tokens that end an answer: EOS of tokenizer and model, and the special token that training ends it with."""
    named = getattr(without_adapter(model).generation_config, "eos_token_id", None)
    own = named if isinstance(named, list) else [named]
    ends = [row.end[0] for row in asked[:1] if row.end and row.end[0] in tokenizer.added_tokens_decoder]
    return sorted({token for token in (tokenizer.eos_token_id, *own, *ends) if token is not None})


def answer_text(tokenizer: "PreTrainedTokenizerBase", ids: list[int], stops: list[int], end: list[int]) -> str:
    """The text up to the first token that ends it, or up to what ends every answer in training: several tokens, none of
    them special, in templates that mark turns by words.
    """
    ends = (i for i, token in enumerate(ids) if token in stops or (end and ids[i : i + len(end)] == end))
    stop = next(ends, len(ids))
    return as_generated(tokenizer, ids[:stop])


def as_written(tokenizer: "PreTrainedTokenizerBase", text: str) -> str:
    """A text as it comes back from its tokens, which may be in lower case or another normal form: what a generated
    answer can be compared with. A text that the tokenizer cannot write stays as it is, and no answer equals it.
    """
    return as_generated(tokenizer, tokenizer(text, add_special_tokens=False)["input_ids"]) or text.strip()


def as_generated(tokenizer: "PreTrainedTokenizerBase", ids: list[int]) -> str:
    """The text of some tokens as a generated answer is read: without special tokens and white space around it."""
    return str(tokenizer.decode(ids, skip_special_tokens=True)).strip()
