"""Running trainings: one queue, and its executors."""
