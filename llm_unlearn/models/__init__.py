"""Load, make, save, quantise, merge and place models; count their FLOPs."""
