"""Pytree helpers, the training state, masks, and the files that keep them."""
