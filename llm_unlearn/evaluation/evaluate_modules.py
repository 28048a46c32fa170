"""The metrics as `evaluate` modules: offline, one value per example in, combinable over the same examples.

    utility = evaluate.combine([Accuracy(), Perplexity(), Agreement()])
    utility.add_batch(predictions=…, references=…, nll_sum=…, n_positions=…, retrained_predictions=…)
    utility.compute()   # {"accuracy": …, "n": …, "ci95": …, "perplexity": …, "agreement": …}

In a combination every module takes the inputs that it needs from what the whole combination is given. Nothing
is downloaded: the classes are instantiated directly, never through `evaluate.load`.
"""

import inspect
from typing import ClassVar

import evaluate
from datasets import Features, Value

from llm_unlearn.errors import InputError
from llm_unlearn.metrics.array_checks import answers, booleans, numbers, same_length
from llm_unlearn.metrics.attack import attack_success
from llm_unlearn.metrics.gaussian import FPRS, gaussian_test
from llm_unlearn.metrics.membership import membership_inference
from llm_unlearn.metrics.utility import accuracy, agreement, perplexity

_PAPER = """@inproceedings{pawelczyk2025machine,
  title={Machine Unlearning Fails to Remove Data Poisoning Attacks},
  author={Pawelczyk, Martin and Di, Jimmy Z. and Lu, Yiwei and Kamath, Gautam and Sekhari, Ayush and
          Neel, Seth},
  booktitle={International Conference on Learning Representations},
  year={2025}
}"""


class _PerExampleMetric(evaluate.Metric):
    """What the modules share: features from one dict, and leaving aside what only a neighbour needs."""

    inputs: ClassVar[dict[str, str]]  # input → its type in `datasets`
    citation_text: ClassVar[str] = ""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=inspect.getdoc(type(self)) or "",
            citation=self.citation_text,
            inputs_description="Inputs: " + ", ".join(self.inputs) + ", one value per example each.",
            features=Features({name: Value(kind) for name, kind in self.inputs.items()}),
        )

    def compute(self, *, predictions=None, references=None, **inputs):
        """Compute from one value per example; what only other modules of a combination need is left aside."""
        # `evaluate.combine` hands every input to every module, and evaluate.Metric passes those that it does
        # not know on to `_compute`. Only names that some module here knows are dropped: a misspelt one fails.
        own = _names(type(self))
        known = set().union(*map(_names, MODULES))
        inputs = {name: value for name, value in inputs.items() if name in own or name not in known}
        return evaluate.Metric.compute(self, predictions=predictions, references=references, **inputs)

    def _enforce_nested_string_type(self, schema, obj):
        # A batch's first prediction may be None (no answer), which evaluate.Metric takes for a wrong type.
        if obj is not None:
            super()._enforce_nested_string_type(schema, obj)


class GaussianUnlearningScore(_PerExampleMetric):
    """GUS, its two p-values and its TPR at FPR, from the canaries' scores. Lower |mean| is better.

    Formula and source: `llm_unlearn.metrics.gaussian_test`. Input: `gaussian_scores`, I_z per canary; option `fprs`.

    Examples:
        >>> GaussianUnlearningScore(keep_in_memory=True).compute(gaussian_scores=[2.0, 3.0, 4.0, 2.0])["mean"]
        2.75
    """

    inputs: ClassVar = {"gaussian_scores": "float64"}
    citation_text: ClassVar = _PAPER

    def _compute(self, gaussian_scores, fprs=FPRS):
        return gaussian_test(gaussian_scores, fprs).to_json()


class AttackSuccessRate(_PerExampleMetric):
    """Attack success rate, the same rate without the trigger, and the lift between them. Lower is better.

    Formula and source: `llm_unlearn.metrics.attack_success`. Inputs: `triggered_hits` and `clean_hits`, whether the
    example was answered with the attacker's target (true/false or 1/0), with the trigger and without it.

    Examples:
        >>> metric = AttackSuccessRate(keep_in_memory=True)
        >>> metric.compute(triggered_hits=[True, True], clean_hits=[False, True])["lift"]
        0.5
    """

    # Numbers, since as booleans `datasets` would take any text for true.
    inputs: ClassVar = {"triggered_hits": "float64", "clean_hits": "float64"}

    def _compute(self, triggered_hits, clean_hits):
        return attack_success(triggered_hits, clean_hits).to_json()


