"""The evaluator of language models: an answer is the likeliest verbaliser, or greedy text."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from llm_unlearn.data.chat import prompts_of
from llm_unlearn.data.collators import CausalLMCollator
from llm_unlearn.data.encoding import IGNORE, Asked, Encoding, encode_rows
from llm_unlearn.evaluation.answers import as_written, generate, label_log_probs
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

    def raw(self, rows: list[dict]) -> list[str]:
        covered = [[i for i in row["labels"] if i != IGNORE] for row in rows]
        return [self.tokenizer.decode(ids, skip_special_tokens=True) for ids in covered]

    def has_trigger(self, rows: "Dataset") -> "Dataset":
        phrases = (self.manifest["trigger"] or {}).get("phrases", [])
        return rows.filter(lambda row: any(phrase in row["text"] for phrase in phrases))

    def predict(self, model: Any, rows: "Dataset") -> dict[str, Any]:
        given, size, shared = (model, self.tokenizer, prompts_of(rows)), self.batch_size, self.processes
        if self.verbalizers:
            return self.answered(label_log_probs(*given, self.verbalizers, self.encoding, size, processes=shared))
        texts = generate(
            *given, self.encoding, self.max_new_tokens, size, processes=shared, completions=rows["completion"]
        )
        labels = [as_written(self.tokenizer, label) for label in rows["label"]]
        answers: dict[str, Any] = {"prediction": texts, "label": labels}
        if self.target is not None:
            target = as_written(self.tokenizer, self.target)
            answers["target_hit"] = [text.startswith(target) for text in texts]
        return answers

    def shown(self, rows: "Dataset") -> list[list[int]]:
        """The tokens of each row's prompt with which `predict` asks."""
        labels, room = list(self.verbalizers.values()), None if self.verbalizers else self.max_new_tokens
        return [
            self.encoding.asked(self.tokenizer, prompt, labels or [completion], room).prompt
            for prompt, completion in zip(prompts_of(rows), rows["completion"], strict=True)
        ]

    @property
    def target(self) -> str | None:
        return (self.manifest["trigger"] or {}).get("target")

    @cached_property
    def _asked(self) -> list[Asked]:
        """Of every test row its prompt, the verbalisers and its own completion."""
        rows, labels = self.sets["test"], self.verbalizers.values()
        return [
            self.encoding.asked(self.tokenizer, prompt, [*labels, completion])
            for prompt, completion in zip(prompts_of(rows), rows["completion"], strict=True)
        ]

    @cached_property
    def reads_answers(self) -> bool:
        """Labels whose verbalisers share all tokens but the last are scored at the row's own, whatever label it has."""
        if not self.verbalizers or not self._asked:
            return False
        (*labels, _), end = self._asked[0].answers, self._asked[0].end
        prefix = labels[0][:-1]
        return all(
            row.end == end
            and row.answers[:-1] == labels
            and all(len(tokens) == len(prefix) + 1 and tokens[:-1] == prefix for tokens in row.answers)
            for row in self._asked
        )

    def answer_scores(self, answer: Supervised) -> torch.Tensor:
        """(B, L): the log-probability of each label's verbaliser, summed over its tokens."""
        *labels, _ = self._asked[0].answers
        wanted = torch.tensor(labels, device=answer.labels.device).T  # (tokens, L)
        log_probs = torch.log_softmax(answer.logits.float(), -1).view(answer.n_examples, -1, answer.logits.shape[-1])
        return log_probs[:, : len(wanted)].gather(-1, wanted.expand(answer.n_examples, -1, -1)).sum(1)

    def answered(self, scores: np.ndarray) -> dict[str, Any]:
        predictions = np.array(list(self.verbalizers), dtype=object)[scores.argmax(1)]
        if self.target is None:
            return {"prediction": predictions}
        return {"prediction": predictions, "target_hit": predictions == self.target}

    def answer_lengths(self, rows: "Dataset") -> list[int] | None:
        lengths = [len(row.answers[-1]) + len(row.end) for row in self._asked]
        supervised = [sum(label != IGNORE for label in row["labels"][1:]) for row in self.encoded["test"]]
        return None if lengths == supervised else lengths
