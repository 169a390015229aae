"""Implicit models: equilibrium, well-posedness, conversion of layered networks, files."""

from cimf.model.equilibrium import ConvergenceWarning, Equilibrium
from cimf.model.implicit import ImplicitModel
from cimf.model.wellposed import Wellposedness, state_scales

__all__ = ["ConvergenceWarning", "Equilibrium", "ImplicitModel", "Wellposedness", "state_scales"]
