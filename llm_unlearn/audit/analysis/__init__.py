"""Why unlearning fails: how far (H1) and in which direction (H2) retraining moves the weights.

The two hypotheses of Pawelczyk et al. 2025, arXiv 2406.17216, section 6; see recipes/ANALYSIS.md.
"""
