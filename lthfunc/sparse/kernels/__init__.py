"""The kernels in C++, how they are built, and what Python knows of their instructions."""
