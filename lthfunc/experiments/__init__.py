"""Experiments: folds of training, pruning and rewinding, and the settings that describe them."""
