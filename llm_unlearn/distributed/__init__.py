"""Several processes: which one this is, how they are launched, and weights that none of them holds whole."""
