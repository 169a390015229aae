"""Published pruning methods on the same statistics, data and accounting as the layered design."""

from cimf.methods.baselines.one_shot import BASELINES, Baseline

__all__ = ["BASELINES", "Baseline"]
