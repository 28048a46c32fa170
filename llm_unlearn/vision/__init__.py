"""The image-classifier track: task, models, data and poisons. Methods, metrics and reports are those of the texts."""
