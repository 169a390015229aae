"""Elementwise activations phi with the constants that well-posedness and rescaling need.

An `Activation` is a name and parameter values: it compares, hashes and serialises by value. What
it does is looked up in one table of families at the bottom; a new activation is one entry there.

For every family the numpy and the torch function agree to rounding in float64, and with L the
Lipschitz constant, |phi(a) - phi(b)| <= L |a - b| for all real a, b. That inequality is all the
proof of the paper's Theorem 7 uses, so the condition there reads lambda_pf(diag(L) |A|) < 1 for any
L; strict monotonicity is reported, not needed (ReLU is not strictly increasing either).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import scipy.special
from numpy.typing import NDArray

from cimf.errors import InputError, UnknownNameError
from formulations.columns import as_array

Array = NDArray[np.float64]
Monotone = Literal["strictly increasing", "increasing", "not monotone"]


@dataclass(frozen=True)
class Activation:
    """One elementwise function phi: a family name and the values of its parameters.

    Build it with `as_activation(name, **parameters)`, or take the default from `ACTIVATIONS`.

    Attributes
    ----------
    name : str
        A key of `ACTIVATIONS`.
    params : tuple of (str, value)
        Every parameter of the family, in its order; ``()`` for most.
    """

    name: str
    params: tuple[tuple[str, Any], ...] = ()

    @property
    def _family(self) -> _Family:
        if self.name not in _FAMILIES:
            raise UnknownNameError("activation", self.name, _FAMILIES)
        return _FAMILIES[self.name]

    def numpy(self, z: Any) -> Array:
        """Return phi(z), a new float64 array of the shape of `z`, for any real array.

        Raises
        ------
        InputError
            As `formulations.columns.as_array`: masked, complex, half precision.
        """
        values = as_array("z", z).astype(np.float64, copy=False)
        return np.asarray(self._family.numpy(values, **dict(self.params)))

    def torch(self, z: Any) -> Any:
        """Return phi(z) of a torch tensor: out of place, differentiable, same device and dtype.

        Integers and booleans become torch's default floating dtype.

        Raises
        ------
        InputError
            For complex numbers.
        """
        import torch

        if z.is_complex():
            raise InputError(f"z is complex ({z.dtype}): real numbers are needed")
        if not z.is_floating_point():
            z = z.to(torch.get_default_dtype())
        return self._family.torch(torch, z, **dict(self.params))

    @property
    def lipschitz(self) -> float:
        """Smallest L (rounded up in its last digit) with |phi(a) - phi(b)| <= L |a - b|."""
        return self._family.traits(**dict(self.params))[0]

    @property
    def monotone(self) -> Monotone:
        """Whether phi is strictly increasing, increasing, or neither."""
        return self._family.traits(**dict(self.params))[1]

    @property
    def positively_homogeneous(self) -> bool:
        """Whether phi(t z) = t phi(z) for every t >= 0: what the paper's Theorem 8 needs."""
        return self._family.traits(**dict(self.params))[2]

    def to_json(self) -> dict[str, Any]:
        """Return ``{"name": ..., "params": {...}}``."""
        return {"name": self.name, "params": dict(self.params)}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Activation:
        """Return the activation that `to_json` described."""
        return as_activation(record["name"], **record["params"])

    def __str__(self) -> str:
        inner = ", ".join(f"{key}={value}" for key, value in self.params)
        return f"{self.name}({inner})" if inner else self.name


def as_activation(name: str | Activation, **params: Any) -> Activation:
    """Return the activation `name`, its parameters defaulting to torch's.

    Raises
    ------
    UnknownNameError
        For a name outside `ACTIVATIONS` or a parameter the family does not have.
    InputError
        For a parameter value that is not a number (or a known word), or NaN.
    """
    if isinstance(name, Activation):
        return name
    if name not in _FAMILIES:
        raise UnknownNameError("activation", name, _FAMILIES)
    defaults = _FAMILIES[name].defaults
    for key in params:
        if key not in defaults:
            raise UnknownNameError(f"parameter of {name}", key, defaults)
    values = []
    for key, default in defaults.items():
        value = params.get(key, default)
        if isinstance(default, str):
            if value not in ("none", "tanh"):
                raise InputError(f"{name}: {key} must be 'none' or 'tanh', got {value!r}")
        elif not isinstance(value, int | float | np.number) or math.isnan(value):
            raise InputError(f"{name}: {key} must be a number, got {value!r}")
        else:
            value = float(value)
        values.append((key, value))
    return Activation(name, tuple(values))


