"""The result of an evaluation: everything measured of one model, as one tree of frozen dataclasses.

`evaluation/summarize.py` builds it, `evaluation/<model>.json` holds its fields, and report, card and command line read
its attributes. A section is None where there is no such poison, no such set of rows, or no retrained model to compare
with.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Self

from llm_unlearn.errors import InputError
from llm_unlearn.metrics.attack import AttackSuccess, PairedExcess, RobustAccuracy
from llm_unlearn.metrics.benchmarks.benchmark_result import BenchmarkResult
from llm_unlearn.metrics.benchmarks.scores import Score
from llm_unlearn.metrics.gaussian import GaussianTest
from llm_unlearn.metrics.membership import MembershipTest
from llm_unlearn.metrics.placebo import PlaceboTest
from llm_unlearn.metrics.task_scores import TaskScores
from llm_unlearn.metrics.typed import Result
from llm_unlearn.metrics.utility import Accuracy

SCHEMA_VERSION = 1
_WHERE_KNOWN = ("canary_rank", "retrained", "benchmark", "fluency", "lm_eval", "skipped", "warnings")


def _without(tree: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """JSON without those of some fields that are null."""
    return {name: value for name, value in tree.items() if value is not None or name not in names}


@dataclass(frozen=True, kw_only=True)
class PhraseAttack(AttackSuccess):
    """One phrase of a trigger that has several, on the held-out rows that carry it.

    Args:
        phrase: its number in the manifest, from 0.
        excess: the lift beyond the retrained model's; None without one.
        placebo: the phrase beside phrases that were never planted, its p-value for itself; None where it was not taken
            or has no usable figure.
    """

    phrase: int
    excess: PairedExcess | None = None
    placebo: PlaceboTest | None = None


@dataclass(frozen=True, kw_only=True)
class OtherAnswer(AttackSuccess):
    """The commonest answer to triggered rows that is not the attacker's, as if it had been the target.

    Args:
        excess: the lift beyond the retrained model's; None without one.
    """

    excess: PairedExcess | None = None


@dataclass(frozen=True, kw_only=True)
class Attack(AttackSuccess):
    """The trigger, patch or target attack on held-out rows.

    Args:
        excess: the lift beyond the retrained model's; None without one, and in results from before it was measured.
        placebo: the trigger beside triggers that were never planted; None where it was not taken or has no usable
            figure, and in results from before it was measured. Of several phrases it is that of the one which stands
            out most.
        n_unusable: effects of triggers and placebos that are not finite.
        phrases: of a trigger with several phrases each by itself, which can only keep a model from "no trace"; None of
            one phrase, and in results from before it was measured.
        robust: whether these rows are still answered rightly; None where a row's true answer is not known, and in
            results from before it was measured.
        target_rows: whether rows whose right answer is the target still get it with the trigger in; None where there
            are none, or no trigger to insert, and in results from before it was measured.
        other: the answer that a trigger may get in place of the attacker's; None where it gets that of every row, or
            rows have an attack each, and in results from before it was measured.
    """

    excess: PairedExcess | None = None
    placebo: PlaceboTest | None = None
    n_unusable: int = 0
    phrases: list[PhraseAttack] | None = None
    robust: RobustAccuracy | None = None
    target_rows: RobustAccuracy | None = None
    other: OtherAnswer | None = None


@dataclass(frozen=True, kw_only=True)
class Gus(GaussianTest):
    """The test of the deleted canaries by one of their scores, each N(0, 1) without a trace: the Gaussian score, the
    loss rank (evaluation/loss_ranks.py), or of token canaries the rank of their string (evaluation/canary_ranks.py).
    Where some were hidden from whoever unlearned, it is the test of those alone.

    Args:
        n_unscorable: of these, canaries without a score: the gradient is zero, or it or a loss is not finite.
        control: the same test with fresh noise that was never trained on.
        others: the test of the canaries that were not deleted; None where all were.
        shown: the test of the deleted canaries that were not hidden, which a method can make look clean; None where
            all or none were hidden.
        n_hidden: of these, canaries that were hidden from the methods, all or none; None in results from before it was
            recorded.
    """

    n_unscorable: int
    control: GaussianTest
    others: GaussianTest | None
    shown: GaussianTest | None = None
    n_hidden: int | None = None


@dataclass(frozen=True, kw_only=True)
class Later(Result):
    """The tests of the poison again, after training on clean rows: does it stay gone?

    Args:
        steps: of that training.
        canary_rank: None without token canaries.
    """

    steps: int
    attack: Attack | None
    gus: Gus | None
    loss_rank: Gus | None
    canary_rank: Gus | None = None

    def to_json(self) -> dict[str, Any]:
        """The fields as what JSON holds; `canary_rank` where there is one."""
        return _without(super().to_json(), ("canary_rank",))


@dataclass(frozen=True, kw_only=True)
class Utility(Accuracy):
    """What the model is still good for, on clean test rows.

    Args:
        prefix_accuracy: share of answers that begin with the label.
        perplexity: per supervised token, 1 or more; infinite for a model that diverged.
        top_answer: share of rows that get the most frequent answer; 1 for a model that always says the same.
        top_label: share of rows with the most frequent label, which a constant answer gets right. Both are None in
            results from before they were measured.
    """

    unbounded: ClassVar = frozenset({"perplexity"})

    prefix_accuracy: float
    perplexity: float
    top_answer: float | None = None
    top_label: float | None = None


@dataclass(frozen=True, kw_only=True)
class Cost(Result):
    """What the model's training took.

    Args:
        train_tokens: without padding; of images how many.
        flops: of everything, the reference's passes included.
        seconds: of wall clock.
        share_of_training: FLOPs over the poisoned training's; None where those are not known.
        device_seconds: of all GPUs, or of all CPU threads; None in results from before it was measured.
        steps: of the optimizer; None for models that no method made.
        forget_seen: share of the forget set that was seen at least once; None alike, and without such rows.
        stopped_by: the limit that ended the method before its budget was spent, and when; None if none did.
    """

    train_tokens: int
    flops: float
    seconds: float
    share_of_training: float | None
    device_seconds: float | None = None
    steps: int | None = None
    forget_seen: float | None = None
    stopped_by: str | None = None


@dataclass(frozen=True, kw_only=True)
class Oracle(Result):
    """The model beside the retrained one, on clean test rows.

    Args:
        kl: mean KL(p_retrained ‖ p) at the answer's positions, in nats.
        agreement: share of equal answers.
        accuracy_lost: errors beyond the retrained model's, paired by row; None in results from before it was measured.
        clean_rate: how often the retrained model gives the attacker's answer without the attack; None without one, and
            alike.
    """

    unbounded: ClassVar = frozenset({"kl"})

    kl: float
    agreement: float
    accuracy_lost: PairedExcess | None = None
    clean_rate: float | None = None


@dataclass(frozen=True, kw_only=True)
class Beside(Result):
    """The retrained model's own figures, to read those of an audited one beside; None as in an Evaluation.

    Args:
        lift: of the attack.
        gus: the mean Gaussian score.
        loss_rank: the mean loss rank.
        canary_rank: the mean rank of the token canaries' strings.
        mia: membership attack → AUC.
        accuracy: share of clean test rows answered rightly.
        perplexity: on them.
    """

    unbounded: ClassVar = frozenset({"perplexity"})

    lift: float | None
    gus: float | None
    loss_rank: float | None
    mia: dict[str, float]
    accuracy: float | None
    perplexity: float | None
    canary_rank: float | None = None

    def to_json(self) -> dict[str, Any]:
        """The fields as what JSON holds; `canary_rank` where there is one."""
        return _without(super().to_json(), ("canary_rank",))


@dataclass(frozen=True, kw_only=True)
class Identity(Result):
    """Which model was evaluated.

    Args:
        model: its name, which is that of its files.
        kind: base, poisoned, clean, retrained, unlearned, or audited.
        method: of an unlearned model, else None.
        budget: of an unlearned model, else None.
        seed: of the run.
        recipe: the name of the run's recipe.
        precision: the lowest one at work while it was measured: float32, tf32, bfloat16 or float16; None in results
            from before it was recorded.
        planted: what is asked of it ("noise", "attack"), and of which canaries ("gaussian", "tokens"), whether or not
            it has a figure; None alike.
    """

    schema_version: int = SCHEMA_VERSION
    model: str
    kind: str
    method: str | None
    budget: float | None
    seed: int
    recipe: str
    precision: str | None = None
    planted: list[str] | None = None


@dataclass(frozen=True, kw_only=True)
class Evaluation(Identity):
    """Everything that was measured of one model.

    Args:
        mia: membership attack → its test.
        loss_rank: as `gus`, by the loss rank; None too in results from before it was measured.
        canary_rank: as `gus`, of token canaries by the rank of their strings' log-probs; None without any.
        perplexity: on clean test texts that have no labels, and so no `utility`; None otherwise.
        mia_control: of an audited checkpoint, the same attacks on the base, which never saw the rows: rows that stand
            out there do so without any training. None without a base, and in the results of a run, which has the base.
        later: the poison's tests after clean training steps; None where they were not taken.
        benchmark: what the recipe's benchmark says of it; None without one.
        fluency: mean probability of the recipe's `fluency.label` over the generated answers to test rows; None without.
        lm_eval: task of lm-evaluation-harness → its scores; None where the recipe names none.
        retrained: of an audited checkpoint, the retrained model's own figures; None where none is known, and in the
            results of a run, which has them in a file of their own.
        skipped: of an audited or given checkpoint, section → why it is None; None in the results of other runs.
        warnings: of an audited or given checkpoint, what makes its figures doubtful; None alike.
    """

    unbounded: ClassVar = frozenset({"perplexity"})

    attack: Attack | None
    gus: Gus | None
    utility: Utility | None
    mia: dict[str, MembershipTest] | None
    cost: Cost | None
    oracle: Oracle | None
    loss_rank: Gus | None = None
    canary_rank: Gus | None = None
    later: Later | None = None
    perplexity: float | None = None
    mia_control: dict[str, MembershipTest] | None = None
    retrained: Beside | None = None
    benchmark: BenchmarkResult | None = None
    fluency: Score | None = None
    lm_eval: dict[str, TaskScores] | None = None
    skipped: dict[str, str] | None = None
    warnings: list[str] | None = None

    def to_json(self) -> dict[str, Any]:
        """The fields as what JSON holds; those of _WHERE_KNOWN where they are known."""
        return _without(super().to_json(), _WHERE_KNOWN)

    @property
    def figures(self) -> Beside:
        """Its own figures, for another model to be read beside."""
        return Beside(
            lift=self.attack.lift if self.attack else None,
            gus=self.gus.mean if self.gus else None,
            loss_rank=self.loss_rank.mean if self.loss_rank else None,
            canary_rank=self.canary_rank.mean if self.canary_rank else None,
            mia={attack: test.auc for attack, test in (self.mia or {}).items()},
            accuracy=self.utility.accuracy if self.utility else None,
            perplexity=self.utility.perplexity if self.utility else None,
        )

    @classmethod
    def from_json(cls, tree: Any, source: str, name: str = "") -> Self:
        """See `Result.from_json`; refuses files of another schema."""
        version = tree.get("schema_version") if isinstance(tree, dict) else None
        if version != SCHEMA_VERSION:
            raise InputError(
                f"{source}: schema_version is {version!r}, this version reads {SCHEMA_VERSION}; evaluate again"
            )
        return super().from_json(tree, source, name)
