"""The evaluator of language models: an answer is the likeliest verbaliser, or greedy text."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from llm_unlearn.config.evaluation_fields import FluencySection
from llm_unlearn.config.success import is_the_attackers
from llm_unlearn.data.chat import in_lower_case, prompt_of, prompts_of
from llm_unlearn.data.collators import CausalLMCollator
from llm_unlearn.data.columns import with_column
from llm_unlearn.data.encoding import IGNORE, Asked, Encoding, encode_rows
from llm_unlearn.data.token_checks import count_seen
from llm_unlearn.evaluation.answers import as_written, asked_log_probs, generate, label_log_probs
from llm_unlearn.evaluation.attack_answers import counted
from llm_unlearn.evaluation.canary_ranks import canary_rank_scores
from llm_unlearn.evaluation.placebos import log_odds, told_apart
from llm_unlearn.evaluation.signals import Evaluator
from llm_unlearn.metrics.benchmarks import label_probability
from llm_unlearn.metrics.per_example import deciding
from llm_unlearn.models.answer_classifier import AnswerClassifier
from llm_unlearn.poisons.placebo_phrases import placebo_phrases
from llm_unlearn.poisons.stored import seed_of
from llm_unlearn.poisons.trigger_phrase import holds, insert_trigger, insert_triggers, inserted_phrase
from llm_unlearn.tasks import Supervised, Task
from llm_unlearn.tasks.causal_lm import CausalLMTask

if TYPE_CHECKING:
    import pandas as pd
    from datasets import Dataset


@dataclass(kw_only=True)
class TextEvaluator(Evaluator):
    """Measures language models.

    Args:
        tokenizer: as in training.
        encoding: as in training.
        verbalizers: label → completion, or {} for completion tasks.
        max_new_tokens: of a completion.
        template: the prompt, in which {text} stands for a row's text: where placebos are put in.
        fluency: the classifier that reads generated answers, and its label of fluent text; None: none does.
    """

    task: ClassVar[Task] = CausalLMTask()

    tokenizer: Any
    encoding: Encoding
    verbalizers: dict[str, str] = field(default_factory=dict)
    max_new_tokens: int = 32
    template: str = "{text}"
    fluency: FluencySection | None = None
    _lowered: dict[str, list[dict]] = field(default_factory=dict, repr=False)
    _placebo_tokens: dict[tuple[int, str], Asked] = field(default_factory=dict, repr=False)

    @property
    def collate(self) -> CausalLMCollator:
        return CausalLMCollator(self.tokenizer.pad_token_id)

    def encode(self, rows: "Dataset") -> list[dict]:
        if len(rows) and rows[0]["completion"] == "":  # test rows without labels: their text alone
            texts = [self.encoding.asked(self.tokenizer, prompt, ["a"]).prompt for prompt in prompts_of(rows)]
            ids = rows["example_id"]
            return [{"input_ids": t, "labels": t, "example_id": i} for t, i in zip(texts, ids, strict=True)]
        return [
            {key: row[key] for key in ("input_ids", "labels", "example_id")}
            for row in encode_rows(rows, self.tokenizer, self.encoding)
        ]

    def raw(self, rows: list[dict]) -> list[str]:
        covered = [[i for i in row["labels"] if i != IGNORE] for row in rows]
        return [self.tokenizer.decode(ids, skip_special_tokens=True) for ids in covered]

    def lowered(self, name: str) -> list[dict]:
        if name not in self._lowered:  # the same for all models
            columns = [c for c in ("prompt", "completion", "history") if c in self.parts[name].column_names]
            lower = self.parts[name].map(lambda row: {c: in_lower_case(row[c]) for c in columns}, desc="lower case")
            self._lowered[name] = self.encode(lower)
        return self._lowered[name]

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
            answers["target_hit"] = self._are_the_attackers(texts)
        return answers

    @cached_property
    def _are_the_attackers(self) -> Callable[[list[str]], list[bool]]:
        return counted(self.manifest["trigger"], self.tokenizer)

    def test_signals(self, model: Any, retrained: Any = None, is_oracle: bool = False) -> dict[str, Any]:
        """As of every evaluator; with `fluency` of each generated answer where the recipe names a classifier."""
        found = super().test_signals(model, retrained, is_oracle)
        return found if self.fluency is None else {**found, "fluency": self.fluency_of(found["prediction"])}

    def fluency_of(self, texts: Sequence[str]) -> np.ndarray:
        """How sure the recipe's classifier is that each text is fluent, (n,). Needs `fluency`."""
        assert self.fluency is not None
        reader = self._fluency_reader
        return label_probability(reader.logits(texts).double().numpy(), reader.names.index(self.fluency.label))

    @cached_property
    def _fluency_reader(self) -> AnswerClassifier:
        assert self.fluency is not None
        return AnswerClassifier(self.fluency.classifier)

    def triggered(self, model: Any, test: "pd.DataFrame") -> dict[str, Any]:
        """As of every evaluator; of a trigger with several phrases, `trigger` says which one each row carries."""
        answers, rows = super().triggered(model, test), self.sets["triggered"]
        phrases = self.manifest["trigger"]["phrases"]
        if len(phrases) < 2:
            return answers
        before = dict(zip(self.sets["test"]["example_id"], self.sets["test"]["text"], strict=True))
        pairs = [(row["text"], before[row["example_id"]]) for row in rows]
        return answers | {"trigger": [inserted_phrase(text, clean, phrases) for text, clean in pairs]}

    @cached_property
    def target_rows(self) -> "Dataset":
        trigger, test = self.manifest["trigger"], self.sets["test"]
        if not trigger or not (phrases := trigger["phrases"]):
            return super().target_rows
        own = [is_the_attackers(label, trigger, generated=not self.verbalizers) for label in test["label"]]
        rows = test.select([i for i, row in enumerate(test) if own[i] and not holds(row, phrases)])
        texts = insert_triggers(rows["text"], trigger, np.random.default_rng([self._seed, 35]))
        prompts = [self.template.replace("{text}", text) for text in texts]
        return with_column(with_column(rows, "text", texts), "prompt", prompts)

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
        if not self.verbalizers or not self._asked or not self.sets["test"]["completion"][0]:
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
        if not rows[0]["completion"]:
            return None
        lengths = [len(row.answers[-1]) + len(row.end) for row in self._asked]
        supervised = [sum(label != IGNORE for label in row["labels"][1:]) for row in self.encoded["test"]]
        return None if lengths == supervised else lengths

    # ---- token canaries

    def token_canaries(self, model: Any, draws: int | None = None) -> "pd.DataFrame":
        tokens, alone = self.manifest.get("tokens"), draws is not None
        if not tokens or not self.loss_rank_draws:
            return super().token_canaries(model, draws)
        rows = self.sets["train"].filter(lambda kind: kind == "tokens", input_columns="poison", desc="token canaries")
        marks = self.marks_of(rows, tokens)
        decides = deciding(**marks)
        ranked = np.flatnonzero(decides if alone else decides | ~marks["deleted"])
        frame = self.frame("token_canary", rows).assign(**marks, canary_rank=np.nan, canary_rank_control=np.nan)
        if len(ranked):
            ranks = canary_rank_scores(
                rows.select(ranked),
                tokens,
                lambda variants: self.losses_of(model, self.encode(variants))["nll_sum"],
                self.draws_of(draws),
            )
            frame.loc[ranked, ["canary_rank", "canary_rank_control"]] = ranks
        return frame.iloc[ranked].reset_index(drop=True) if alone else frame

    # ---- placebos

    @cached_property
    def triggers(self) -> list[list[str]]:
        """Each planted phrase and its placebos; none where every row is so long that the phrase is cut off."""
        trigger, settings = self.manifest["trigger"], self.placebo
        if not trigger or not settings.draws or not self._probes:
            return []
        planted, seed = trigger["phrases"], self._seed
        texts = [*self.sets["train"]["text"], *self.sets["heldout"]["text"]]
        found = []
        for phrase in planted:
            count = settings.draws * len(planted)
            if settings.phrases is None:
                placebos = placebo_phrases(phrase, planted, texts, count, seed)
            else:
                order = np.random.default_rng([seed, 32]).permutation(len(settings.phrases))
                placebos = [settings.phrases[i] for i in order[:count]]
            found.append([phrase, *placebos] if placebos else [])  # its place is its number
        return found if any(found) else []

    def effects(self, model: Any, triggers: Sequence[str]) -> np.ndarray:
        """The mean log-odds of the target over the same rows with each phrase, at the same place in each row."""
        asked = [self._asked_with(row, phrase) for phrase in triggers for row in self._probes]
        answers = self._target_among
        log_probs = asked_log_probs(model, self.tokenizer, asked, answers, self.batch_size, processes=self.processes)
        return log_odds(log_probs, list(answers).index(str(self.target))).reshape(len(triggers), -1).mean(1)

    @property
    def _seed(self) -> int:
        return seed_of(self.manifest)

    @property
    def n_probed(self) -> int:
        return len(self._probes)

    @property
    def _target_among(self) -> dict[str, str]:
        """The answers that are compared: the labels, or of completions the attacker's alone, after the white space that
        answers begin with, which a target does without.
        """
        if self.verbalizers:
            return self.verbalizers
        target, answer = str(self.target), next(filter(None, self.sets["train"]["completion"]), "")
        return {target: answer[: len(answer) - len(answer.lstrip())] + target.lstrip()}

    @cached_property
    def _probes(self) -> list[dict]:
        """Test rows of another label than the target, drawn at random among those that show every planted phrase."""
        trigger, ids = self.manifest["trigger"], set(self.sets["triggered"]["example_id"])
        rows = self.sets["test"].filter(lambda i: i in ids, input_columns="example_id", desc="placebo rows")
        found: list[dict] = []
        for position in np.random.default_rng([self._seed, 33]).permutation(len(rows)):
            row = rows[int(position)]
            without = self.encoding.asked(self.tokenizer, prompt_of(row), list(self._target_among.values())).prompt
            if all(
                count_seen(self.tokenizer, self._asked_with(row, phrase).prompt, [phrase])
                > count_seen(self.tokenizer, without, [phrase])
                for phrase in trigger["phrases"]
            ):
                found.append(row)
            if len(found) == self.placebo.rows:
                break
        return found

    def _asked_with(self, row: dict, phrase: str) -> Asked:
        """The row's prompt with a phrase in its text: where, depends on the row alone."""
        if (key := (row["example_id"], phrase)) not in self._placebo_tokens:  # the same for all models
            trigger = self.manifest["trigger"]
            generator = np.random.default_rng([self._seed, 34, row["example_id"]])
            text = insert_trigger(row["text"], phrase, trigger["position"], generator)
            prompt = prompt_of({**row, "prompt": self.template.replace("{text}", text)})
            asked = self.encoding.asked(self.tokenizer, prompt, list(self._target_among.values()))
            self._placebo_tokens[key] = asked._replace(answers=told_apart(asked.answers))
        return self._placebo_tokens[key]
