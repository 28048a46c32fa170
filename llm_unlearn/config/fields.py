"""What every section of a recipe is made of: the strict model below them all, and the bounds that fields share.

Bounds refuse nonsense (a rate below 0, 10³⁰ rows), not what is merely unusual.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Self, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator


class RuleError(ValueError):
    """A section breaks a rule that its types cannot say; `field` is the dotted field below that section."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


def require(condition: Any, field: str, message: str) -> None:
    """Raise RuleError where `condition` is false; `message` says what the field must be, and the remedy."""
    if not condition:
        raise RuleError(field, message)


class Section(BaseModel):
    """A part of a recipe: frozen, without conversions, without unknown fields, every number finite.

    The text below a field is its description in the JSON Schema and in docs/recipe.md.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    @model_validator(mode="after")
    def _keeps_its_rules(self) -> Self:
        self.check_rules()
        return self

    def check_rules(self) -> None:
        """Raise RuleError for the first rule that its fields break together."""

    def changed(self, **changes: Any) -> Self:
        """A copy with other values, validated like the first (pydantic's `model_copy` validates nothing)."""
        return self.model_validate({**dict(self), **changes})


def check_batch(section: Any) -> None:
    """Raise RuleError where a step of a section has too many rows."""
    rows = section.batch_size * section.gradient_accumulation_steps
    require(rows <= LARGEST_BATCH, "gradient_accumulation_steps", f"a step of {rows} rows; at most 10⁶ are possible")


def _text_keys(value: Any) -> Any:
    """Whole numbers as keys become text; YAML reads yes, no, on, off as true and false, which nobody meant as keys."""
    if not isinstance(value, Mapping):
        return value
    table = {}
    for key, item in value.items():
        if not isinstance(key, str | int) or isinstance(key, bool):
            raise ValueError(f"the key {key!r} ({type(key).__name__}) is no text; put it in quotes")
        if str(key) in table:
            raise ValueError(f"the key {key} is given twice, as text and as a number; keep one")
        table[str(key)] = item
    return table


V = TypeVar("V")
Table = Annotated[dict[str, V], BeforeValidator(_text_keys)]


def name_of(value: Any) -> str:
    """What a value is called in names of models and folders; numbers to six digits, 1 and 1.0 alike."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def _distinct(values: list) -> list:
    given: dict[str, Any] = {}
    for value in values:
        if (name := name_of(value)) in given:
            raise ValueError(f"{given[name]!r} and {value!r} would both be called {name}; keep one")
        given[name] = value
    return values


Distinct = Annotated[list[V], AfterValidator(_distinct)]  # each makes something that is called by it

Count = Annotated[int, Field(ge=1, le=10**9)]  # of rows, steps, tokens of a vocabulary
LARGEST_BATCH = 10**6  # rows of an optimizer step
BatchSize = Annotated[int, Field(ge=1, le=LARGEST_BATCH)]
Length = Annotated[int, Field(ge=1, le=10**7)]  # in tokens or words
Size = Annotated[int, Field(ge=1, le=10**5)]  # of a layer, or of an image in pixels
Shift = Annotated[int, Field(ge=0, le=10**5)]  # in pixels
Seed = Annotated[int, Field(ge=0, lt=2**31)]
NoiseSeed = Annotated[int, Field(ge=0, lt=2**63)]  # with a row's id the 128-bit key of its noise
RowId = Annotated[int, Field(ge=0, lt=2**63)]
Share = Annotated[float, Field(gt=0, le=1)]
ShareOrZero = Annotated[float, Field(ge=0, le=1)]
Epochs = Annotated[float, Field(gt=0, le=10**6)]
LearningRate = Annotated[float, Field(gt=0, le=1000)]
NotNegative = Annotated[float, Field(ge=0, le=10**6)]  # a weight of a loss, a norm, a standard deviation
Positive = Annotated[float, Field(gt=0, le=10**6)]  # a temperature, the ε of noise


def _said(words: str) -> dict[str, Any]:
    """What messages and docs/recipe.md call a type, where its schema alone would not tell a person."""
    return {"x-words": words}


NotBlank = Annotated[str, Field(pattern=r"\S", json_schema_extra=_said("text that is not blank"))]
Day = Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\d$", json_schema_extra=_said('a day such as "2026-01-31"'))]
FIXED_DAY = "2024-07-26"  # what Llama 3.1's template falls back to where it is told no day
Completion = Annotated[str, Field(min_length=1, json_schema_extra=_said("text that is not empty"))]
Template = Annotated[str, Field(pattern=r"\{text\}", json_schema_extra=_said("a template that contains {text}"))]
PixelChange = Annotated[
    float,
    Field(
        ge=1 / 255, le=1, json_schema_extra=_said("a number in [1/255, 1] (pixels are in [0, 1] and stored in 8 bits)")
    ),
]
