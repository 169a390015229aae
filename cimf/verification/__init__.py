"""A custom solver against certified ground truth: `cimf.verify`."""

from cimf.verification.front import verify
from cimf.verification.graded_problem import Problem, Truth
from cimf.verification.scorecard import Report
from cimf.verification.suites import FAMILIES, SUITES, problems
from cimf.verification.verdict import Verdict

__all__ = ["FAMILIES", "SUITES", "Problem", "Report", "Truth", "Verdict", "problems", "verify"]
