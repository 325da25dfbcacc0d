"""Published methods, each a composition of the same parts, at one density and one length of training."""
