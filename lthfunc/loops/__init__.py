"""Pruning in a training loop that isn't this library's: anybody's module, optimiser and data."""