@dataclass(frozen=True)
class _Family:
    """Functions of (z, **params); traits(**params) is (Lipschitz, monotone, homogeneous)."""

    numpy: Callable[..., Array]
    torch: Callable[..., Any]
    traits: Callable[..., tuple[float, Monotone, bool]]
    defaults: Mapping[str, Any]


def _constant(
    lipschitz: float, monotone: Monotone, homogeneous: bool = False
) -> Callable[..., Any]:
    return lambda **params: (lipschitz, monotone, homogeneous)


def _leaky_traits(negative_slope: float) -> tuple[float, Monotone, bool]:
    return max(1.0, abs(negative_slope)), _by_sign(negative_slope), True


def _elu_traits(alpha: float) -> tuple[float, Monotone, bool]:
    return max(1.0, abs(alpha)), _by_sign(alpha), alpha == 0


def _celu_traits(alpha: float) -> tuple[float, Monotone, bool]:
    # alpha (exp(z / alpha) - 1) has slope exp(z / alpha): at most 1 on z < 0 only for alpha > 0.
    return (1.0, "strictly increasing", False) if alpha > 0 else (math.inf, "not monotone", False)


def _hardtanh_traits(min_val: float, max_val: float) -> tuple[float, Monotone, bool]:
    return 1.0, "increasing", min_val in (0.0, -math.inf) and max_val in (0.0, math.inf)


def _softplus_traits(beta: float, threshold: float) -> tuple[float, Monotone, bool]:
    # Above the threshold torch takes the identity: from 20 (its default) on a step of 2e-9 / beta
    # at most, below one that no Lipschitz constant covers.
    fits = beta > 0 and threshold >= 20.0
    return (1.0, "strictly increasing", False) if fits else (math.inf, "not monotone", False)


def _by_sign(slope: float) -> Monotone:
    if slope > 0:
        return "strictly increasing"
    return "increasing" if slope == 0 else "not monotone"


def _gelu_numpy(z: Array, approximate: str) -> Array:
    if approximate == "tanh":
        return 0.5 * z * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (z + 0.044715 * z**3)))
    return z * scipy.special.ndtr(z)


def _softplus_numpy(z: Array, beta: float, threshold: float) -> Array:
    # As torch: the identity above the threshold, where the exact value is up to 2e-9 larger.
    return np.where(beta * z > threshold, z, np.logaddexp(0.0, beta * z) / beta)


_SELU_SCALE, _SELU_ALPHA = 1.0507009873554805, 1.6732632423543772

