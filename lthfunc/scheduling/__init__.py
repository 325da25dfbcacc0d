"""Who runs trainings: one queue, and its executors."""
