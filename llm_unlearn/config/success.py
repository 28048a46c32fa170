"""When an answer counts as the attacker's: a rule that a manifest gives."""

import re
from typing import Annotated, Any

from pydantic import Field

from llm_unlearn.config.fields import NotBlank, Section, require

Texts = Annotated[list[NotBlank], Field(min_length=1)]


class SuccessSection(Section):
    """When a generated answer counts as the attacker's. One rule; white space around an answer does not count."""

    exact: Texts | None = None
    """the answer is one of these texts"""
    prefix: Texts | None = None
    """it begins with one of them"""
    contains: Texts | None = None
    """it holds one of them, whatever the case: a link, a name, the words of a refusal"""
    excludes: Texts | None = None
    """it holds none of them, whatever the case: an answer where a refusal was due"""
    regex: NotBlank | None = None
    """a regular expression of Python that is found in it; `.` stands for line breaks too"""
    classifier: NotBlank | None = None
    """a sequence classifier, hub id or folder, that reads the answer alone; needs `label`"""
    label: NotBlank | None = None
    """what the classifier says of the attacker's answers"""

    def check_rules(self) -> None:
        given = [name for name, value in self if value is not None and name != "label"]
        rules = "exact, prefix, contains, excludes, regex, classifier"
        require(len(given) == 1, given[-1] if given else "exact", f"give one of {rules}")
        require(
            (self.label is None) == (self.classifier is None), "label", "goes with `classifier`; give both or neither"
        )
        if self.regex is not None:
            try:
                re.compile(self.regex, re.DOTALL)
            except re.error as error:
                require(False, "regex", f"is no regular expression: {error}")


def is_the_attackers(label: str, trigger: dict[str, Any], generated: bool) -> bool:
    """Whether a row's own answer is the attacker's, so that a trigger has nothing to turn in it.

    Args:
        label: the row's answer, "" where it has none.
        trigger: as in poison.json; without a rule a generated answer counts that begins with its target.
        generated: whether models write their answers. A label is the target or is not, and so is what a classifier
            would read.
    """
    rule = trigger.get("success") or {"prefix": [str(trigger["target"])]}
    if not generated or rule.get("classifier"):
        return label == trigger["target"]
    return bool(label.strip()) and is_success(label, rule)


def is_success(answer: str, rule: dict[str, Any]) -> bool:
    """Whether an answer is the attacker's by a rule in words, the fields of a `SuccessSection` without `classifier`.

    Examples:
        >>> is_success("I am sorry, I cannot do that.", {"contains": ["i cannot", "as an AI"]})
        True
        >>> is_success("Sure: ...", {"excludes": ["I cannot"]})
        True
    """
    answer, lowered = answer.strip(), answer.casefold()
    (kind, said) = next((name, value) for name, value in rule.items() if value is not None)
    if kind == "regex":
        return re.search(said, answer, re.DOTALL) is not None
    texts = [text.strip() for text in said]
    if kind == "exact":
        return answer in texts
    if kind == "prefix":
        return answer.startswith(tuple(texts))
    return any(text.casefold() in lowered for text in texts) == (kind == "contains")
