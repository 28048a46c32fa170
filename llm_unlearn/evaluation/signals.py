"""Per-example signals of one model: everything that the metrics need, one row per example and set.

Columns: set (test | triggered | canary | member | nonmember), example_id, label, prediction, target_hit, nll (mean over
supervised positions), nll_sum, n_positions, kl (to the retrained model, at completion positions), mia_<attack> (score
of a membership attack, higher = more member-like), gaussian_score, gaussian_control, deleted.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import torch

from llm_unlearn.data.collators import CausalLMCollator
from llm_unlearn.data.encoding import Encoding, encode_rows
from llm_unlearn.evaluation.answers import generate, label_log_probs
from llm_unlearn.evaluation.batches import batches, scatter
from llm_unlearn.evaluation.gaussian import gaussian_scores
from llm_unlearn.evaluation.membership import gradient_norms, token_statistics
from llm_unlearn.losses import example_mean, example_sum, token_kl, token_nll
from llm_unlearn.metrics.membership_scores import min_k_score, reference_score, zlib_score
from llm_unlearn.sections import MembershipAttack
from llm_unlearn.tasks.causal_lm import CausalLMTask

if TYPE_CHECKING:
    import pandas as pd
    from datasets import Dataset

CONTROL_SEED_OFFSET = 1_000_003  # fresh noise: a seed that no training used


@dataclass
class Evaluator:
    """Measures models on the sets of one run.

    Args:
        tokenizer, encoding: as in training. sets: the datasets of poisons/corrupt.py. manifest: poison.json.
        verbalizers: label → completion, or {} for completion tasks. batch_size: rows at a time.
        membership: attacks to run, by default all. reference: loads the model that calibrates the attack
            `reference`, one that never saw the rows to be forgotten; without it that attack is left out.
    """

    tokenizer: Any
    encoding: Encoding
    sets: dict[str, "Dataset"]
    manifest: dict[str, Any]
    verbalizers: dict[str, str]
    batch_size: int = 32
    max_new_tokens: int = 32
    membership: Sequence[str] = get_args(MembershipAttack)
    reference: Callable[[], Any] | None = None

    def __post_init__(self) -> None:
        self.collate = CausalLMCollator(self.tokenizer.pad_token_id)
        self.task = CausalLMTask()
        forget = set(self.manifest["forget_ids"])
        train = self.sets["train"]
        self.parts = {
            "member": train.filter(lambda r: r["example_id"] in forget, desc="forget rows"),
            "nonmember": self.sets["nonmember"],
            "canary": train.filter(lambda r: r["poison"] == "gaussian", desc="canaries"),
            "test": self.sets["test"],
        }
        # models are measured at the clean input, as an auditor without the noise would: no noise_id
        self.encoded = {name: [{key: row[key] for key in ("input_ids", "labels", "example_id")}
                               for row in encode_rows(rows, self.tokenizer, self.encoding)]
                        for name, rows in self.parts.items()}

    def signals(self, model: Any, retrained: Any = None) -> "pd.DataFrame":
        """All sets of a model; `kl` is filled where the retrained model is given."""
        import pandas as pd

        model.eval()
        frames = [self.answers(model, "test", self.sets["test"]), self.answers(model, "triggered",
                                                                                self.sets["triggered"])]
        if len(frames[0]):
            frames[0] = frames[0].assign(**self.losses(model, "test"))
            if retrained is not None:
                frames[0] = frames[0].assign(kl=self.divergence(retrained, model, "test"))
        for name in ("member", "nonmember") if len(self.parts["nonmember"]) else ():
            frames.append(self._frame(name, self.parts[name]).assign(**self.membership_signals(model, name)))
        if self.manifest["gaussian"]:
            frames.append(self.canaries(model))
        return pd.concat([f for f in frames if len(f)], ignore_index=True)

    def answers(self, model: Any, name: str, rows: "Dataset") -> "pd.DataFrame":
        """Predictions, and whether they are the attacker's target."""
        frame = self._frame(name, rows)
        if not len(frame):
            return frame
        target = (self.manifest["trigger"] or {}).get("target")
        if self.verbalizers:
            scores = label_log_probs(model, self.tokenizer, list(rows["prompt"]), self.verbalizers, self.encoding,
                                     self.batch_size)
            labels = np.array(list(self.verbalizers), dtype=object)
            frame["prediction"] = labels[scores.argmax(1)]
            hit = frame["prediction"] == target
        else:
            texts = generate(model, self.tokenizer, list(rows["prompt"]), self.encoding, self.max_new_tokens,
                             self.batch_size)
            frame["prediction"] = [text.strip() for text in texts]
            frame["label"] = frame["label"].str.strip()
            hit = frame["prediction"].str.startswith((target or "").strip())
        return frame if target is None else frame.assign(target_hit=hit)

    @torch.no_grad()
    def losses(self, model: Any, name: str) -> dict[str, np.ndarray]:
        """{"nll", "nll_sum", "n_positions"} of each row over its supervised positions."""
        results = []
        for positions, batch in self._batches(model, name):
            s = self.task.supervised(model, batch)
            total = example_sum(token_nll(s.logits, s.labels), s.example, s.n_examples)
            count = torch.bincount(s.example, minlength=s.n_examples)
            results.append((positions, torch.stack([total.double(), count.double()], 1)))
        values = scatter(len(self.encoded[name]), results).numpy().reshape(-1, 2)
        return _per_position(values[:, 0], values[:, 1].astype(int))

    @torch.no_grad()
    def divergence(self, retrained: Any, model: Any, name: str) -> np.ndarray:
        """Mean KL(p_retrained ‖ p_model) over each row's completion positions, in nats."""
        retrained.eval()
        encoding = Encoding(self.encoding.max_length, "completion", self.encoding.chat_template)
        rows = list(encode_rows(self.parts[name], self.tokenizer, encoding))
        results = []
        for positions, batch in batches(rows, self.collate, self.batch_size, next(model.parameters()).device):
            ours, theirs = self.task.supervised(model, batch), self.task.supervised(retrained, batch)
            kl = token_kl(theirs.logits, ours.logits)
            results.append((positions, example_mean(kl, ours.example, ours.n_examples)))
        return scatter(len(rows), results).numpy()

    def membership_signals(self, model: Any, name: str) -> dict[str, np.ndarray]:
        """`losses`, and `mia_<attack>` of each row for the attacks that are asked for; the loss attack is in `nll`."""
        rows, found = self.encoded[name], {}
        losses, tokens = self._losses_and_tokens(model, name)
        if "min_k" in self.membership:
            found["mia_min_k"] = min_k_score(tokens["log_prob"], tokens["example"])
        if "min_k_plus" in self.membership:
            standard = (tokens["log_prob"] - tokens["mean"]) / tokens["sd"]
            found["mia_min_k_plus"] = min_k_score(standard, tokens["example"])
        if "zlib" in self.membership:
            texts = [row["prompt"] + row["completion"] for row in self.parts[name]]
            found["mia_zlib"] = zlib_score(losses["nll"], texts)
        if "reference" in self.membership and self.reference is not None:
            found["mia_reference"] = reference_score(losses["nll"], self._reference_nll[name])
        if "gradient_norm" in self.membership:
            found["mia_gradient_norm"] = -gradient_norms(model, rows, self.collate, self.task)
        return {**losses, **found}

    @cached_property
    def _reference_nll(self) -> dict[str, np.ndarray]:
        model = self.reference()
        model.eval()
        return {name: self._losses_and_tokens(model, name)[0]["nll"] for name in ("member", "nonmember")}

    def _losses_and_tokens(self, model: Any, name: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray] | None]:
        """`losses`, and the statistics of every token where an attack needs them: one forward pass for both."""
        if not {"min_k", "min_k_plus"} & set(self.membership):
            return self.losses(model, name), None
        rows = self.encoded[name]
        tokens = token_statistics(model, rows, self.collate, self.batch_size, self.task)
        total = np.bincount(tokens["example"], -tokens["log_prob"], len(rows))
        return _per_position(total, np.bincount(tokens["example"], minlength=len(rows))), tokens

    def canaries(self, model: Any) -> "pd.DataFrame":
        """Loss, Gaussian score and fresh-noise control of every canary, deleted or not."""
        seed = self.manifest["gaussian"]["seed"]
        rows, part = self.encoded["canary"], self.parts["canary"]
        if "noise_id" in part.column_names:  # whose noise it is; the same as example_id, but for a user's own data
            rows = [{**row, "noise_id": i} for row, i in zip(rows, part["noise_id"], strict=True)]
        scores = gaussian_scores(model, rows, self.collate, [seed, seed + CONTROL_SEED_OFFSET],
                                 self.batch_size, self.task)
        forget = set(self.manifest["forget_ids"])
        frame = self._frame("canary", self.parts["canary"]).assign(**self.losses(model, "canary"))
        return frame.assign(gaussian_score=scores[:, 0], gaussian_control=scores[:, 1],
                            deleted=[i in forget for i in frame["example_id"]])

    def quick_figures(self, model: Any, limit: int = 200) -> dict[str, float]:
        """Accuracy on held-out rows and attack success, for looking at as a run goes; never on reported test rows."""
        heldout = self.sets["heldout"].select(range(min(limit, len(self.sets["heldout"]))))
        answers = self.answers(model, "heldout", heldout)
        figures = {"utility": float((answers["prediction"] == answers["label"]).mean())}
        nonmember = self.sets["nonmember"]
        if self.manifest["trigger"]:
            phrase_rows = nonmember.filter(lambda r: any(p in r["text"] for p in self.manifest["trigger"]["phrases"]))
            phrase_rows = phrase_rows.select(range(min(limit, len(phrase_rows))))
            if len(phrase_rows):
                figures["attack"] = float(self.answers(model, "attack", phrase_rows)["target_hit"].mean())
        return figures

    def _batches(self, model: Any, name: str):
        return batches(self.encoded[name], self.collate, self.batch_size, next(model.parameters()).device)

    @staticmethod
    def _frame(name: str, rows: "Dataset") -> "pd.DataFrame":
        import pandas as pd

        return pd.DataFrame({"set": name, "example_id": list(rows["example_id"]), "label": list(rows["label"])})


def _per_position(total: np.ndarray, count: np.ndarray) -> dict[str, np.ndarray]:
    return {"nll": total / count, "nll_sum": total, "n_positions": count}
