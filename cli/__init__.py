"""The command line: files, progress, clocks and devices stand here, around the library's pure functions."""
