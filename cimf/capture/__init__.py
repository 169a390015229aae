"""From a torch network to its states: tracing, checks, captured samples."""

from cimf.capture.states import Reconstruction, States

__all__ = ["Reconstruction", "States"]
