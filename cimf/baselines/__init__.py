"""Published pruning methods on the same statistics, data and accounting as the layered design."""

from cimf.baselines.methods import BASELINES, Baseline

__all__ = ["BASELINES", "Baseline"]
