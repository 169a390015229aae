"""Exact row solutions: block pivoting along the solution path (numba kernels)."""
