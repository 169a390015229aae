"""Networks with layers as structured row problems: convolutions, residuals, token sequences."""

from cimf.methods.layered.calibration import Calibration, SparseNetwork, sparsify_layers
from cimf.methods.layered.supports import Convex

__all__ = ["Calibration", "Convex", "SparseNetwork", "sparsify_layers"]
