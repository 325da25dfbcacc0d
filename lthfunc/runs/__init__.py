"""Run folders: what an experiment leaves on disk, and how it goes on after an interruption."""
