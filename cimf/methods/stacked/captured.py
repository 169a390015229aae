"""The trained network as everything after it sees it: captured states, labelled test data, totals.

Captured once and shared by every row design and every kappa; the states themselves are computed
again in every pass where they are too many to keep.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from typing import Any, Literal

import numpy as np
import scipy.linalg
import scipy.sparse
from numpy.typing import NDArray

from cimf.errors import InputError
from cimf.methods.stacked.samples import Samples
from cimf.model import ImplicitModel, state_scales
from cimf.model.module import ImplicitModule
from cimf.model.wellposed import layer_scales
from cimf.network.batches import as_list
from cimf.network.states import States

# The largest kappa of the paper's Table 1: there the network itself must be allowed.
FEASIBLE_AT = 0.99

# Relative singular values below this are not fitted. A sparse model can hold a state at 1e-14 of
# the network's; with machine epsilon as cut-off that noise got a coefficient of 2.5e13 and the
# output error was 0.30 instead of 0.15 (digits, kappa 0.1).
_NOISE = 1e-10

# Units of the states: one for every state, one for every layer, or as captured.
Rescale = bool | Literal["layers"]


def units_in_words(rescale: object) -> str:
    """Return "rescaled", "rescaled by layer" or "as captured"."""
    return "as captured" if not rescale else "rescaled" + " by layer" * (rescale == "layers")


# Regressors (k, m) and targets (q, m).
Pair = tuple[NDArray[np.float64], NDArray[np.float64]]


@dataclass(frozen=True)
class Reference:
    """A network captured on calibration batches and, where there are any, on test batches.

    Attributes
    ----------
    calibration : Samples
        What the row problems are solved on.
    test : Samples or None
        What models are evaluated on, with their class labels where all batches carry them;
        calibration samples where there is none.
    network_weights, network_parameters : int
        Entries of the network's matrices and kernels; of all its parameters.
    net : torch.nn.Module
    input_shape : tuple[int, ...]
        Shape of one input sample.
    digest : str
        SHA-256 of the network's parameters and buffers when it was captured.
    """

    calibration: Samples
    test: Samples | None
    network_weights: int
    network_parameters: int
    net: Any
    input_shape: tuple[int, ...]
    digest: str

    @classmethod
    def capture(
        cls, net: Any, batches: Iterable[Any], test: Iterable[Any] | None = None
    ) -> Reference:
        """Run `net` over the batches and keep the inputs, in their own dtype.

        Parameters
        ----------
        net : torch.nn.Module or ImplicitModel
            A network, or an implicit teacher, whose states are its equilibria.
        batches, test
            Input tensors or (input, label) pairs, read once; labels of `batches` are ignored.
            `test` is scored by accuracy where all its batches carry labels.

        Raises
        ------
        CaptureError, InputError
            As `cimf.capture_states`; InputError also for labels that are not whole numbers, classes
            of the network's outputs.
        """
        net = net.to_module() if isinstance(net, ImplicitModel) else net
        batches = as_list("calibration", batches)
        calibration, held_out = Samples.capture(net, batches), None
        if test is not None:
            test = as_list("test", test)
            held_out = Samples.capture(net, test)
            labels = class_labels(test, held_out.layout.n_outputs, held_out.n_samples)
            held_out = replace(held_out, labels=labels)
        parameters = list(net.parameters())
        return cls(
            calibration,
            held_out,
            sum(parameter.numel() for parameter in parameters if parameter.ndim >= 2),
            sum(parameter.numel() for parameter in parameters),
            net,
            tuple(calibration.inputs[0].shape[1:]),
            digest(net),
        )

    def check_unchanged(self) -> None:
        """Refuse a network that was changed after its capture: its states would be of two networks.

        Raises
        ------
        InputError
        """
        if digest(self.net) != self.digest:
            raise InputError(
                "the network was changed after it was captured; call Reference.capture again"
            )

    @property
    def convolutional(self) -> bool:
        """Whether the network has kernels, whose weights are shared between places."""
        return any(parameter.ndim >= 3 for parameter in self.net.parameters())

    @property
    def half_precision(self) -> str:
        """The network's 16-bit parameter type in words, such as "float16"; empty where none is."""
        kinds = {p.dtype for p in self.net.parameters() if p.dtype.itemsize == 2}
        return ", ".join(sorted(str(kind).removeprefix("torch.") for kind in kinds))

    @property
    def labels(self) -> NDArray[np.int64] | None:
        """Class labels (m_test,) of the test samples, None where there are none."""
        return None if self.test is None else self.test.labels

    @property
    def evaluation(self) -> Samples:
        """The samples that models are evaluated on: test samples, else calibration samples."""
        return self.calibration if self.test is None else self.test

    @cached_property
    def own(self) -> ImplicitModel:
        """The network itself as an implicit model, its matrices sparse.

        Raises
        ------
        CaptureError
            If (A, B) cannot be read off, or would be too large; rescale=False does without.
        """
        if not isinstance(self.net, ImplicitModule):
            return ImplicitModel.from_network(self.net, self.input_shape, sparse=True)
        A, B, C, D, blocks, bias = self.net.parts()
        A, B, C, D = (scipy.sparse.csr_array(matrix) for matrix in (A, B, C, D))
        return ImplicitModel(A, B, C, D, blocks, bias)

    @property
    def implicit(self) -> bool:
        """Whether the teacher is an implicit model."""
        return isinstance(self.net, ImplicitModule)

    def check_feedback(self, design: str, feedback: bool) -> None:
        """Refuse a row design without feedback for an implicit teacher that has it.

        Raises
        ------
        InputError
        """
        if self.implicit and not feedback and not self.own.wellposedness().acyclic:
            raise InputError(
                f"the model to be matched has feedback, and design {design!r} allows none: use "
                "'full' or 'no-self-loop'"
            )

    def scale(self, rescale: Rescale) -> NDArray[np.float64]:
        """Return units s (n,), x = s x~, in which the network is feasible at kappa = `FEASIBLE_AT`.

        Parameters
        ----------
        rescale : bool or "layers"
            One for every state, or for every layer. False, or where no state can be scaled: 1.

        Raises
        ------
        CaptureError
            As `own`.
        InputError
            As `state_scales` and `layer_scales`.
        """
        scalable = self.calibration.layout.scalable
        if not rescale or not scalable.any():
            return np.ones(len(scalable))
        own = self.own
        bounded = np.arange(own.n_inputs) < own.n_inputs - int(own.bias)
        if rescale == "layers":
            layers = [block.rows for block in reversed(own.blocks)]  # from the inputs on
            return layer_scales(own.A, own.B, layers, FEASIBLE_AT, bounded, scalable)
        return state_scales(own.A, own.B, FEASIBLE_AT, bounded, scalable)

    def accuracy(self, outputs: Callable[[States], NDArray[np.float64]]) -> float | None:
        """Return the fraction of test samples classified correctly by outputs(states) (q, m).

        None without labels.
        """
        if self.test is None or self.test.labels is None:
            return None
        correct = sum(n_correct(outputs(states), labels) for states, labels in self.test.labelled())
        return correct / self.test.n_samples

    @cached_property
    def dense_accuracy(self) -> float | None:
        """Accuracy of the network itself on the test samples."""
        return self.accuracy(lambda states: states.Y)

    @cached_property
    def control_accuracy(self) -> float | None:
        """Accuracy of the control: the least-squares linear map from the input to the outputs.

        Fitted to the network's outputs on the calibration samples. A model that is not clearly
        better has learned nothing from the states.
        """
        if self.labels is None:
            return None
        pairs = ((states.U, states.Y) for states in self.calibration.chunks())
        control = least_squares(*reduce(joined, pairs))
        return self.accuracy(lambda states: control @ states.U)


