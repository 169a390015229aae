"""Networks with layers as structured row problems: convolutions, residuals, token sequences."""
