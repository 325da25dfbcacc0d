"""Engines: how the pure step becomes a running loop."""
