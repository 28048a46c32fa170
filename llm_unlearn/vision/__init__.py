"""The image-classifier track: task, models, data and poisons. Methods, metrics and reports are those of the texts."""

from llm_unlearn.vision.torchvision_guard import try_torchvision

try_torchvision()  # before a module of this track imports transformers
