"""Second-moment statistics: the only form in which data reaches the row solvers."""

from cimf.statistics.gram import Gram, check_gram

__all__ = ["Gram", "check_gram"]
