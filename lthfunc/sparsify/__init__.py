"""The mathematics of pruning: score, allocate, select, rewind. Trees in, trees out."""
