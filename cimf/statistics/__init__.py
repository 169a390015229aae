"""Second-moment statistics: the only form in which data reaches the row solvers."""

from cimf.statistics.gram import Gram

__all__ = ["Gram"]
