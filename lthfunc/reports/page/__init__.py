"""Runs as one page that needs no network."""
