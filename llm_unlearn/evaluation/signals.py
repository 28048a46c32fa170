"""Per-example signals of one model: everything that the metrics need, one row per example and set.

The columns are those of metrics/per_example.py. Each test row goes through the model once, unless its answer is
generated text or a label whose tokens part early. Not merged, since other batches would change the last bits of
recorded numbers: a canary's loss with its gradient (the one lays uneven rows end to end, the other pads them), and
canaries with forget rows.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, ClassVar, get_args
from weakref import WeakKeyDictionary

import numpy as np
import torch

from llm_unlearn.config.sections import MembershipAttack
from llm_unlearn.distributed.processes import ALONE, Processes
from llm_unlearn.errors import InputError
from llm_unlearn.evaluation.arithmetic import FLOAT32, Arithmetic, in_its_arithmetic
from llm_unlearn.evaluation.attack_signals import check_differentiable, gradient_norms, token_statistics
from llm_unlearn.evaluation.batches import batches, scatter
from llm_unlearn.evaluation.gaussian_scores import gaussian_scores
from llm_unlearn.evaluation.loss_ranks import DRAWS, loss_rank_scores
from llm_unlearn.evaluation.placebos import DEFAULT, PlaceboSettings, effects_in_turn, placebo_table
from llm_unlearn.metrics.membership_scores import MIN_K_SHARE, min_k_score, reference_score, zlib_score
from llm_unlearn.metrics.per_example import LATER, MEMBERSHIP
from llm_unlearn.models.devices import batch_on, input_device
from llm_unlearn.tasks import Supervised, Task
from llm_unlearn.tasks.noise import FRESH_SEED_OFFSET

if TYPE_CHECKING:
    import pandas as pd
    from datasets import Dataset


LATER_DRAWS = 19  # of the loss rank after clean steps, whose tests are of the mean and the spread alone


@dataclass(kw_only=True)
class Evaluator(ABC):
    """Measures models on the sets of one run. Subclasses say what an answer is: text_evaluator.py, image_evaluator.py.

    Args:
        sets: the datasets of the poison stage.
        manifest: poison.json.
        batch_size: rows at a time.
        membership: attacks to run, by default all.
        loss_rank_draws: fresh noises that a canary's loss is ranked among; 0 leaves the test out, as does a manifest
            without ε.
        placebo: how a trigger is compared with triggers that were never planted.
        min_k_share: the share of an example's tokens that Min-K % and Min-K %++ look at.
        reference: loads the model that calibrates the attack `reference`, one that never saw the rows to be forgotten;
            without it that attack is left out.
        arithmetic: the precision that models are run in.
        processes: share the rows; each gets all results.
    """

    task: ClassVar[Task]

    sets: dict[str, "Dataset"]
    manifest: dict[str, Any]
    batch_size: int = 32
    membership: Sequence[str] = get_args(MembershipAttack)
    min_k_share: float = MIN_K_SHARE
    loss_rank_draws: int = DRAWS
    placebo: PlaceboSettings = DEFAULT
    reference: Callable[[], Any] | None = None
    arithmetic: Arithmetic = FLOAT32
    processes: Processes = ALONE

    def __post_init__(self) -> None:
        self._oracle: WeakKeyDictionary[Any, dict[int, Supervised]] = WeakKeyDictionary()
        train, forget = self.sets["train"], set(self.manifest["forget_ids"])
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

    def triggered(self, model: Any, test: "pd.DataFrame") -> dict[str, Any]:
        """`predict` on the set `triggered`; with `clean_hit` where a row's counterpart without the attack is not the
        test row of the same example_id. `test` holds the answers to the test rows.
        """
        return self.predict(model, self.sets["triggered"])

    @property
    @abstractmethod
    def reads_answers(self) -> bool:
        """Whether the answer to a test row can be read off what the model says at the row's answer."""

    @abstractmethod
    def answer_scores(self, answer: Supervised) -> torch.Tensor:
        """What `answered` needs of each row, (B, K), from the positions of the rows' answers."""

    @abstractmethod
    def answered(self, scores: np.ndarray) -> dict[str, Any]:
        """As `predict`, from the scores (n, K) of all rows."""

    def answer_lengths(self, rows: "Dataset") -> list[int] | None:
        """How many of each row's supervised positions, the last ones, are its answer; None where all are."""
        return None

    def raw(self, rows: list[dict]) -> list[str]:
        """The text of each encoded row that its loss covers, for the attack `zlib`."""
        raise InputError(f"evaluate.membership: zlib is of texts, {type(self).__name__} has none")

    @abstractmethod
    def has_trigger(self, rows: "Dataset") -> "Dataset":
        """Those of some rows that carry the trigger."""

    @cached_property
    def triggers(self) -> list[list[Any]]:
        """Each planted trigger, followed by its placebos in the order of their draw; none where no row would tell."""
        return []

    def effects(self, model: Any, triggers: Sequence[Any]) -> np.ndarray:
        """How much a model leans to the attacker's answer with each of some triggers in the same rows, (k,) in nats."""
        raise NotImplementedError

    @property
    def n_probed(self) -> int:
        """How many rows that are."""
        return 0

    # ---- what is measured

    @in_its_arithmetic
    def signals(self, model: Any, retrained: Any = None, is_oracle: bool = False) -> "pd.DataFrame":
        """The per-example table of a model.

        Args:
            model: the model to measure.
            retrained: the oracle, which `kl` compares with; without it there is no such column.
            is_oracle: the model itself is the oracle of those that follow: what it says of test rows is kept.
        """
        import pandas as pd

        if "gradient_norm" in self.membership and len(self.parts["nonmember"]):
            check_differentiable(model)  # now, not after hours
        model.eval()
        test = self._frame("test", self.sets["test"])
        if len(test):
            test = test.assign(**self.test_signals(model, retrained, is_oracle))
        frames, triggered = [test], self.sets["triggered"]
        if len(triggered):
            frames += [self._frame("triggered", triggered).assign(**self.triggered(model, test)), self.placebos(model)]
        for name in ("member", "nonmember") if len(self.parts["nonmember"]) else ():
            frames.append(self._frame(name, self.parts[name]).assign(**self.membership_signals(model, name)))
        if self.manifest["gaussian"]:
            frames.append(self.canaries(model))
        return pd.concat([f for f in frames if len(f)], ignore_index=True)

    @in_its_arithmetic
    def later_signals(self, model: Any) -> "pd.DataFrame":
        """What the tests of the poison need of a model that was trained on clean rows: sets that begin with LATER."""
        import pandas as pd

        model.eval()
        frames, triggered = [], self.sets["triggered"]
        if len(triggered):
            answers = self.answers(model, "test", self.sets["test"])  # all: a target's control is another row
            tried = self._frame("triggered", triggered).assign(**self.triggered(model, answers))
            frames += [answers, tried, self.placebos(model)]
        if self.manifest["gaussian"]:
            frames.append(self.canaries(model, deciding=True))
        if not (frames := [frame for frame in frames if len(frame)]):
            return pd.DataFrame()
        found = pd.concat(frames, ignore_index=True)
        return found.assign(set=LATER + found["set"])

    @torch.no_grad()
    def test_signals(self, model: Any, retrained: Any = None, is_oracle: bool = False) -> dict[str, Any]:
        """Answer, losses and, beside a retrained model, the mean KL(p_retrained ‖ p_model) of each test row in nats."""
        if retrained is not None:
            retrained.eval()
        results = []
        for positions, batch in self._batches(model, self.encoded["test"]):
            oracle = None if retrained is None else self._said_by_oracle(retrained, positions, batch)

            def measured(
                found: Supervised, positions: list[int] = positions, oracle: Supervised | None = oracle
            ) -> torch.Tensor:
                answer = self._answer(found, positions)
                if is_oracle:
                    self._keep(model, positions, answer)
                columns = [_sum_and_count(found)]
                columns += [answer.kl(oracle)[:, None]] if oracle is not None else []
                columns += [self.answer_scores(answer)] if self.reads_answers else []
                return torch.cat(columns, 1)

            results.append((positions, self.task.compute(model, batch, measured)))
        values = scatter(len(self.encoded["test"]), results, self.processes).numpy()
        divergence = {} if retrained is None else {"kl": values[:, 2]}
        scores = values[:, 2 + len(divergence) :]
        answers = self.answered(scores) if self.reads_answers else self.predict(model, self.sets["test"])
        return {**answers, **_per_position(values[:, 0], values[:, 1].astype(int)), **divergence}

    def _answer(self, found: Supervised, positions: list[int]) -> Supervised:
        """Of a batch of test rows, the supervised positions of their answers alone."""
        if self._answer_lengths is None:
            return found
        counts = found.length().tolist()
        lengths = [self._answer_lengths[i] for i in positions]
        keep = np.concatenate([np.arange(n) >= n - length for n, length in zip(counts, lengths, strict=True)])
        index = torch.from_numpy(np.flatnonzero(keep)).to(found.labels.device)
        chosen = {name: getattr(found, name)[index] for name in ("states", "labels", "example")}
        return replace(found, **chosen, counts=tuple(lengths))

    @cached_property
    def _answer_lengths(self) -> list[int] | None:
        return self.answer_lengths(self.sets["test"])

    def _said_by_oracle(self, retrained: Any, positions: list[int], batch: dict[str, Any]) -> Supervised:
        """What the retrained model says of a batch of test rows, which all models are compared with."""
        if positions[0] in self._oracle.get(retrained, {}):
            return self._oracle[retrained][positions[0]]
        seen: list[Supervised] = []

        def look(found: Supervised) -> torch.Tensor:
            seen.append(self._answer(found, positions))
            return found.states

        self.task.compute(retrained, batch_on(input_device(retrained), batch), look)
        self._keep(retrained, positions, seen[0])
        return seen[0]

    def _keep(self, retrained: Any, positions: list[int], answer: Supervised) -> None:
        if answer.head is not None:  # hidden states, of which logits are made in chunks; all logits may be too large
            self._oracle.setdefault(retrained, {})[positions[0]] = answer

    @in_its_arithmetic
    def answers(self, model: Any, name: str, rows: "Dataset") -> "pd.DataFrame":
        """Predictions, and whether they are the attacker's target."""
        frame = self._frame(name, rows)
        return frame.assign(**self.predict(model, rows)) if len(frame) else frame

    def losses(self, model: Any, name: str) -> dict[str, np.ndarray]:
        """{"nll", "nll_sum", "n_positions"} of each row over its supervised positions."""
        return self.losses_of(model, self.encoded[name])

    @in_its_arithmetic
    @torch.no_grad()
    def losses_of(self, model: Any, rows: list[dict]) -> dict[str, np.ndarray]:
        """`losses` of encoded rows."""
        found = self._batches(model, rows)
        results = [(positions, self.task.compute(model, batch, _sum_and_count)) for positions, batch in found]
        values = scatter(len(rows), results, self.processes).numpy().reshape(-1, 2)
        return _per_position(values[:, 0], values[:, 1].astype(int))

    def membership_signals(self, model: Any, name: str, attacks: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """`losses`, and `mia_<attack>` of each row for some attacks (by default those asked for); the loss attack is in
        `nll`.
        """
        rows, scores = self.encoded[name], {}
        attacks = self.membership if attacks is None else attacks
        losses, tokens = self._losses_and_tokens(model, name)
        if tokens is not None and "min_k" in attacks:
            scores["min_k"] = min_k_score(tokens["log_prob"], tokens["example"], self.min_k_share)
        if tokens is not None and "min_k_plus" in attacks:
            standard = (tokens["log_prob"] - tokens["mean"]) / tokens["sd"]
            scores["min_k_plus"] = min_k_score(standard, tokens["example"], self.min_k_share)
        if "zlib" in attacks:
            scores["zlib"] = zlib_score(losses["nll"], self.raw(rows))
        if "reference" in attacks and self.reference is not None:
            scores["reference"] = reference_score(losses["nll"], self._reference_nll[name])
        if "gradient_norm" in attacks:
            scores["gradient_norm"] = -gradient_norms(model, rows, self.collate, self.task, self.processes)
        return {**losses, **{f"{MEMBERSHIP}{attack}": values for attack, values in scores.items()}}

    @cached_property
    def membership_control(self) -> "dict[str, pd.DataFrame]":
        """The losses of the reference model and its scores in the attacks that need one forward pass, on both sets,
        measured once for all models: what they show of a model that never saw the rows. Empty without one.
        """
        if self.reference is None or not len(self.parts["nonmember"]):
            return {}
        model = self.reference()
        model.eval()
        cheap = [attack for attack in self.membership if attack not in ("reference", "gradient_norm")]
        found = {name: self.membership_signals(model, name, cheap) for name in ("member", "nonmember")}
        return {name: self._frame(name, self.parts[name]).assign(**scores) for name, scores in found.items()}

    @property
    def _reference_nll(self) -> dict[str, np.ndarray]:
        return {name: frame["nll"].to_numpy() for name, frame in self.membership_control.items()}

    def _losses_and_tokens(self, model: Any, name: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray] | None]:
        """`losses`, and the statistics of every token where an attack needs them: one forward pass for both."""
        if not {"min_k", "min_k_plus"} & set(self.membership):
            return self.losses(model, name), None
        rows = self.encoded[name]
        tokens = token_statistics(model, rows, self.collate, self.batch_size, self.task, self.processes)
        total = np.bincount(tokens["example"], -tokens["log_prob"], len(rows))
        return _per_position(total, np.bincount(tokens["example"], minlength=len(rows))), tokens

    @cached_property
    def noisy_canaries(self) -> list[dict]:
        """The encoded canaries, each with the id of its noise."""
        return [
            {**row, "noise_id": i}
            for row, i in zip(self.encoded["canary"], self.parts["canary"]["noise_id"], strict=True)
        ]

    def canaries(self, model: Any, deciding: bool = False) -> "pd.DataFrame":
        """Loss, Gaussian score and loss rank of the canaries, with the controls of both scores.

        Args:
            model: the model to measure.
            deciding: those alone that the verdict counts (of the deleted ones the hidden, or all where none is), ranked
                among LATER_DRAWS noises, which are enough for their mean. If not, all, but that those which the methods
                knew have no loss rank, which takes many forward passes.
        """
        noise, seed = self.manifest["gaussian"], self.manifest["gaussian"]["seed"]
        frame = self._frame("canary", self.parts["canary"])
        marks = {"deleted": self.manifest["forget_ids"], "hidden": noise.get("hidden_ids", [])}
        frame = frame.assign(**{name: frame["example_id"].isin(ids) for name, ids in marks.items()})
        decides = (frame["hidden"] if frame["hidden"].any() else frame["deleted"]).to_numpy()
        chosen = np.flatnonzero(decides) if deciding else np.arange(len(frame))
        frame, decides = frame.iloc[chosen].reset_index(drop=True), decides[chosen]
        if not len(chosen):
            return frame
        rows = [self.noisy_canaries[i] for i in chosen]
        seeds = [seed, seed + FRESH_SEED_OFFSET]
        scores = gaussian_scores(model, rows, self.collate, seeds, self.batch_size, self.task, self.processes)
        losses = self.losses_of(model, [self.encoded["canary"][i] for i in chosen])
        frame = frame.assign(**losses, gaussian_score=scores[:, 0], gaussian_control=scores[:, 1])
        if not self.loss_rank_draws or noise.get("epsilon") is None:
            return frame
        draws = min(self.loss_rank_draws, LATER_DRAWS) if deciding else self.loss_rank_draws
        ranked = np.flatnonzero(decides | ~frame["deleted"].to_numpy())
        ranks = np.full((len(frame), 2), np.nan)
        if not len(ranked):
            return frame
        ranks[ranked] = loss_rank_scores(
            model, [rows[i] for i in ranked], self.collate, noise, draws, self.batch_size, self.task, self.processes
        )
        return frame.assign(loss_rank=ranks[:, 0], loss_rank_control=ranks[:, 1])

    def placebos(self, model: Any) -> "pd.DataFrame":
        """The effect of each planted trigger, and of its placebos until their rank is known; a row for each."""
        found = [effects_in_turn(each, partial(self.effects, model), self.placebo.stop_at) for each in self.triggers]
        return placebo_table(found, self.n_probed if found else 0, self.placebo.stop_at)

    def quick_figures(self, model: Any, limit: int = 200) -> dict[str, float]:
        """Accuracy on held-out rows and attack success, for looking at as a run goes; never on reported test rows."""
        heldout = self.sets["heldout"].select(range(min(limit, len(self.sets["heldout"]))))
        answers = self.answers(model, "heldout", heldout)
        figures = {"utility": float((answers["prediction"] == answers["label"]).mean())}
        triggered = self.has_trigger(self.sets["nonmember"])
        if len(triggered := triggered.select(range(min(limit, len(triggered))))):
            figures["attack"] = float(self.answers(model, "attack", triggered)["target_hit"].mean())
        return figures

    def _batches(self, model: Any, rows: list[dict]) -> Iterator[tuple[list[int], dict[str, Any]]]:
        return batches(rows, self.collate, self.batch_size, input_device(model), self.processes)

    @staticmethod
    def _frame(name: str, rows: "Dataset") -> "pd.DataFrame":
        import pandas as pd

        return pd.DataFrame({"set": name, "example_id": list(rows["example_id"]), "label": list(rows["label"])})


def _sum_and_count(found: Supervised) -> torch.Tensor:
    """(B, 2): the NLL summed over each row's positions, and how many they are."""
    return torch.stack([-found.log_prob(), found.length()], 1)


def _per_position(total: np.ndarray, count: np.ndarray) -> dict[str, np.ndarray]:
    return {"nll": total / count, "nll_sum": total, "n_positions": count}
