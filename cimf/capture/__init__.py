"""From a torch network to its states: tracing, checks, captured samples."""

from cimf.capture.capture import capture_states, iter_states
from cimf.capture.network import HookWarning
from cimf.capture.states import Reconstruction, States

__all__ = ["HookWarning", "Reconstruction", "States", "capture_states", "iter_states"]
