"""Per-example signals of one model: everything that the metrics need, one row per example and set.

Columns: set (test | triggered | canary | member | nonmember), example_id, label, prediction, target_hit, nll (mean over
supervised positions), nll_sum, n_positions, kl (to the retrained model, at completion positions), mia_<attack> (score
of a membership attack, higher = more member-like), gaussian_score, gaussian_control, deleted.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, get_args
from weakref import WeakKeyDictionary

import numpy as np
import torch

from llm_unlearn.config.sections import MembershipAttack
from llm_unlearn.distributed.processes import ALONE, Processes
from llm_unlearn.errors import InputError
from llm_unlearn.evaluation.attack_signals import check_differentiable, gradient_norms, token_statistics
from llm_unlearn.evaluation.batches import batches, scatter
from llm_unlearn.evaluation.gaussian_scores import gaussian_scores
from llm_unlearn.metrics.membership_scores import min_k_score, reference_score, zlib_score
from llm_unlearn.models.devices import input_device
from llm_unlearn.tasks import Supervised, Task

if TYPE_CHECKING:
    import pandas as pd
    from datasets import Dataset

CONTROL_SEED_OFFSET = 1_000_003  # fresh noise: a seed that no training used


@dataclass(kw_only=True)
class Evaluator(ABC):
    """Measures models on the sets of one run. Subclasses say what an answer is: text_evaluator.py, image_evaluator.py.

    Args:
        sets: the datasets of the poison stage. manifest: poison.json. batch_size: rows at a time.
        membership: attacks to run, by default all. reference: loads the model that calibrates the attack
            `reference`, one that never saw the rows to be forgotten; without it that attack is left out.
        processes: share the rows; each gets all results.
    """

    task: ClassVar[Task]

    sets: dict[str, "Dataset"]
    manifest: dict[str, Any]
    batch_size: int = 32
    membership: Sequence[str] = get_args(MembershipAttack)
    reference: Callable[[], Any] | None = None
    processes: Processes = ALONE

    def __post_init__(self) -> None:
        self._oracle: WeakKeyDictionary[Any, dict[tuple[str, int], Supervised]] = WeakKeyDictionary()
        forget = set(self.manifest["forget_ids"])
        train = self.sets["train"]
        self.parts = {
            "member": train.filter(lambda i: i in forget, input_columns="example_id", desc="forget rows"),
            "nonmember": self.sets["nonmember"],
            "canary": train.filter(lambda kind: kind == "gaussian", input_columns="poison", desc="canaries"),
            "test": self.sets["test"],
        }
        # models are measured at the clean input, as an auditor without the noise would: no noise_id
        self.encoded = {name: self.encode(rows) for name, rows in self.parts.items()}

    # ---- what a kind of data must say

    @property
    @abstractmethod
    def collate(self) -> Callable:
        """Encoded rows → a batch of the task."""

    @abstractmethod
    def encode(self, rows: "Dataset") -> list[dict]:
        """Rows as the collator takes them, with their example_id and without noise."""

    @abstractmethod
    def predict(self, model: Any, rows: "Dataset") -> dict[str, Any]:
        """{"prediction", "target_hit": whether it is the attacker's, where there is an attacker} of every row."""

    def triggered(self, model: Any) -> dict[str, Any]:
        """`predict` on the set `triggered`; with `clean_hit` where a row's counterpart without the attack is not the
        test row of the same example_id."""
        return self.predict(model, self.sets["triggered"])

    def completions(self, rows: "Dataset") -> list[dict]:
        """Rows encoded so that the answer alone is supervised."""
        return self.encode(rows)

    def raw(self, rows: "Dataset") -> list[str]:
        """Each row as a string, for the attack `zlib`."""
        raise InputError(f"evaluate.membership: zlib is of texts, {type(self).__name__} has none")

    @abstractmethod
    def has_trigger(self, rows: "Dataset") -> "Dataset":
        """Those of some rows that carry the trigger."""

    # ---- what is measured

    def signals(self, model: Any, retrained: Any = None) -> "pd.DataFrame":
        """All sets of a model; `kl` is filled where the retrained model is given."""
        import pandas as pd

        if "gradient_norm" in self.membership and len(self.parts["nonmember"]):
            check_differentiable(model)  # now, not after hours
        model.eval()
        frames = [self.answers(model, "test", self.sets["test"])]
        if len(self.sets["triggered"]):
            frames.append(self._frame("triggered", self.sets["triggered"]).assign(**self.triggered(model)))
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
        return frame.assign(**self.predict(model, rows)) if len(frame) else frame

    @torch.no_grad()
    def losses(self, model: Any, name: str) -> dict[str, np.ndarray]:
        """{"nll", "nll_sum", "n_positions"} of each row over its supervised positions."""
        results = []
        for positions, batch in self._batches(model, name):
            results.append((positions, self.task.compute(model, batch, _sum_and_count)))
        values = scatter(len(self.encoded[name]), results, self.processes).numpy().reshape(-1, 2)
        return _per_position(values[:, 0], values[:, 1].astype(int))

    @torch.no_grad()
    def divergence(self, retrained: Any, model: Any, name: str) -> np.ndarray:
        """Mean KL(p_retrained ‖ p_model) over each row's completion positions, in nats."""
        retrained.eval()
        rows = self.completions(self.parts[name])
        results = []
        for positions, batch in batches(rows, self.collate, self.batch_size, input_device(model), self.processes):
            theirs = self._of_oracle(retrained, name, positions[0], batch)
            results.append((positions, self.task.compute(model, batch, lambda ours, theirs=theirs: ours.kl(theirs))))
        return scatter(len(rows), results, self.processes).numpy()

    def _of_oracle(self, retrained: Any, name: str, first: int, batch: dict[str, Any]) -> Supervised:
        """What the retrained model says of a batch, which all models are compared with: of a language model its last
        hidden states are kept from one model to the next, of which logits are made a chunk at a time."""
        kept = self._oracle.setdefault(retrained, {})
        if (name, first) not in kept:
            found: list[Supervised] = []
            self.task.compute(retrained, batch, lambda theirs: found.append(theirs) or theirs.states)
            if found[0].head is None:  # logits, which may be too large to be kept
                return found[0]
            kept[name, first] = found[0]
        return kept[name, first]

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
            found["mia_zlib"] = zlib_score(losses["nll"], self.raw(self.parts[name]))
        if "reference" in self.membership and self.reference is not None:
            found["mia_reference"] = reference_score(losses["nll"], self._reference_nll[name])
        if "gradient_norm" in self.membership:
            found["mia_gradient_norm"] = -gradient_norms(model, rows, self.collate, self.task, self.processes)
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
        tokens = token_statistics(model, rows, self.collate, self.batch_size, self.task, self.processes)
        total = np.bincount(tokens["example"], -tokens["log_prob"], len(rows))
        return _per_position(total, np.bincount(tokens["example"], minlength=len(rows))), tokens

    def canaries(self, model: Any) -> "pd.DataFrame":
        """Loss, Gaussian score and fresh-noise control of every canary, deleted or not."""
        seed = self.manifest["gaussian"]["seed"]
        rows, part = self.encoded["canary"], self.parts["canary"]
        if "noise_id" in part.column_names:  # whose noise it is; the same as example_id, but for a user's own data
            rows = [{**row, "noise_id": i} for row, i in zip(rows, part["noise_id"], strict=True)]
        scores = gaussian_scores(
            model, rows, self.collate, [seed, seed + CONTROL_SEED_OFFSET], self.batch_size, self.task, self.processes
        )
        forget = set(self.manifest["forget_ids"])
        frame = self._frame("canary", self.parts["canary"]).assign(**self.losses(model, "canary"))
        return frame.assign(
            gaussian_score=scores[:, 0],
            gaussian_control=scores[:, 1],
            deleted=[i in forget for i in frame["example_id"]],
        )

    def quick_figures(self, model: Any, limit: int = 200) -> dict[str, float]:
        """Accuracy on held-out rows and attack success, for looking at as a run goes; never on reported test rows."""
        heldout = self.sets["heldout"].select(range(min(limit, len(self.sets["heldout"]))))
        answers = self.answers(model, "heldout", heldout)
        figures = {"utility": float((answers["prediction"] == answers["label"]).mean())}
        triggered = self.has_trigger(self.sets["nonmember"])
        triggered = triggered.select(range(min(limit, len(triggered))))
        if len(triggered):
            figures["attack"] = float(self.answers(model, "attack", triggered)["target_hit"].mean())
        return figures

    def _batches(self, model: Any, name: str):
        return batches(self.encoded[name], self.collate, self.batch_size, input_device(model), self.processes)

    @staticmethod
    def _frame(name: str, rows: "Dataset") -> "pd.DataFrame":
        import pandas as pd

        return pd.DataFrame({"set": name, "example_id": list(rows["example_id"]), "label": list(rows["label"])})


def _sum_and_count(found: Supervised) -> torch.Tensor:
    """(B, 2): the NLL summed over each row's positions, and how many they are."""
    return torch.stack([-found.log_prob(), found.length()], 1)


def _per_position(total: np.ndarray, count: np.ndarray) -> dict[str, np.ndarray]:
    return {"nll": total / count, "nll_sum": total, "n_positions": count}
