"""From a network to its graph: the one tracer.

Symbolic tracing (`torch.fx`) comes first: functional activations, residual additions and modules
used twice are seen like everything else. Forward passes that it cannot follow are traced by
`torch.export` on a sample. Only control flow that depends on values is refused.
"""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from cimf.errors import CaptureError
from cimf.network.batches import Batch, Inputs, tensors_of
from cimf.network.equivalents import Equivalent
from cimf.network.exported import MATCHED, NORMS, exported
from cimf.network.graph import Graph, KeepPrecision, as_output
from cimf.network.hooks import hooked
from cimf.network.rewrite import erase_identities, out_of_place


@torch.inference_mode(False)
@torch.no_grad()
def trace(
    reference: nn.Module,
    dtype: torch.dtype,
    sample: Batch | None = None,
    leaves: Collection[type[nn.Module]] = (),
) -> Graph:
    """Return the graph of a network in eval mode, with nothing done in place and no dropout.

    Parameters
    ----------
    reference : nn.Module
        A `working_copy`; copied once more, because the graph's modules are its own. A network that
        is one matched layer becomes the layer '0' of the graph.
    sample : Tensor or Inputs, optional
        Input (b, ...): says which arguments are given, and on it a network that cannot be traced
        symbolically is run. Default: one tensor, and no such network.
    leaves : collection of module types
        Whose calls stay calls.

    Raises
    ------
    CaptureError
        Its control flow depends on the data, or an operation in place has no counterpart. The
        message names the module's path.
    """
    root = copy.deepcopy(reference)
    if isinstance(root, MATCHED):
        root = nn.Sequential(root)
    try:
        with _naming_the_place(root):
            graph = _Tracer(leaves, sample).trace(root)
    except CaptureError:
        if sample is None:
            raise
        with _naming_the_place(root), KeepPrecision(dtype):
            graph = exported(root, sample)
    module = fx.GraphModule(root, graph)
    out_of_place(module)
    erase_identities(module)
    return Graph(module, dtype)


def refuse_several_inputs(net: nn.Module) -> None:
    """Raise `CaptureError` where a network needs more than one tensor."""
    required = [
        name
        for name, parameter in inspect.signature(net.forward).parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    if len(required) > 1:
        raise CaptureError(
            f"the network takes {len(required)} inputs ({', '.join(required)}); exactly one tensor "
            "is supported here"
        )


def join_outputs(graph: Graph) -> bool:
    """Let a graph return one tensor where the network returns several; say whether it did."""
    end = graph.nodes[-1]
    if isinstance(end.args[0], fx.Node):
        return False
    with graph.module.graph.inserting_before(end):
        end.args = (graph.module.graph.call_function(_joined, (end.args[0],)),)
    graph.module.recompile()
    return True


def _joined(value: Any) -> Any:
    found = [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]
    return as_output(value, len(found[0]) if found else 0)


class _Tracer(fx.Tracer):
    """fx tracer that remembers which layer every operation belongs to.

    A layer that is matched and brings no forward of its own stays a call, whatever its class is
    called.
    """

    def __init__(self, leaves: Collection[type[nn.Module]], sample: Batch | None) -> None:
        super().__init__(param_shapes_constant=True)
        self.leaves = tuple(leaves)
        self.sample = sample
        self.path = ""

    def create_args_for_root(self, root_fn: Any, *_: Any) -> tuple[Any, list[Any]]:
        """Take the inputs that are given as the graph's, and no others: defaults stay defaults."""
        names = self.sample.names if isinstance(self.sample, Inputs) else ()
        known = list(inspect.signature(root_fn).parameters)[1:]
        count = len(tensors_of(self.sample)) if self.sample is not None else 1
        labels = names or [*known, *(f"input{k}" for k in range(count))][:count]
        given = [self.create_proxy("placeholder", str(label), (), {}) for label in labels]

        def call(root: nn.Module, *values: Any) -> Any:
            if names:
                return root_fn(root, **dict(zip(names, values, strict=True)))
            return root_fn(root, *values)

        return call, [self.root, *given]

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        renamed = isinstance(m, (*MATCHED, *NORMS)) and type(m).forward.__module__.startswith(
            "torch.nn."
        )
        if any(isinstance(part, Equivalent) for part in m.modules() if not renamed):
            return False  # an encoder of nn, say, which is a call else
        leaf = type(m) in self.leaves or renamed
        return leaf or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        before, self.path = self.path, self.path_of_module(m)
        out = super().call_module(m, forward, args, kwargs)
        self.path = before
        return out

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(*args, **kwargs)
        node.meta["owner"] = self.path
        return node


@contextmanager
def _naming_the_place(root: nn.Module) -> Iterator[None]:
    """Turn an error of a forward pass into one that names the module in which it occurred."""
    paths: list[str] = []
    hooks = []

    def leave(*_: Any) -> None:
        paths.pop()

    for path, module in root.named_modules():
        hooks.append(module.register_forward_pre_hook(lambda *_, path=path: paths.append(path)))
        hooks.append(module.register_forward_hook(leave))
    try:
        with hooked(hooks), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except CaptureError:
        raise
    except Exception as error:
        path = paths[-1] if paths else ""
        name = repr(path) if path else "the network itself"
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CaptureError(
            f"the network cannot be traced: the forward pass of {name} "
            f"({type(root.get_submodule(path)).__name__}) failed with: {reason}. Its control flow "
            "must not depend on the data (if, for, len, int() on values of tensors) or on the "
            "number of samples; use torch.where, or sparsify the parts"
        ) from error
