"""What a recipe may have measured of every model beside the audit: tasks of lm-evaluation-harness, and fluency."""

from typing import Annotated

from pydantic import Field

from llm_unlearn.config.fields import BatchSize, Count, Distinct, NotBlank, Section


class LmEvalSection(Section):
    """Tasks of lm-evaluation-harness, which the extra `[lm-eval]` installs (see docs/benchmarks.md)."""

    tasks: Annotated[Distinct[NotBlank], Field(min_length=1)]
    """names of its tasks and groups, such as wmdp_bio or mmlu, or of yours in `folder`"""
    folder: str | None = None
    """holds task files (YAML) of your own; names of data files in them are read from the working directory"""
    limit: Count | None = None
    """rows of each task, the first ones; null: all"""
    num_fewshot: Annotated[int, Field(ge=0, le=1000)] | None = None
    """examples before each question; null: as many as the task says"""
    batch_size: BatchSize | None = None
    """rows at a time; null: evaluate.batch_size"""
    chat_template: bool = False
    """put questions as a user's turn of the tokenizer's chat template"""


class FluencySection(Section):
    """A classifier of yours that reads what every model generates, such as one that knows gibberish."""

    classifier: NotBlank
    """a sequence classifier, hub id or folder"""
    label: NotBlank
    """what it says of fluent text"""