def digest(net: Any) -> str:
    """Return the SHA-256 of a network's parameters and buffers."""
    found = hashlib.sha256()
    for name, value in net.state_dict().items():
        found.update(name.encode())
        found.update(value.detach().cpu().double().numpy().tobytes())
    return found.hexdigest()


def joined(one: Pair, other: Pair) -> Pair:
    """Return the least-squares problem of two sets of samples, with at most k + q samples.

    Parameters
    ----------
    one, other : (regressors (k, m_i), targets (q, m_i))

    Returns
    -------
    regressors, targets : (k, r), (q, r)
        The triangular factor: ||targets - W regressors||_F is that of all samples for every W
        (q, k). Not moments: they square the condition number, and directions of relative size 1e-8
        would be lost.
    """
    stacked = np.hstack([np.vstack(one), np.vstack(other)])
    triangle = np.asarray(np.linalg.qr(stacked.T, mode="r")).T
    k = len(one[0])
    return triangle[:k], triangle[k:]


def least_squares(
    regressors: NDArray[np.float64],
    targets: NDArray[np.float64],
    units: NDArray[np.float64] | None = None,
) -> NDArray[np.float64]:
    """Return W (q, k) minimising ||targets - W regressors||_F^2, of smallest norm in `units`.

    Problem (5) of the paper with l = 0: regressors (k, m) are chosen rows of X and U, targets
    (q, m) the outputs Y.

    Parameters
    ----------
    units : (k,), optional
        The size at which each regressor is a signal, e.g. the norm of the captured state; what is
        `_NOISE` times smaller is not used. Default: its own norm.
    """
    size = np.linalg.norm(regressors, axis=1) if units is None else units
    inverse = np.divide(1.0, size, out=np.zeros_like(size), where=size > 0)
    scaled = (regressors * inverse[:, None]).T
    return scipy.linalg.lstsq(scaled, targets.T, cond=_NOISE, lapack_driver="gelsd")[0].T * inverse


