"""Measurements: ratios taken within one run, with lower bounds. Run as ``python -m benchmarks.NAME``."""
