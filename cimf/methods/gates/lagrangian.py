"""min loss subject to expected density <= target, by gradient descent and ascent (Cooper)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from cimf.errors import BackendError
from cimf.methods.gates.gated_layers import Gated
from cimf.train.descent import Descent
from cimf.train.objectives import Objective
from cimf.train.training_options import Training

# Over this last share of the steps the gates' rate falls to zero: at a constant rate the density
# goes up and down by what one step of all gates changes.
_SETTLING = 0.2


@dataclass(frozen=True)
class Rates:
    """Learning rates beside that of the weights: of the log alphas, and of the multipliers."""

    gates: float
    dual: float


def _cooper() -> Any:
    try:
        import cooper
    except ImportError as error:
        raise BackendError(
            "gates under a constraint need the package cooper-optim: pip install 'cimf[train]'"
        ) from error
    return cooper


def constrained_problem(
    objective: Any, violation: Any, n_constraints: int, like: Tensor, strict: Any = None
) -> Any:
    """Return a Cooper problem: min objective(*batch) subject to violation() <= 0.

    Parameters
    ----------
    objective : (inputs, labels) -> scalar
    violation : () -> (n_constraints,)
    strict : () -> (n_constraints,), optional
        What the multipliers go by, where it has no gradient: then `violation` is its surrogate.
    like : Tensor
        Gives dtype and device of the multipliers.

    Raises
    ------
    BackendError
        Cooper is not installed.
    """
    cooper = _cooper()
    base: Any = cooper.ConstrainedMinimizationProblem

    class Problem(base):
        def __init__(self) -> None:
            super().__init__()
            multiplier = cooper.multipliers.DenseMultiplier(
                num_constraints=n_constraints, device=like.device, dtype=like.dtype
            )
            self.density = cooper.Constraint(
                constraint_type=cooper.ConstraintType.INEQUALITY, multiplier=multiplier
            )

        def compute_cmp_state(self, inputs: Any, labels: Any) -> Any:
            state = cooper.ConstraintState(
                violation=violation(), strict_violation=None if strict is None else strict()
            )
            observed = {self.density: state}
            return cooper.CMPState(loss=objective(inputs, labels), observed_constraints=observed)

    return Problem()


class DescentAscent:
    """Simultaneous steps: the primal optimisers descend, the multipliers ascend.

    Parameters
    ----------
    problem
        Of `constrained_problem`.
    optimizers : list of torch.optim.Optimizer
        Of the primal variables.
    rate : float
        Step of the multipliers.
    restarts : bool
        Set a multiplier to zero whenever its constraint holds (Gallego-Posada et al. 2022, section
        3.2; Cooper itself no longer does). What was accumulated while the constraint was violated
        would otherwise push far beyond it.
    """

    def __init__(
        self, problem: Any, optimizers: list[torch.optim.Optimizer], rate: float, restarts: bool
    ) -> None:
        self.multiplier = problem.density.multiplier
        self.dual = torch.optim.SGD(self.multiplier.parameters(), lr=rate, maximize=True)
        self.problem, self.restarts = problem, restarts
        self.roller = _cooper().optim.SimultaneousOptimizer(problem, optimizers, self.dual)

    def step(self, inputs: Any = None, labels: Any = None) -> Tensor:
        """Take one step; return the objective before it, detached."""
        rolled = self.roller.roll({"inputs": inputs, "labels": labels})
        if self.restarts:
            (state,) = rolled.cmp_state.observed_constraints.values()
            _, strict = state.extract_violations()
            self.multiplier.weight.data[strict.detach() <= 0] = 0.0
        loss: Tensor = rolled.loss.detach()
        return loss


class GateDescent(Descent):
    """Weights and gates together. Subclasses say what keeps the density down."""

    def __init__(
        self,
        gated: Gated,
        objective: Objective,
        training: Training,
        n_samples: int,
        gates_rate: float,
    ) -> None:
        super().__init__(gated, objective, training, n_samples, gated.network_parameters())
        self.gated = gated
        # Adam without decay at a constant rate, whatever the weights have: a log alpha must travel
        # a distance that is known, 2 ln 100 at most. Without momentum and with a short memory: with
        # Adam's usual (0.9, 0.999) the pressure of a multiplier goes on after its restart, and 220
        # steps on digits ended at density 0.43 for a target of 0.5, without it at 0.500.
        self.gate_optimizer = torch.optim.Adam(
            gated.gate_parameters(), lr=gates_rate, betas=(0.0, 0.9)
        )
        steps = training.epochs * training.batches(n_samples)
        self.settling = LambdaLR(
            self.gate_optimizer, lambda step: min(1.0, (steps - step) / (_SETTLING * steps))
        )

    def advance(self) -> None:
        """Go on to the rates of the next step."""
        super().advance()
        self.settling.step()

    def measures(self) -> dict[str, float]:
        """Return densities, expected and by the medians, in weights and multiply-adds."""
        with torch.no_grad():
            return {
                "density": float(self.gated.density()),
                "median density": self.gated.median_density(),
                "multiply-adds": float(self.gated.density(multiply_adds=True)),
            }

    def state(self) -> dict[str, Any]:
        """Return the state of `Descent` with that of the gates' optimiser."""
        return {
            **super().state(),
            "gates": self.gate_optimizer.state_dict(),
            "settling": self.settling.state_dict(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go back to a `state`."""
        super().load(state)
        self.gate_optimizer.load_state_dict(state["gates"])
        self.settling.load_state_dict(state["settling"])


class Constrained(GateDescent):
    """Density at most `target`, for the network or for every layer.

    Parameters
    ----------
    target : float
    by_layer : bool
        One constraint per layer, or one for the weights of all.
    """

    def __init__(
        self,
        gated: Gated,
        objective: Objective,
        training: Training,
        n_samples: int,
        *,
        target: float,
        by_layer: bool,
        rates: Rates,
        restarts: bool,
        by_median: bool,
    ) -> None:
        super().__init__(gated, objective, training, n_samples, rates.gates)
        self.by_layer = by_layer

        def violation() -> Tensor:
            return (gated.densities() if by_layer else gated.density().reshape(1)) - target

        def at_test_time() -> Tensor:
            if by_layer:
                return gated.median_densities() - target
            return gated.median_densities().new_tensor([gated.median_density() - target])

        like = gated.gate_parameters()[0]
        count = len(gated.layers) if by_layer else 1
        strict = at_test_time if by_median else None
        problem = constrained_problem(self.value, violation, count, like, strict)
        self.ascent = DescentAscent(
            problem, [self.optimizer, self.gate_optimizer], rates.dual, restarts
        )

    def step(self, inputs: Tensor, labels: Tensor | None) -> Tensor:
        """Descend in weights and gates, ascend in the multipliers."""
        loss = self.ascent.step(inputs, labels)
        self.gated.clamp()
        self.advance()
        return loss

    def measures(self) -> dict[str, float]:
        """Return also the multipliers, and the density of every layer that has its own."""
        found = super().measures()
        values = self.ascent.multiplier.weight.detach().tolist()
        if not self.by_layer:
            return {**found, "multiplier": values[0]}
        densities = self.gated.densities().detach().tolist()
        for layer, density, value in zip(self.gated.layers, densities, values, strict=True):
            found[f"density of {layer.path}"] = density
            found[f"multiplier of {layer.path}"] = value
        return found

    def state(self) -> dict[str, Any]:
        """Return also the multipliers."""
        return {**super().state(), "multiplier": self.ascent.multiplier.state_dict()}

    def load(self, state: dict[str, Any]) -> None:
        """Go back to a `state`."""
        super().load(state)
        self.ascent.multiplier.load_state_dict(state["multiplier"])


class Penalised(GateDescent):
    """loss + coefficient * density: no target (Louizos, Welling and Kingma 2018)."""

    def __init__(
        self,
        gated: Gated,
        objective: Objective,
        training: Training,
        n_samples: int,
        *,
        coefficient: float,
        gates_rate: float,
    ) -> None:
        super().__init__(gated, objective, training, n_samples, gates_rate)
        self.coefficient = coefficient

    def step(self, inputs: Tensor, labels: Tensor | None) -> Tensor:
        """Descend in weights and gates."""
        self.optimizer.zero_grad()
        self.gate_optimizer.zero_grad()
        loss = self.value(inputs, labels)
        (loss + self.coefficient * self.gated.density()).backward()
        self.optimizer.step()
        self.gate_optimizer.step()
        self.gated.clamp()
        self.advance()
        return loss.detach()
