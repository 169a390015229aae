"""How good a solution is: certificates, solutions that carry one, accounting of non-zeros."""

from cimf.judge.accounting import DENOMINATORS, BlockCount, NonZeros, count_nonzeros
from cimf.judge.certificate import Certificate, certify, certify_columns
from cimf.judge.model_solution import ModelSolution
from cimf.judge.row_gaps import energy
from cimf.judge.solution import Solution

__all__ = [
    "DENOMINATORS",
    "BlockCount",
    "Certificate",
    "ModelSolution",
    "NonZeros",
    "Solution",
    "certify",
    "certify_columns",
    "count_nonzeros",
    "energy",
]
