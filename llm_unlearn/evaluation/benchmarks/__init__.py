"""How a model is asked what the benchmarks ask: docs/benchmarks.md."""
