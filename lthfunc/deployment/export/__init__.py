"""Tickets as files for other programs, one file per target."""
