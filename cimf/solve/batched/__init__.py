"""All rows at once in torch, for GPUs."""
