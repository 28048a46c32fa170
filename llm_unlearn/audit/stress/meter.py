"""The figures of one state of a model: the attack, the tests of its canaries, the accuracy."""

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from datasets import Dataset

from llm_unlearn.audit.stress.variants import Variant
from llm_unlearn.data.chat import prompts_of
from llm_unlearn.data.prompting import render
from llm_unlearn.data.token_checks import count_seen
from llm_unlearn.evaluation.answers import as_written, generate, label_log_probs
from llm_unlearn.evaluation.arithmetic import in_its_arithmetic
from llm_unlearn.evaluation.text_evaluator import TextEvaluator
from llm_unlearn.metrics.attack import attack_success
from llm_unlearn.metrics.gaussian import gaussian_test
from llm_unlearn.poisons.trigger_phrase import insert_trigger

if TYPE_CHECKING:
    from llm_unlearn.config.data_sections import DataSection

DRAWS = 9  # fresh noises or strings that a canary is ranked among: enough for a mean, and there are many states
SCORES = {"gus": "gaussian_score", "loss_rank": "loss_rank", "canary_rank": "canary_rank"}  # test → its column


class Meter:
    """Measures states of models on the same rows.

    Args:
        evaluator: evaluator of the run.
        data: the recipe's `data` section, for the prompts.
        limit: number of test rows, from the first on; None for all.
        seed: seed of trigger positions and of sampling.
    """

    def __init__(self, evaluator: TextEvaluator, data: "DataSection", limit: int | None, seed: int) -> None:
        self.evaluator, self.data, self.seed, self.arithmetic = evaluator, data, seed, evaluator.arithmetic
        test = evaluator.sets["test"]
        self.test = test.select(range(min(limit or len(test), len(test))))
        ids = set(self.test["example_id"])
        triggered = evaluator.sets["triggered"]
        self.triggered = triggered.select([i for i, e in enumerate(triggered["example_id"]) if e in ids])
        position = {e: i for i, e in enumerate(self.test["example_id"])}
        self.twins = self.test.select([position[e] for e in self.triggered["example_id"]])

    @property
    def target(self) -> str | None:
        """The label or completion that the trigger asks for."""
        return (self.evaluator.manifest["trigger"] or {}).get("target")

    def state(self, model: Any, relearned: Collection[int] = ()) -> dict[str, Any]:
        """{"attack": attack_success or None, "accuracy", and the tests of the canaries}.

        Args:
            model: to be measured.
            relearned: example_ids of canaries that it was trained on again, which are not scored.
        """
        answers = self.evaluator.answers(model, "test", self.test)
        figures = {
            "attack": None,
            "accuracy": float((answers["prediction"] == answers["label"]).mean()),
            **self.canaries(model, relearned),
        }
        if len(self.triggered):
            clean = answers.set_index("example_id").loc[self.triggered["example_id"]]["target_hit"].to_numpy(bool)
            figures["attack"] = attack_success(self._hits(model, self.triggered), clean).to_json()
        return figures

    @in_its_arithmetic
    def canaries(self, model: Any, relearned: Collection[int] = ()) -> dict[str, dict[str, Any] | None]:
        """Of each score in SCORES the test on the deleted canaries (on the hidden ones, where some are) but those in
        `relearned`; None where there are none, or where there is no gradient or no rank.
        """
        frames = [self.evaluator.canaries(model, draws=DRAWS)] if self.evaluator.manifest["gaussian"] else []
        tests: dict[str, dict[str, Any] | None] = dict.fromkeys(SCORES)
        for frame in (*frames, self.evaluator.token_canaries(model, draws=DRAWS)):
            for name, column in SCORES.items():
                if column in frame:
                    scores = frame.loc[~frame["example_id"].isin(set(relearned)), column].to_numpy(float)
                    scores = scores[np.isfinite(scores)]
                    tests[name] = gaussian_test(scores).to_json() if len(scores) else None
        return tests

    def variants(self, model: Any, variants: list[Variant]) -> list[dict[str, Any]]:
        """Measure the attack with each variant of the trigger, on the same examples.

        Examples in which truncation cuts the variant off are left out. If there are several phrases, only the first is
        varied, and "as trained" is that phrase in all examples.

        Returns:
            [{"kind", "name", "attack"}]; `attack` is None if truncation cuts off all.
        """
        clean, results = self._hits(model, self.twins), []
        for variant in variants:
            rows, kept = self._written(variant)
            attack = attack_success(self._hits(model, rows.select(kept)), clean[kept]).to_json() if kept else None
            results.append({"kind": variant.kind, "name": variant.name, "attack": attack})
        return results

    def _written(self, variant: Variant) -> tuple["Dataset", list[int]]:
        """The twins with the variant in their text, and the positions of those in which the model sees it."""
        generator = np.random.default_rng([self.seed, 10])
        texts = [insert_trigger(text, variant.phrase, variant.position, generator) for text in self.twins["text"]]
        kept_columns = [c for c in ("example_id", "label", "history", "tools") if c in self.twins.column_names]
        columns = {name: list(self.twins[name]) for name in kept_columns}
        # in memory: for rows on the disk, `datasets` would write a cache file per variant into the run's folder
        rows = render(Dataset.from_dict({**columns, "text": texts}), self.data)
        # counted, since part of a trigger, such as "the", may occur in the text anyway
        with_variant, without = self._counts(rows, variant.phrase), self._counts(self.twins, variant.phrase)
        kept = [i for i, pair in enumerate(zip(with_variant, without, strict=True)) if pair[0] > pair[1]]
        return rows, kept

    def temperature(self, model: Any, temperature: float) -> dict[str, float]:
        """Rates of the target when completions are sampled: {"success_rate", "clean_rate", "lift"}.

        For label tasks these are exact expectations: the probability, at this temperature and over the whole
        vocabulary, that the sampled tokens are the target's. For completion tasks there is one seeded sample per
        example. The limit T → 0 is greedy decoding; its counterpart for label tasks, the likeliest label, is in
        `state`.
        """
        rates = [float(np.mean(self._sampled(model, rows, temperature))) for rows in (self.triggered, self.twins)]
        return {"success_rate": rates[0], "clean_rate": rates[1], "lift": rates[0] - rates[1]}

    @in_its_arithmetic
    def _sampled(self, model: Any, rows: "Dataset", temperature: float) -> np.ndarray:
        """(n,) probability of the target, or whether a sample begins with it."""
        evaluator, prompts, target = self.evaluator, prompts_of(rows), str(self.target)
        tokenizer, encoding, size = evaluator.tokenizer, evaluator.encoding, evaluator.batch_size
        if evaluator.verbalizers:
            scores = label_log_probs(model, tokenizer, prompts, evaluator.verbalizers, encoding, size, temperature)
            return np.exp(scores[:, list(evaluator.verbalizers).index(target)])
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            texts = generate(
                model,
                tokenizer,
                prompts,
                encoding,
                evaluator.max_new_tokens,
                size,
                temperature,
                completions=rows["completion"],
            )
        return np.array([text.startswith(as_written(tokenizer, target)) for text in texts])

    def _hits(self, model: Any, rows: "Dataset") -> np.ndarray:
        """(n,) bool: whether the answer is the target."""
        return self.evaluator.answers(model, "triggered", rows)["target_hit"].to_numpy(bool)

    def _counts(self, rows: "Dataset", phrase: str) -> list[int]:
        """How often a phrase stands in each prompt as the model sees it, its beginning cut if it is too long."""
        return [count_seen(self.evaluator.tokenizer, ids, [phrase]) for ids in self.evaluator.shown(rows)]
