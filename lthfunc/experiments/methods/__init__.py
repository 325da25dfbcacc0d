"""Published methods: what each makes of a plan of iterative magnitude pruning with its settings."""
