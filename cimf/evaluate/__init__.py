"""What a sparse network or model is worth on data that it was not made from."""
