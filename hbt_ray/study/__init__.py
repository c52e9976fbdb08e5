"""A study: ways of composing batches, several seeds of each, compared on benchmarks with intervals and tests."""
