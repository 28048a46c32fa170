"""The image track: task, classifiers, data and poisons. It shares methods, metrics and reports with the texts."""

from llm_unlearn.vision.torchvision_guard import try_torchvision

try_torchvision()  # before a module of this track imports transformers
