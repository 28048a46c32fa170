"""Per-example signals of one model: everything that the metrics need, one row per example and set.

The columns are those of metrics/per_example.py. Each test row goes through the model once, unless its answer is
generated text or a label whose tokens part early. Not merged, since other batches would change the last bits of
recorded numbers: a canary's loss with its gradient (the one lays uneven rows end to end, the other pads them), and
canaries with forget rows.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
import torch

from llm_unlearn.config.sections import DEFAULT_ATTACKS
from llm_unlearn.evaluation.arithmetic import in_its_arithmetic
from llm_unlearn.evaluation.attack_signals import check_differentiable, gradient_norms, token_statistics
from llm_unlearn.evaluation.batches import scatter
from llm_unlearn.evaluation.gaussian_scores import gaussian_scores
from llm_unlearn.evaluation.loss_ranks import DRAWS, loss_rank_scores
from llm_unlearn.evaluation.measured_rows import MeasuredRows, per_position, sum_and_count
from llm_unlearn.evaluation.placebos import DEFAULT, PlaceboSettings, effects_in_turn, placebo_table
from llm_unlearn.metrics.membership_scores import MIN_K_SHARE, lowercase_score, min_k_score, reference_score, zlib_score
from llm_unlearn.metrics.per_example import LATER, MEMBERSHIP, deciding
from llm_unlearn.models.devices import batch_on, input_device
from llm_unlearn.tasks import Supervised
from llm_unlearn.tasks.noise import FRESH_SEED_OFFSET

if TYPE_CHECKING:
    import pandas as pd


LATER_DRAWS = 19  # of the loss rank after clean steps, whose tests are of the mean and the spread alone


@dataclass(kw_only=True)
class Evaluator(MeasuredRows):
    """Measures models on the sets of one run. Subclasses say what an answer is: text_evaluator.py, image_evaluator.py.

    Args:
        membership: attacks to run, by default those of a recipe.
        loss_rank_draws: fresh noises that a canary's loss is ranked among; 0 leaves the test out, as does a manifest
            without ε.
        placebo: how a trigger is compared with triggers that were never planted.
        min_k_share: the share of an example's tokens that Min-K % and Min-K %++ look at.
        reference: loads the model that calibrates the attack `reference`, one that never saw the rows to be forgotten;
            without it that attack is left out.
    """

    membership: Sequence[str] = DEFAULT_ATTACKS
    min_k_share: float = MIN_K_SHARE
    loss_rank_draws: int = DRAWS
    placebo: PlaceboSettings = DEFAULT
    reference: Callable[[], Any] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._oracle: WeakKeyDictionary[Any, dict[int, Supervised]] = WeakKeyDictionary()

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
        test = self.frame("test", self.sets["test"])
        if len(test):
            test = test.assign(**self.test_signals(model, retrained, is_oracle))
        frames, triggered = [test], self.sets["triggered"]
        if len(triggered):
            frames += [self.frame("triggered", triggered).assign(**self.triggered(model, test)), self.placebos(model)]
            frames.append(self.answers(model, "target_rows", self.target_rows))
        for name in ("member", "nonmember") if len(self.parts["nonmember"]) else ():
            frames.append(self.frame(name, self.parts[name]).assign(**self.membership_signals(model, name)))
        if self.manifest["gaussian"]:
            frames.append(self.canaries(model))
        frames.append(self.token_canaries(model))
        return pd.concat([f for f in frames if len(f)], ignore_index=True)

    @in_its_arithmetic
    def later_signals(self, model: Any) -> "pd.DataFrame":
        """What the tests of the poison need of a model that was trained on clean rows: sets that begin with LATER."""
        import pandas as pd

        model.eval()
        frames, triggered = [], self.sets["triggered"]
        if len(triggered):
            answers = self.answers(model, "test", self.sets["test"])  # all: a target's control is another row
            tried = self.frame("triggered", triggered).assign(**self.triggered(model, answers))
            frames += [answers, tried, self.placebos(model), self.answers(model, "target_rows", self.target_rows)]
        if self.manifest["gaussian"]:
            frames.append(self.canaries(model, LATER_DRAWS))
        frames.append(self.token_canaries(model, LATER_DRAWS))
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
        for positions, batch in self.batches_of(model, self.encoded["test"]):
            oracle = None if retrained is None else self._said_by_oracle(retrained, positions, batch)

            def measured(
                found: Supervised, positions: list[int] = positions, oracle: Supervised | None = oracle
            ) -> torch.Tensor:
                answer = self._answer(found, positions)
                if is_oracle:
                    self._keep(model, positions, answer)
                columns = [sum_and_count(found)]
                columns += [answer.kl(oracle)[:, None]] if oracle is not None else []
                columns += [self.answer_scores(answer)] if self.reads_answers else []
                return torch.cat(columns, 1)

            results.append((positions, self.task.compute(model, batch, measured)))
        values = scatter(len(self.encoded["test"]), results, self.processes).numpy()
        divergence = {} if retrained is None else {"kl": values[:, 2]}
        scores = values[:, 2 + len(divergence) :]
        answers = self.answered(scores) if self.reads_answers else self.predict(model, self.sets["test"])
        return {**answers, **per_position(values[:, 0], values[:, 1].astype(int)), **divergence}

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
        if "lowercase" in attacks:
            scores["lowercase"] = lowercase_score(losses["nll"], self.losses_of(model, self.lowered(name))["nll"])
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
        return {name: self.frame(name, self.parts[name]).assign(**scores) for name, scores in found.items()}

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
        return per_position(total, np.bincount(tokens["example"], minlength=len(rows))), tokens

    def canaries(self, model: Any, draws: int | None = None) -> "pd.DataFrame":
        """Loss, Gaussian score and loss rank of the canaries, with the controls of both scores.

        Args:
            model: the model to measure.
            draws: measure those alone that the verdict counts (of the deleted ones the hidden, or all where none is),
                ranked among so many noises, of which few are enough for their mean. None: all, but that those which the
                methods knew have no loss rank, which takes many forward passes.
        """
        noise, seed = self.manifest["gaussian"], self.manifest["gaussian"]["seed"]
        frame = self.frame("canary", self.parts["canary"]).assign(**self.canary_marks)
        decides = deciding(**self.canary_marks)
        chosen = np.arange(len(frame)) if draws is None else np.flatnonzero(decides)
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
        ranked = np.flatnonzero(decides | ~frame["deleted"].to_numpy())
        ranks = np.full((len(frame), 2), np.nan)
        if not len(ranked):
            return frame
        ranks[ranked] = loss_rank_scores(
            model,
            [rows[i] for i in ranked],
            self.collate,
            noise,
            self.draws_of(draws),
            self.batch_size,
            self.task,
            self.processes,
        )
        return frame.assign(loss_rank=ranks[:, 0], loss_rank_control=ranks[:, 1])

    def draws_of(self, draws: int | None) -> int:
        """How many fresh draws a canary is ranked among: those of an evaluation, or fewer where few are enough."""
        return self.loss_rank_draws if draws is None else min(draws, self.loss_rank_draws)

    def token_canaries(self, model: Any, draws: int | None = None) -> "pd.DataFrame":
        """The same of token canaries, which texts alone have: their ranks. Empty without any."""
        import pandas as pd

        return pd.DataFrame()

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
