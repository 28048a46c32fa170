"""Alternate preference optimisation: answers of the model's own preferred. AltPO, Mekala et al., arXiv 2409.13474."""

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from datasets import Dataset
from tqdm.auto import tqdm

from llm_unlearn.config.fields import NotNegative, Positive
from llm_unlearn.data.encoding import IGNORE
from llm_unlearn.errors import InputError
from llm_unlearn.losses import dpo_loss
from llm_unlearn.models.load import load_full
from llm_unlearn.trainers.support.other_answers import AnswersTrainer
from llm_unlearn.trainers.support.retain_term import RetainLoss, RetainTermConfig
from llm_unlearn.trainers.support.sets import tokenised
from llm_unlearn.trainers.unlearn_config import Requirements


@dataclass
class AltPOConfig(RetainTermConfig):
    """Options of `AltPOTrainer`.

    Args:
        beta: inverse temperature of the preference (0.1).
        prefactor: of −log σ, as in `dpo`.
        temperature: at which alternatives are sampled (the paper's 1).
    """

    learning_rate_ratio: ClassVar[float] = 1.0

    retain_loss: RetainLoss = "nll"
    alpha: NotNegative = 5.0  # with 1 the quickstart's answer is lost at every ratio
    beta: Positive = 0.1
    prefactor: Positive = 1.0
    temperature: Positive = 1.0

    def requires(self) -> Requirements:
        sets = ("forget", "alternate", *super().requires().sets[1:])
        return super().requires()._replace(sets=sets, log_probs_on=("forget", "alternate"))


class AltPOTrainer(AnswersTrainer):
    """Minimise −prefactor · E log σ(β (log-ratio of an alternative − that of the answer)) + α · retain term.

    The alternative to a forget answer is sampled from θ0, which is barred from the answer's first token and stops at
    its length; canaries' prompts are shown without noise. The budget pays for it. The paper asks an instructed model
    for five, in words.

    The keyword `alternate_dataset` gives these rows, tokenised: row i is the alternative to forget row i; else they
    are sampled.
    """

    method = "altpo"
    of_texts = True
    answers = "alternate"
    args: AltPOConfig

    def __init__(self, model, *args, **kwargs) -> None:
        self.generator = load_full(model)
        self.sampled = [0, 0]  # tokens that the model was shown to sample from it, and positions of which it was asked
        super().__init__(self.generator, *args, **kwargs)
        del self.generator

    def answers_to(self, forget, processing_class, args):
        completions = dataclasses.replace(args.encoding, loss_on="completion")
        return self.alternatives(
            tokenised(self.method, self.task, processing_class, completions, "forget", forget), args
        )

    def forget_loss(self, forget, reference, alternate):  # type: ignore[override]  # a set more
        return dpo_loss(
            alternate.log_prob() - reference["alternate"],
            forget.log_prob() - reference["forget"],
            self.args.beta,
            self.args.prefactor,
        )

    def setup_flops(self, counter):
        return counter.forward(*self.sampled)

    @torch.no_grad()
    def alternatives(self, rows, args):
        """The forget rows with answers sampled from the model, row i by a generator of (seed, i)."""
        model, training = self.generator, self.generator.training
        if not getattr(model, "is_quantized", False):
            model.to(args.device)
        model.eval()
        out = []
        for i, row in enumerate(tqdm(rows, desc="altpo: alternatives", disable=args.disable_tqdm)):
            answered = [label != IGNORE for label in row["labels"]]
            start = answered.index(True)
            if start == 0:
                raise InputError(f"forget_dataset, row {i}: altpo asks for another answer, and all of it is the answer")
            said = self.said(model, row["input_ids"], start, args.temperature, np.random.default_rng([args.seed, i]))
            ids, labels = row["input_ids"][:start] + said, [IGNORE] * start + said
            kept = {key: row[key] for key in ("noise_id",) if key in row}
            out.append({"input_ids": ids, "labels": labels, **kept})
        model.train(training)
        return Dataset.from_list(out)

    def said(self, model, ids, start, temperature, generator):
        """An answer to ids[:start] as long as ids[start:] at most: it ends where it says what that ends with."""
        said: list[int] = []
        while len(said) < len(ids) - start and (not said or said[-1] != ids[-1]):
            shown = torch.tensor([ids[:start] + said], device=model.device)
            logits = model(input_ids=shown, use_cache=False).logits[0, -1].float().cpu().double()
            if not said:
                logits[[ids[start], ids[-1]]] = -torch.inf  # neither that answer nor none
            gumbel = torch.from_numpy(generator.gumbel(size=len(logits)))
            said.append(int((logits / temperature + gumbel).argmax()))
            self.sampled[0] += shown.numel()
            self.sampled[1] += 1
        return said
