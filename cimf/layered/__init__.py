"""Networks with layers as structured row problems: convolutions, residuals, token sequences."""

from cimf.layered.sparsify import Calibration, SparseNetwork, sparsify_layers
from cimf.layered.supports import Convex

__all__ = ["Calibration", "Convex", "SparseNetwork", "sparsify_layers"]
