"""Models go to a model hub and come from there: packages, cards, and the only uploader."""
