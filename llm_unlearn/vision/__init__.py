"""The image track: task, classifiers, data and poisons. It shares methods, metrics and reports with the texts."""
