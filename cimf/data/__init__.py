"""Datasets, corpora, texts, and the networks of the experiments."""
