"""Parameter trees: the training state, masks, models as pure functions, and the files that hold them."""
