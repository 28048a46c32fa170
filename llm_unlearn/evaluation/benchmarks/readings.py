"""What a model says of given answers, token by token, and what it answers by itself."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from llm_unlearn.data.encoding import IGNORE, WHOLE, Encoding
from llm_unlearn.errors import InputError
from llm_unlearn.evaluation.answers import generate
from llm_unlearn.evaluation.batches import batches, evaluation_mode
from llm_unlearn.evaluation.text_evaluator import TextEvaluator
from llm_unlearn.models.adapters import without_adapter
from llm_unlearn.models.devices import input_device
from llm_unlearn.tasks import Supervised

CERTAIN_OF_NOTHING = 700.0  # nats: what a loss counts as that is not finite, or larger: e^−700 is still a number


@dataclass(frozen=True)
class Asking:
    """How questions are put to the models of a run.

    Args:
        evaluator: of the run, with its tokenizer, batch size, precision and processes.
        encoding: how prompts become tokens; nothing of them is cut.
        template: the prompt, in which {text} stands for a question.
    """

    evaluator: TextEvaluator
    encoding: Encoding
    template: str = "{text}"

    @classmethod
    def as_trained(cls, evaluator: TextEvaluator) -> "Asking":
        """Questions in the form that the run trains on: its prompt, and its chat template where it has one."""
        return cls(evaluator, replace(evaluator.encoding, max_length=WHOLE, loss_on="completion"), evaluator.template)

    @classmethod
    def plain(cls, evaluator: TextEvaluator) -> "Asking":
        """Texts as they stand, whatever the run trains on."""
        encoding = replace(evaluator.encoding, max_length=WHOLE, loss_on="completion", chat_template=False)
        return cls(evaluator, encoding)

    def prompt(self, question: str) -> str:
        return self.template.replace("{text}", question)

    def answers(self, model: Any, pairs: Sequence[tuple[str, str]]) -> "Readings":
        """What a model says of answers, at each of their tokens; of every question (question, answer)."""
        rows, ends = [], []
        for question, answer in pairs:
            prompt = self.prompt(question)
            rows.append(self.encoding.row(self.evaluator.tokenizer, prompt, answer))
            ends.append(len(self.encoding.asked(self.evaluator.tokenizer, prompt, [answer]).end))
        self._check_room(model, max(len(row["input_ids"]) for row in rows), "a question with its answer")
        return read_tokens(self.evaluator, model, rows, ends)

    def replies(self, model: Any, pairs: Sequence[tuple[str, str]], max_new_tokens: int) -> list[str]:
        """What a model says to questions, greedily; of the right answers only the space before them is looked at."""
        prompts, given = [self.prompt(question) for question, _ in pairs], self.evaluator
        longest = max(len(self.encoding.alone(given.tokenizer, prompt)) for prompt in prompts)
        self._check_room(model, longest + max_new_tokens, f"a question and {max_new_tokens} tokens of reply")
        with evaluation_mode(model):
            return generate(
                model,
                given.tokenizer,
                prompts,
                self.encoding,
                max_new_tokens,
                given.batch_size,
                processes=given.processes,
                completions=[answer for _, answer in pairs],
            )

    @staticmethod
    def _check_room(model: Any, tokens: int, what: str) -> None:
        limit = getattr(without_adapter(model).config, "max_position_embeddings", None)
        if limit is not None and tokens > limit:
            raise InputError(
                f"benchmark: {what} take {tokens} tokens, but the model takes at most {limit}; lower "
                "benchmark.max_new_tokens, or take another model"
            )


@dataclass(frozen=True)
class Readings:
    """What a model says at the tokens of n rows, in their order.

    Args:
        nll: of each token, in nats, (N,).
        hit: whether the token is the likeliest, (N,).
        example: the row of each token, (N,).
        inside: whether it is of the answer and not of what ends it, (N,).
    """

    nll: np.ndarray
    hit: np.ndarray
    example: np.ndarray
    inside: np.ndarray

    @property
    def mean_nll(self) -> np.ndarray:
        """(n,): the mean over each row's tokens, what ends it among them."""
        return np.bincount(self.example, self.nll) / np.bincount(self.example)

    @property
    def hits(self) -> tuple[np.ndarray, np.ndarray]:
        """(hits, example) of the tokens of the answers themselves."""
        return self.hit[self.inside], self.example[self.inside]


@torch.no_grad()
def read_tokens(evaluator: TextEvaluator, model: Any, rows: list[dict], ends: Sequence[int]) -> Readings:
    """Loss and likeliest token at every supervised position, from one forward pass of each batch.

    Args:
        evaluator: of the run.
        model: a causal LM.
        rows: {"input_ids", "labels"} each.
        ends: how many of each row's last supervised tokens end its answer; one token at least counts as answer.
    """
    rows = [{name: row[name] for name in ("input_ids", "labels")} for row in rows]
    counts = np.array([sum(label != IGNORE for label in row["labels"][1:]) for row in rows])
    mine: dict[int, np.ndarray] = {}
    with evaluation_mode(model):
        for positions, batch in batches(
            rows, evaluator.collate, evaluator.batch_size, input_device(model), evaluator.processes
        ):
            values = evaluator.task.compute(model, batch, _loss_and_hit).double().cpu().numpy()
            stops = np.cumsum(counts[positions])[:-1]
            mine |= dict(zip(positions, np.split(values, stops), strict=True))
    found = {row: values for part in evaluator.processes.merged(mine) for row, values in part.items()}
    joint = np.concatenate([found[row] for row in range(len(rows))])
    from_end = np.concatenate([np.arange(count)[::-1] for count in counts])
    last = np.minimum(np.asarray(ends), counts - 1)
    nll = np.minimum(np.nan_to_num(joint[:, 0], nan=CERTAIN_OF_NOTHING), CERTAIN_OF_NOTHING)
    return Readings(nll, joint[:, 1] > 0, np.repeat(np.arange(len(rows)), counts), from_end >= np.repeat(last, counts))


def _loss_and_hit(found: Supervised) -> torch.Tensor:
    """(N, 2): the loss of each label, and whether it is the likeliest token."""
    hit = found.token_values(lambda logits, labels: (logits.argmax(-1) == labels).float())
    return torch.stack([found.token_nll, hit], 1)
