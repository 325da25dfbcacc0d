"""Run folders: what an experiment leaves on disk, and how it continues after an interruption."""