def share_correct(outputs: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """Return the accuracy of outputs (q, m) for class labels (m,), as `n_correct`."""
    return n_correct(outputs, labels) / len(labels)


def n_correct(outputs: NDArray[np.float64], labels: NDArray[np.int64] | None) -> int:
    """Return for how many samples the outputs (q, m) name the class of labels (m,).

    The class is the largest output, or the sign where there is only one output. A sample with a
    NaN output is wrong. 0 without labels.
    """
    if labels is None:
        return 0
    guess = outputs.argmax(axis=0) if len(outputs) > 1 else (outputs[0] > 0).astype(np.int64)
    return int(((guess == labels) & np.isfinite(outputs).all(axis=0)).sum())


def class_labels(
    batches: Sequence[Any], n_outputs: int, n_samples: int
) -> NDArray[np.int64] | None:
    """Return the labels (m,) of (input, label) pairs, None where the batches are bare tensors.

    Raises
    ------
    InputError
        Labels that are no whole numbers, too few or too many, or of classes that the outputs cannot
        name; one output tells two classes.
    """
    if not all(isinstance(batch, (tuple, list)) and len(batch) == 2 for batch in batches):
        return None
    parts = [np.asarray(label.cpu() if hasattr(label, "cpu") else label) for _, label in batches]
    if any(
        part.ndim != 1 or part.dtype.kind not in "iubf" or not (part == np.floor(part)).all()
        for part in parts
    ):
        raise InputError("test labels must be whole class numbers, one per sample")
    labels = np.concatenate(parts).astype(np.int64)
    if len(labels) != n_samples:
        raise InputError(f"{len(labels)} labels for {n_samples} test samples")
    classes = max(n_outputs, 2)
    if labels.size and not (labels.min() >= 0 and labels.max() < classes):
        raise InputError(
            f"test labels go from {labels.min()} to {labels.max()}; the network's outputs name the "
            f"classes 0 to {classes - 1}"
        )
    return labels
