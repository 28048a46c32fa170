"""The evaluator of language models: an answer is the likeliest verbaliser, or greedy text."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from llm_unlearn.data.collators import CausalLMCollator
from llm_unlearn.data.encoding import Encoding, check_verbalizers, completion_tokens, encode_rows
from llm_unlearn.evaluation.answers import generate, label_log_probs
from llm_unlearn.evaluation.signals import Evaluator
from llm_unlearn.tasks import Supervised, Task
from llm_unlearn.tasks.causal_lm import CausalLMTask

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(kw_only=True)
class TextEvaluator(Evaluator):
    """Measures language models.

    Args:
        tokenizer: as in training.
        encoding: as in training.
        verbalizers: label → completion, or {} for completion tasks.
        max_new_tokens: of a completion.
    """

    task: ClassVar[Task] = CausalLMTask()

    tokenizer: Any
    encoding: Encoding
    verbalizers: dict[str, str] = field(default_factory=dict)
    max_new_tokens: int = 32

    @property
    def collate(self) -> CausalLMCollator:
        return CausalLMCollator(self.tokenizer.pad_token_id)

    def encode(self, rows: "Dataset") -> list[dict]:
        return [
            {key: row[key] for key in ("input_ids", "labels", "example_id")}
            for row in encode_rows(rows, self.tokenizer, self.encoding)
        ]

    def raw(self, rows: "Dataset") -> list[str]:
        return [row["prompt"] + row["completion"] for row in rows]

    def has_trigger(self, rows: "Dataset") -> "Dataset":
        phrases = (self.manifest["trigger"] or {}).get("phrases", [])
        return rows.filter(lambda row: any(phrase in row["text"] for phrase in phrases))

    def predict(self, model: Any, rows: "Dataset") -> dict[str, Any]:
        given, size, shared = (model, self.tokenizer, list(rows["prompt"])), self.batch_size, self.processes
        if self.verbalizers:
            return self.answered(label_log_probs(*given, self.verbalizers, self.encoding, size, processes=shared))
        texts = generate(*given, self.encoding, self.max_new_tokens, size, processes=shared)
        predictions = [text.strip() for text in texts]
        answers: dict[str, Any] = {"prediction": predictions, "label": [label.strip() for label in rows["label"]]}
        if self.target is not None:
            answers["target_hit"] = [text.startswith(self.target.strip()) for text in predictions]
        return answers

    @property
    def target(self) -> str | None:
        return (self.manifest["trigger"] or {}).get("target")

    @cached_property
    def _label_tokens(self) -> list[list[int]]:
        return list(check_verbalizers(self.tokenizer, self.verbalizers).values())

    @cached_property
    def reads_answers(self) -> bool:
        """Labels whose verbalisers share all tokens but the last are scored at the row's own, whatever label it has."""
        if not self.verbalizers or self.tokenizer.eos_token_id is None:
            return False
        *prefix, _ = self._label_tokens[0]
        completions = {tuple(completion_tokens(self.tokenizer, text)) for text in set(self.sets["test"]["completion"])}
        candidates = [*self._label_tokens, *completions]
        return all(len(tokens) == len(prefix) + 1 and [*tokens[:-1]] == prefix for tokens in candidates)

    def answer_scores(self, answer: Supervised) -> torch.Tensor:
        """(B, L): the log-probability of each label's verbaliser, summed over its tokens."""
        wanted = torch.tensor(self._label_tokens, device=answer.labels.device).T  # (tokens, L)
        log_probs = torch.log_softmax(answer.logits.float(), -1).view(answer.n_examples, len(wanted) + 1, -1)
        return log_probs[:, :-1].gather(-1, wanted.expand(answer.n_examples, -1, -1)).sum(1)  # EOS is the last

    def answered(self, scores: np.ndarray) -> dict[str, Any]:
        predictions = np.array(list(self.verbalizers), dtype=object)[scores.argmax(1)]
        if self.target is None:
            return {"prediction": predictions}
        return {"prediction": predictions, "target_hit": predictions == self.target}

    def answer_lengths(self, rows: "Dataset") -> list[int] | None:
        if self.encoding.loss_on == "completion":
            return None
        eos = self.tokenizer.eos_token_id is not None
        return [len(completion_tokens(self.tokenizer, text)) + eos for text in rows["completion"]]
