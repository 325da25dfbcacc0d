"""Several ranks on one training: collectives, and trees of which each rank holds a part."""
