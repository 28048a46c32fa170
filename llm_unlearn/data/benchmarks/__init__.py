"""The rows of the field's benchmarks, from the hub or from local files: docs/benchmarks.md."""
