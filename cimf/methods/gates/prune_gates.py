"""The method "gates": training with hard-concrete gates to a target, or under a penalty."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

from cimf.errors import InputError, UnknownNameError
from cimf.methods.base import Outcome, Task, check_switches
from cimf.methods.gates.gated_layers import STRUCTURES, Gated
from cimf.methods.gates.hard_concrete import BOUND
from cimf.methods.gates.lagrangian import Constrained, GateDescent, Penalised, Rates
from cimf.methods.trained import SHARED, TrainedOptions, Workshop
from cimf.train.loop import fit
from cimf.train.training_options import check_numbers

# Both rates are divided by the number of steps, so that a short run can go as far as a long one.
# The published runs (94,000 steps at 7e-4 on MNIST) have a log alpha travel up to 66.
_GATES_TRAVEL = 60.0
# Of the multipliers, times target^2: a point of density is worth more where few are left, and the
# violations that are left are smaller. After a restart next to a target of 10 % a multiplier must
# be back soon: on digits (220 steps, by layer) a travel of 200 ends at 12.5 %, of 1000 at 10.5, of
# 3000 at 10.2. At 50 % so large a travel overshoots, to 48.0; 80 ends at 50.1, and 200 at 30.0 for
# 30 %.
_DUAL_TRAVEL = 20.0
# A larger rate makes the gates jump between their bounds.
_GATES_FASTEST = BOUND / 20.0
# Points of density by which the medians may miss the target before it is said.
TOLERANCE = 0.005


@dataclass(frozen=True, kw_only=True)
class GatesOptions(TrainedOptions):
    """Options of the method "gates".

    Attributes
    ----------
    structure : None or "channels"
        As `Gated`.
    constraint : str
        "model": the density of all gated weights; "layer": that of every layer.
    drop : float
        As `Gated`; 0.05 for trained networks (Gallego-Posada et al. 2022, ImageNet), 0.5 or 0.3
        there for networks that start from scratch.
    gates_rate, dual_rate : float, optional
        Of the log alphas (Adam; falls to zero over the last fifth of the steps) and the
        multipliers. Default: 60 and 20 / target^2 over the number of steps, the former at most
        0.23.
    restarts : bool
        Dual restarts.
    measure : str
        What the multipliers go by: "median", the density at test time, with the expected density as
        its differentiable surrogate; "expected", as the paper, where every closed gate goes on
        counting with P(z > 0) >= 0.047 (the clamp of log alpha), so that 10 % cannot be met.
    penalty : float, optional
        In place of a target: loss + penalty * expected density; the gates whose median is zero
        are zero.
    """

    epochs: int = 20
    structure: str | None = None
    constraint: str = "model"
    drop: float = 0.05
    gates_rate: float | None = None
    dual_rate: float | None = None
    restarts: bool = True
    measure: str = "median"
    penalty: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_switches(self, "restarts")
        for name in ("gates_rate", "dual_rate"):
            if getattr(self, name) is not None:
                check_numbers(self, name, positive=True)
        if self.penalty is not None:
            check_numbers(self, "penalty")
        if self.structure not in STRUCTURES:
            raise UnknownNameError("structure of gates", self.structure, ["channels"])
        if self.measure not in ("expected", "median"):
            raise UnknownNameError("measure of density", self.measure, ["expected", "median"])
        if self.constraint not in ("model", "layer"):
            raise UnknownNameError("constraint", self.constraint, ["layer", "model"])

    @property
    def budget(self) -> bool:
        """Whether the penalty decides on the sparsity."""
        return self.penalty is not None

    def rates(self, n_samples: int, target: float) -> Rates:
        """Return the rates of gates and multipliers for this many samples and a density."""
        steps = self.epochs * self.batches(n_samples)
        return Rates(
            self.gates_rate or min(_GATES_TRAVEL / steps, _GATES_FASTEST),
            self.dual_rate or _DUAL_TRAVEL / target**2 / steps,
        )


def prune_gates(task: Task, sparsity: float | None, options: GatesOptions) -> Outcome:
    """Train weights and gates, then keep the gates of largest log alpha: as many as the target.

    After a run that met its constraint these are the gates whose median is open, up to a few. The
    notes say how many the medians would have kept; a density that ended more than half a point
    above the target is warned about. Batch norms take their statistics anew in the end.

    Raises
    ------
    InputError
        As `Workshop` and `Gated`.
    """
    workshop = Workshop(task, options)
    norms = {layer.path: layer.norm for layer in task.graph.layers if layer.norm}
    keep = {*options.keep, *(task.graph.uncalled)}
    last = task.graph.layers[-1]
    notes = []
    if options.structure and last.module.weight.ndim > 2:
        keep.add(last.path)
        notes.append(f"layer {last.path} stays dense: its output channels are the network's")
        workshop.options = replace(options, keep=(*options.keep, last.path))
    target = None if sparsity is None else workshop.density(sparsity)
    sample = next(workshop.batches())[:2]
    gated = Gated(
        workshop.network,
        sample,
        structure=options.structure,
        drop=options.drop,
        keep=keep & set(workshop.sizes),
        norms=norms,
    )
    descent = _descent(gated, workshop, options, target)
    own = {f.name: getattr(options, f.name) for f in fields(options) if f.name not in SHARED}
    settings = {"method": "gates", **own, "target": target, "keep": sorted(keep)}
    report = fit(descent, workshop.data, options, settings, "training with gates")
    warned: tuple[str, ...] = ()
    if target is not None:
        found, warned = _meet(gated, target, options.constraint == "layer")
        notes += found
    network = gated.purge()
    reports = [report, *workshop.tune(network)]
    return Outcome(
        workshop.finished(network), notes=tuple(notes), warnings=warned, training=tuple(reports)
    )


def _descent(
    gated: Gated, workshop: Workshop, options: GatesOptions, target: float | None
) -> GateDescent:
    count = len(workshop.data)
    rates, objective = options.rates(count, target or 1.0), workshop.label_objective(gated.train())
    if target is None:
        assert options.penalty is not None  # `Method.checked` wants one of the two
        return Penalised(
            gated, objective, options, count,
            coefficient=options.penalty, gates_rate=rates.gates,
        )  # fmt: skip
    return Constrained(
        gated, objective, options, count, target=target, rates=rates,
        by_layer=options.constraint == "layer", restarts=options.restarts,
        by_median=options.measure == "median",
    )  # fmt: skip


def _meet(gated: Gated, target: float, by_layer: bool) -> tuple[list[str], tuple[str, ...]]:
    """Choose as many gates as the target leaves; return notes and warnings about the difference."""
    layers = gated.layers
    densities = dict(zip((x.path for x in layers), gated.median_densities().tolist(), strict=True))
    overall, expected = gated.median_density(), float(gated.density().detach())
    groups = [[layer] for layer in layers] if by_layer else [layers]
    counts = {
        tuple(layer.path for layer in group): round(target * sum(x.weights for x in group))
        for group in groups
    }
    cuts = gated.select(counts)
    notes = [
        f"gates: expected density {expected:.2%}, by the medians {overall:.2%}, target "
        f"{target:.2%} of the gated weights; those of largest log alpha are kept, from "
        + ", ".join(f"{cut:.2f}" for cut in cuts)
        + " on (the median opens at -1.60)"
    ]
    found = densities if by_layer else {"all layers": overall}
    below = [path for path, share in found.items() if share < target - TOLERANCE]
    above = [f"{path} {share:.2%}" for path, share in found.items() if share > target + TOLERANCE]
    if below:
        notes.append(
            f"gates: the training closed more than the target asks for in {', '.join(below)}; "
            "gates were opened again, at their median given that they are open"
        )
    if not above:
        return notes, ()
    return notes, (
        f"the gates ended at densities {', '.join(above)} by their medians, the target is "
        f"{target:.2%}; the cut at the largest log alphas meets it at some cost in accuracy: train "
        "for more epochs, or with larger rates of gates and multipliers",
    )


def bisect_penalty(
    density_at: Callable[[float], float],
    target: float,
    *,
    low: float = 1e-4,
    high: float = 1e3,
    tolerance: float = 0.01,
    runs: int = 20,
) -> list[tuple[float, float]]:
    """Search the penalty whose run ends at a density: what a target spares its users.

    Bisection of the logarithm; density is taken to fall as the penalty grows.

    Parameters
    ----------
    density_at : penalty -> density
        One training run.
    target : float
    low, high : float
        Where the search begins.
    tolerance : float
        It ends within so much of the target.
    runs : int
        It ends after so many runs.

    Returns
    -------
    list of (penalty, density)
        Every run, in order; the last is the closest only if it is within the tolerance.

    Raises
    ------
    InputError
        A target outside of (0, 1), or bounds that are no interval of positive numbers.
    """
    if not 0.0 < target < 1.0:
        raise InputError(f"the target density must be in (0, 1), got {target!r}")
    if not 0.0 < low < high:
        raise InputError(f"0 < low < high is needed, got {low!r} and {high!r}")
    found: list[tuple[float, float]] = []
    while len(found) < runs:
        middle = (low * high) ** 0.5
        density = density_at(middle)
        found.append((middle, density))
        if abs(density - target) <= tolerance:
            break
        low, high = (middle, high) if density > target else (low, middle)
    return found
