"""Every language pair from one encoding: benchmarks, exact ranks, measures, bias, report."""
