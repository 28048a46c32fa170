"""A sequence classifier that reads generated answers: refusals, sentiment, toxicity."""

from collections.abc import Sequence

import torch

from llm_unlearn.errors import InputError
from llm_unlearn.models.checkpoint_files import explained
from llm_unlearn.models.devices import on_best_device

LONGEST = 512  # tokens of an answer that are read


def check_classifier(source: str, label: str) -> None:
    """Raise InputError where there is no such classifier, or it has no such label; no weight is read."""
    from transformers import AutoConfig

    with explained(source) as path:
        labels = list((AutoConfig.from_pretrained(path).id2label or {}).values())
    if label not in labels:
        raise InputError(f"label: '{label}' is none of the labels of {source}: {', '.join(map(str, labels))}")


class AnswerClassifier:
    """What a classifier says of texts.

    Args:
        source: folder or hub id, in safetensors.

    Raises:
        InputError: it cannot be loaded.
    """

    def __init__(self, source: str) -> None:
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        with explained(source) as path:
            self.tokenizer = AutoTokenizer.from_pretrained(path)
            model = AutoModelForSequenceClassification.from_pretrained(path, use_safetensors=True)
        self.model = on_best_device(model).eval()

    @property
    def names(self) -> list[str]:
        """Its labels, in the order of their numbers."""
        found = self.model.config.id2label
        return [str(found[i]) for i in sorted(found)]

    def labels(self, texts: Sequence[str]) -> list[str]:
        """The label of each text."""
        return [self.names[i] for i in self.logits(texts).argmax(1).tolist()]

    @torch.no_grad()
    def logits(self, texts: Sequence[str]) -> torch.Tensor:
        """What it says of each text and label, (n, C); each is read by itself, so that padding changes none."""
        found = [torch.zeros(0, len(self.names))]
        for text in texts:
            tokens = self.tokenizer(text or " ", truncation=True, max_length=LONGEST, return_tensors="pt")
            found.append(self.model(**tokens.to(self.model.device)).logits.float().cpu())
        return torch.cat(found)
