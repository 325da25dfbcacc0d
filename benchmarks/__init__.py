"""Measurements: ratios taken side by side in one run, with their floors. Run as ``python -m benchmarks.NAME``."""
