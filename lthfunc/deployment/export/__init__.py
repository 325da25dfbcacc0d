"""Tickets as files for other programs."""
