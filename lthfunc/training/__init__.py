"""Training as pure functions: schedules, optimisers, steps, and the loop that folds them."""
