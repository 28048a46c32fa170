"""The few figures of one state of a model: the attack, the Gaussian test, the accuracy."""

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from datasets import Dataset

from llm_unlearn.audit.stress.variants import Variant
from llm_unlearn.data.encoding import completion_tokens
from llm_unlearn.data.prompting import render
from llm_unlearn.evaluation.answers import generate, label_log_probs
from llm_unlearn.evaluation.gaussian_scores import gaussian_scores
from llm_unlearn.evaluation.text_evaluator import TextEvaluator
from llm_unlearn.metrics.attack import attack_success
from llm_unlearn.metrics.gaussian import gaussian_test
from llm_unlearn.poisons.trigger_phrase import insert_trigger

if TYPE_CHECKING:
    from llm_unlearn.config.sections import DataSection


class Meter:
    """Measures states of models on the same rows.

    Args:
        evaluator: of the run.
        data: its section of the recipe, by which prompts are written.
        limit: test rows, the first ones; None for all.
        seed: of where a trigger lands, and of sampling.
    """

    def __init__(self, evaluator: TextEvaluator, data: "DataSection", limit: int | None, seed: int) -> None:
        self.evaluator, self.data, self.seed = evaluator, data, seed
        test = evaluator.sets["test"]
        self.test = test.select(range(min(limit or len(test), len(test))))
        ids = set(self.test["example_id"])
        triggered = evaluator.sets["triggered"]
        self.triggered = triggered.select([i for i, e in enumerate(triggered["example_id"]) if e in ids])
        place = {e: i for i, e in enumerate(self.test["example_id"])}
        self.twins = self.test.select([place[e] for e in self.triggered["example_id"]])

    @property
    def target(self) -> str | None:
        return (self.evaluator.manifest["trigger"] or {}).get("target")

    def state(self, model: Any) -> dict[str, Any]:
        """{"attack": attack_success or None, "gus": gaussian_test on the deleted canaries or None, "accuracy"}."""
        answers = self.evaluator.answers(model, "test", self.test)
        figures = {
            "attack": None,
            "gus": self.gus(model),
            "accuracy": float((answers["prediction"] == answers["label"]).mean()),
        }
        if len(self.triggered):
            clean = answers.set_index("example_id").loc[self.triggered["example_id"]]["target_hit"].to_numpy(bool)
            figures["attack"] = attack_success(self._hits(model, self.triggered), clean)
        return figures

    def gus(self, model: Any) -> dict[str, Any] | None:
        """The Gaussian test on the deleted canaries; None without any, or where no gradient is left."""
        if not self._deleted:
            return None
        evaluator = self.evaluator
        scores = gaussian_scores(
            model,
            self._deleted,
            evaluator.collate,
            [evaluator.manifest["gaussian"]["seed"]],
            evaluator.batch_size,
            evaluator.task,
        )[:, 0]
        scores = scores[np.isfinite(scores)]
        return gaussian_test(scores) if len(scores) else None

    @cached_property
    def _deleted(self) -> list[dict]:
        if not self.evaluator.manifest["gaussian"]:
            return []
        forget = set(self.evaluator.manifest["forget_ids"])
        return [row for row in self.evaluator.encoded["canary"] if row["example_id"] in forget]

    def variants(self, model: Any, variants: list[Variant]) -> list[dict[str, Any]]:
        """[{"kind", "name", "attack"}] with each variant of the trigger, on the same examples; those in which
        truncation cuts it off are left out, and `attack` is None where that is all of them. Of several phrases the
        first is varied, in all examples, so that "as trained" is that phrase alone.
        """
        clean, found = self._hits(model, self.twins), []
        for variant in variants:
            rows, kept = self._written(variant)
            attack = attack_success(self._hits(model, rows.select(kept)), clean[kept]) if kept else None
            found.append({"kind": variant.kind, "name": variant.name, "attack": attack})
        return found

    def _written(self, variant: Variant) -> tuple["Dataset", list[int]]:
        """The twins with the variant in their text, and in which of them the model gets to see it."""
        generator = np.random.default_rng([self.seed, 10])
        texts = [insert_trigger(text, variant.phrase, variant.position, generator) for text in self.twins["text"]]
        columns = {name: list(self.twins[name]) for name in ("example_id", "label")}
        # in memory: of rows that lie in the run's folder, `datasets` would leave a cache file there per variant
        rows = render(Dataset.from_dict({**columns, "text": texts}), self.data)
        pairs = zip(rows["prompt"], self.twins["prompt"], strict=True)
        # counted, since a part of a trigger, such as "the", may stand in the text anyway
        kept = [
            i
            for i, pair in enumerate(pairs)
            if self._as_seen(pair[0]).count(variant.phrase) > self._as_seen(pair[1]).count(variant.phrase)
        ]
        return rows, kept

    def temperature(self, model: Any, temperature: float) -> dict[str, float]:
        """Rates of the target when completions are sampled: {"success_rate", "clean_rate", "lift"}.

        Of label tasks the exact expectation: the probability, at this temperature and over the whole vocabulary, that
        the sampled tokens are the target's. Of completion tasks one seeded sample per example. The limit T → 0 is
        greedy decoding; of label tasks `state` has its counterpart, the likeliest label.
        """
        rates = [float(np.mean(self._sampled(model, rows, temperature))) for rows in (self.triggered, self.twins)]
        return {"success_rate": rates[0], "clean_rate": rates[1], "lift": rates[0] - rates[1]}

    def _sampled(self, model: Any, rows: "Dataset", temperature: float) -> np.ndarray:
        evaluator, prompts = self.evaluator, list(rows["prompt"])
        if evaluator.verbalizers:
            scores = label_log_probs(
                model,
                evaluator.tokenizer,
                prompts,
                evaluator.verbalizers,
                evaluator.encoding,
                evaluator.batch_size,
                temperature,
            )
            return np.exp(scores[:, list(evaluator.verbalizers).index(self.target)])
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            texts = generate(
                model,
                evaluator.tokenizer,
                prompts,
                evaluator.encoding,
                evaluator.max_new_tokens,
                evaluator.batch_size,
                temperature,
            )
        return np.array([text.strip().startswith(self.target.strip()) for text in texts])

    def _hits(self, model: Any, rows: "Dataset") -> np.ndarray:
        return self.evaluator.answers(model, "triggered", rows)["target_hit"].to_numpy(bool)

    def _as_seen(self, prompt: str) -> str:
        """The prompt as the model is given it, its beginning cut where it is too long."""
        evaluator = self.evaluator
        # as label_log_probs and generate leave it
        room = max(
            (len(completion_tokens(evaluator.tokenizer, text)) + 1 for text in evaluator.verbalizers.values()),
            default=evaluator.max_new_tokens,
        )
        return evaluator.tokenizer.decode(evaluator.encoding.prompt_ids(evaluator.tokenizer, prompt, room))
