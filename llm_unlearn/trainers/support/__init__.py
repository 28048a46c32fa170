"""What several methods share: the reference, the rows of a step, the budget, the stops."""
