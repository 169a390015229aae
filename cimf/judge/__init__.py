"""How good a solution is: certificates, solutions that carry one, and the accounting of non-zeros."""

from cimf.judge.certificate import Certificate, certify, certify_columns
from cimf.judge.solution import Solution

__all__ = ["Certificate", "Solution", "certify", "certify_columns"]
