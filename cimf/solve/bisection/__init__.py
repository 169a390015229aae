"""Algorithms 1 and 2 of the paper: bisection on lam over coordinate descent."""
