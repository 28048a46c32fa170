"""The evaluator of language models: an answer is the likeliest verbaliser, or greedy text."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from llm_unlearn.data.collators import CausalLMCollator
from llm_unlearn.data.encoding import Encoding, encode_rows
from llm_unlearn.evaluation.answers import generate, label_log_probs
from llm_unlearn.evaluation.signals import Evaluator
from llm_unlearn.tasks import Task
from llm_unlearn.tasks.causal_lm import CausalLMTask

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(kw_only=True)
class TextEvaluator(Evaluator):
    """
    Args:
        tokenizer, encoding: as in training. verbalizers: label → completion, or {} for completion tasks.
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

    def completions(self, rows: "Dataset") -> list[dict]:
        encoding = Encoding(self.encoding.max_length, "completion", self.encoding.chat_template)
        return list(encode_rows(rows, self.tokenizer, encoding))

    def raw(self, rows: "Dataset") -> list[str]:
        return [row["prompt"] + row["completion"] for row in rows]

    def has_trigger(self, rows: "Dataset") -> "Dataset":
        phrases = (self.manifest["trigger"] or {}).get("phrases", [])
        return rows.filter(lambda row: any(phrase in row["text"] for phrase in phrases))

    def predict(self, model: Any, rows: "Dataset") -> dict[str, Any]:
        target, found = (self.manifest["trigger"] or {}).get("target"), {}
        if self.verbalizers:
            scores = label_log_probs(
                model,
                self.tokenizer,
                list(rows["prompt"]),
                self.verbalizers,
                self.encoding,
                self.batch_size,
                processes=self.processes,
            )
            found["prediction"] = np.array(list(self.verbalizers), dtype=object)[scores.argmax(1)]
            hits = found["prediction"] == target
        else:
            texts = generate(
                model,
                self.tokenizer,
                list(rows["prompt"]),
                self.encoding,
                self.max_new_tokens,
                self.batch_size,
                processes=self.processes,
            )
            found["prediction"] = [text.strip() for text in texts]
            found["label"] = [label.strip() for label in rows["label"]]
            hits = [text.startswith((target or "").strip()) for text in found["prediction"]]
        return found if target is None else {**found, "target_hit": hits}