# Largest slopes without a closed form: the derivative on a grid of step 5e-7, rounded up (gelu at
# sqrt(2), tanh-gelu at 1.42, silu at 2.40, mish at 1.49).
_FAMILIES: dict[str, _Family] = {
    "identity": _Family(
        lambda z: z.copy(),
        lambda torch, z: z.clone(),
        _constant(1.0, "strictly increasing", True),
        {},
    ),
    "relu": _Family(
        lambda z: np.maximum(z, 0.0),
        lambda torch, z: torch.relu(z),
        _constant(1.0, "increasing", True),
        {},
    ),
    "leaky_relu": _Family(
        lambda z, negative_slope: np.where(z > 0, z, negative_slope * z),
        lambda torch, z, **kw: torch.nn.functional.leaky_relu(z, **kw),
        _leaky_traits,
        {"negative_slope": 0.01},
    ),
    "tanh": _Family(
        np.tanh, lambda torch, z: torch.tanh(z), _constant(1.0, "strictly increasing"), {}
    ),
    "sigmoid": _Family(
        scipy.special.expit,
        lambda torch, z: torch.sigmoid(z),
        _constant(0.25, "strictly increasing"),
        {},
    ),
    "elu": _Family(
        lambda z, alpha: np.where(z > 0, z, alpha * np.expm1(np.minimum(z, 0.0))),
        lambda torch, z, **kw: torch.nn.functional.elu(z, **kw),
        _elu_traits,
        {"alpha": 1.0},
    ),
    "celu": _Family(
        lambda z, alpha: np.where(z > 0, z, alpha * np.expm1(np.minimum(z, 0.0) / alpha)),
        lambda torch, z, **kw: torch.nn.functional.celu(z, **kw),
        _celu_traits,
        {"alpha": 1.0},
    ),
    "selu": _Family(
        lambda z: _SELU_SCALE * np.where(z > 0, z, _SELU_ALPHA * np.expm1(np.minimum(z, 0.0))),
        lambda torch, z: torch.selu(z),
        _constant(_SELU_SCALE * _SELU_ALPHA, "strictly increasing"),
        {},
    ),
    "gelu": _Family(
        _gelu_numpy,
        lambda torch, z, **kw: torch.nn.functional.gelu(z, **kw),
        lambda approximate: (
            1.1289042 if approximate == "none" else 1.1289931,
            "not monotone",
            False,
        ),
        {"approximate": "none"},
    ),
    "silu": _Family(
        lambda z: z * scipy.special.expit(z),
        lambda torch, z: torch.nn.functional.silu(z),
        _constant(1.0998394, "not monotone"),
        {},
    ),
    "mish": _Family(
        lambda z: z * np.tanh(np.logaddexp(0.0, z)),
        lambda torch, z: torch.nn.functional.mish(z),
        _constant(1.0884982, "not monotone"),
        {},
    ),
    "softplus": _Family(
        _softplus_numpy,
        lambda torch, z, **kw: torch.nn.functional.softplus(z, **kw),
        _softplus_traits,
        {"beta": 1.0, "threshold": 20.0},
    ),
    "softsign": _Family(
        lambda z: z / (1.0 + np.abs(z)),
        lambda torch, z: torch.nn.functional.softsign(z),
        _constant(1.0, "strictly increasing"),
        {},
    ),
    "logsigmoid": _Family(
        scipy.special.log_expit,
        lambda torch, z: torch.nn.functional.logsigmoid(z),
        _constant(1.0, "strictly increasing"),
        {},
    ),
    "hardtanh": _Family(
        lambda z, min_val, max_val: np.clip(z, min_val, max_val),
        lambda torch, z, min_val, max_val: torch.clamp(z, min_val, max_val),
        _hardtanh_traits,
        {"min_val": -1.0, "max_val": 1.0},
    ),
    "relu6": _Family(
        lambda z: np.clip(z, 0.0, 6.0),
        lambda torch, z: torch.clamp(z, 0.0, 6.0),
        _constant(1.0, "increasing"),
        {},
    ),
    "hardsigmoid": _Family(
        lambda z: np.clip(z + 3.0, 0.0, 6.0) / 6.0,
        lambda torch, z: torch.nn.functional.hardsigmoid(z),
        _constant(1.0 / 6.0, "increasing"),
        {},
    ),
    "hardswish": _Family(
        lambda z: z * np.clip(z + 3.0, 0.0, 6.0) / 6.0,
        lambda torch, z: torch.nn.functional.hardswish(z),
        _constant(1.5, "not monotone"),
        {},
    ),
    "softshrink": _Family(
        lambda z, lambd: np.sign(z) * np.maximum(np.abs(z) - lambd, 0.0),
        lambda torch, z, **kw: torch.nn.functional.softshrink(z, **kw),
        lambda lambd: (1.0, "increasing" if lambd else "strictly increasing", lambd == 0),
        {"lambd": 0.5},
    ),
    "abs": _Family(np.abs, lambda torch, z: torch.abs(z), _constant(1.0, "not monotone", True), {}),
    "sin": _Family(np.sin, lambda torch, z: torch.sin(z), _constant(1.0, "not monotone"), {}),
    "cos": _Family(np.cos, lambda torch, z: torch.cos(z), _constant(1.0, "not monotone"), {}),
    "atan": _Family(
        np.arctan, lambda torch, z: torch.atan(z), _constant(1.0, "strictly increasing"), {}
    ),
    "erf": _Family(
        scipy.special.erf,
        lambda torch, z: torch.erf(z),
        _constant(2.0 / math.sqrt(math.pi), "strictly increasing"),
        {},
    ),
}

ACTIVATIONS: dict[str, Activation] = {
    name: Activation(name, tuple(family.defaults.items())) for name, family in _FAMILIES.items()
}
"""Every known activation by name, with torch's default parameters."""
