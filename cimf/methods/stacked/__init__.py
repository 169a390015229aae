"""The paper's row designs: one matrix (A, B) stacked from all layers, row by row."""
