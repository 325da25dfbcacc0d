"""The command line: files, progress, clocks and devices, around the library's pure functions."""