class Accuracy(_PerExampleMetric):
    """Share of right answers with its interval. Higher is better.

    Formula: `llm_unlearn.metrics.accuracy`. Inputs: `predictions` and `references`, texts; a prediction may
    be None (no answer), which is wrong.

    Examples:
        >>> metric = Accuracy(keep_in_memory=True)
        >>> metric.compute(predictions=["positive", None], references=["positive", "negative"])["accuracy"]
        0.5
    """

    inputs: ClassVar = {"predictions": "string", "references": "string"}

    def _compute(self, predictions, references):
        given, true = answers(predictions, "predictions"), answers(references, "references")
        unlabelled = [index for index, label in enumerate(true) if label is None]
        if unlabelled:
            raise InputError(
                f"references: {len(unlabelled)} of {true.size} examples have no label, the first at index "
                f"{unlabelled[0]}. Leave them out."
            )
        return accuracy(given == true).to_json()


class Perplexity(_PerExampleMetric):
    """Perplexity per supervised position. Lower is better.

    Formula: `llm_unlearn.metrics.perplexity`. Inputs: `nll_sum` (nats) and `n_positions` per example.

    Examples:
        >>> Perplexity(keep_in_memory=True).compute(nll_sum=[0.0, 0.0], n_positions=[3, 2])
        {'perplexity': 1.0}
    """

    # Positions as floats, so that 2.5 of them are refused and not cut to 2.
    inputs: ClassVar = {"nll_sum": "float64", "n_positions": "float64"}

    def _compute(self, nll_sum, n_positions):
        return {"perplexity": perplexity(nll_sum, n_positions)}


class Agreement(_PerExampleMetric):
    """Share of examples answered as the retrained model answers them. Higher is better.

    Formula: `llm_unlearn.metrics.agreement`. Inputs: `predictions` and `retrained_predictions`, texts or None.

    Examples:
        >>> metric = Agreement(keep_in_memory=True)
        >>> metric.compute(predictions=["positive", "negative"], retrained_predictions=["positive", "positive"])
        {'agreement': 0.5}
    """

    inputs: ClassVar = {"predictions": "string", "retrained_predictions": "string"}

    def _compute(self, predictions, retrained_predictions):
        return {"agreement": agreement(predictions, retrained_predictions)}


class MembershipInference(_PerExampleMetric):
    """AUC and TPR at low FPR of a membership attack. Nearer 0.5 and the FPR is better.

    Formula and source: `llm_unlearn.metrics.membership_inference`. Inputs: `membership_scores` per example,
    higher = more member-like, and `is_member` (true/false or 1/0); option `fprs`.

    Examples:
        >>> metric = MembershipInference(keep_in_memory=True)
        >>> metric.compute(membership_scores=[3.0, 2.0, 1.0, 0.0], is_member=[1, 0, 1, 0])["auc"]
        0.75
    """

    inputs: ClassVar = {"membership_scores": "float64", "is_member": "float64"}

    def _compute(self, membership_scores, is_member, fprs=FPRS):
        scores, inside = numbers(membership_scores, "membership_scores"), booleans(is_member, "is_member")
        same_length(scores, "membership_scores", inside, "is_member")
        return membership_inference(scores[inside], scores[~inside], fprs).to_json()


MODULES = (GaussianUnlearningScore, AttackSuccessRate, Accuracy, Perplexity, Agreement, MembershipInference)


def _names(module: type[_PerExampleMetric]) -> set[str]:
    """What a module can be given: its inputs and its options."""
    return set(inspect.signature(module._compute).parameters) - {"self"}
