"""The pipeline: the stages of a run, one seed of a recipe for texts and for images, and the run folder."""
