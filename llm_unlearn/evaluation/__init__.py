"""Model + data → per-example arrays on disk → metrics → one JSON."""
