"""The kernels in Triton's language. Importing any of these files imports Triton."""
