"""The classifier that an image recipe asks for, and the checks before any image is read."""

from typing import TYPE_CHECKING, Any

from llm_unlearn.errors import InputError

if TYPE_CHECKING:
    from llm_unlearn.config.recipe import VisionRecipe


def classifier_config(recipe: "VisionRecipe", channels: int, size: list[int], classes: list[str]) -> Any:
    """The config of the recipe's architecture for images of a given shape."""
    from llm_unlearn.vision.classifiers import ImageClassifierConfig

    section = recipe.model
    for name in ("mean", "std"):
        value = getattr(section, name)
        if value is not None and len(value) != channels:
            raise InputError(f"recipe.model.{name}: {len(value)} numbers for images of {channels} channels")
    shape = {name: getattr(section, name) for name in ("architecture", "mean", "std", "width", "depth")}
    return ImageClassifierConfig(image_size=size, channels=channels, id2label=dict(enumerate(classes)), **shape)


def check_vision(recipe: "VisionRecipe") -> None:
    """Raise InputError for a wrong architecture or missing files, before any image is read."""
    from llm_unlearn.data.source_files import check_source
    from llm_unlearn.vision.classifiers import load_classifier, make_classifier
    from llm_unlearn.vision.image_data import DIGITS, TORCHVISION

    data = recipe.data
    if data.files or (data.source != DIGITS and not data.source.startswith(TORCHVISION)):
        check_source(None if data.files else data.source, data.files or [])
    check_source(None, data.test_files or [])
    if recipe.model.path is not None:
        load_classifier(recipe.model.path)
    else:
        make_classifier(describe_model(recipe), 0)


def describe_model(recipe: "VisionRecipe") -> Any:
    """The config of the recipe's model before images are read.

    A shape that the recipe does not give is guessed (8 × 8 digits, else 32 × 32 in colour), and so are 10 classes.
    """
    data = recipe.data
    channels, size = (1, 8) if data.source == "digits" and not data.files else (3, 32)
    size = data.image_size or size
    return classifier_config(recipe, data.channels or channels, [size, size], [str(i) for i in range(10)])
