"""What ends in a run folder: a sweep over kappa, the demo."""
