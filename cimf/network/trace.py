"""A network as a flat graph: its convolutions, linear modules and batch norms stay module calls.

Symbolic tracing (`torch.fx`) comes first. Forward passes that it cannot follow (keyword arguments
that are None, shapes that are unpacked, a choice by configuration: the transformers library) are
traced by `torch.export` on a sample, with the number of samples left open; calls of linear maps
are turned back into calls of their modules. Only control flow that depends on values is refused.
"""

from __future__ import annotations

import inspect
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from cimf.errors import CaptureError
from cimf.network.batches import run

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
MATCHED = (nn.Conv1d, nn.Conv2d, nn.Linear)
# Modules that own matrices and stay as they are; every other unmatched matrix is refused.
_LEFT_ALONE = (nn.Embedding, nn.EmbeddingBag)
_ATEN = torch.ops.aten
# Operations of an exported graph that are the call of a module; its tensors are the arguments.
_CALLS: dict[Any, tuple[type[nn.Module], ...]] = {
    _ATEN.linear: (nn.Linear,),
    _ATEN.conv1d: (nn.Conv1d,),
    _ATEN.conv2d: (nn.Conv2d,),
    _ATEN.batch_norm: NORMS,
}
_DROPOUT = {functional.dropout, torch.dropout, _ATEN.dropout.default}


def trace(root: nn.Module, sample: Tensor | None = None) -> fx.GraphModule:
    """Return the graph of a network in eval mode, with nothing done in place and no dropout.

    Parameters
    ----------
    root : nn.Module
        Becomes the owner of the graph's modules.
    sample : Tensor, optional
        Input (b, ...) on which a network that cannot be traced symbolically is run.

    Raises
    ------
    InputError
        The network fails on the sample.
    CaptureError
        A module that owns matrices cannot be matched, shares its weight, or the control flow
        depends on the data. The message names the module's path.
    """
    _refuse_matrices(root)
    if sample is not None:
        with torch.no_grad():
            run(root, sample, "calibration")
    try:
        module = _naming_the_place(root, lambda: fx.GraphModule(root, fx.Tracer().trace(root)))
    except CaptureError:
        if sample is None:
            raise
        module = _naming_the_place(root, lambda: _exported(root, sample))
    _out_of_place(module)
    _erase_identities(module)
    _refuse_weights_read_elsewhere(module, root)
    return module


def _refuse_matrices(root: nn.Module) -> None:
    """Raise where a matrix belongs to no module that is matched or left alone, or to two."""
    owners: dict[int, str] = {}
    for path, module in root.named_modules():
        matched = isinstance(module, MATCHED)
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.ndim < 2:
                continue
            what = f"layer {path or 'the network itself'!r} ({type(module).__name__})"
            owner = owners.setdefault(id(parameter), path)
            if owner != path and (matched or isinstance(root.get_submodule(owner), MATCHED)):
                raise CaptureError(
                    f"{what} shares its {name} with {owner!r}: its rows have no single design. "
                    f"Give it a copy: layer.{name} = nn.Parameter(layer.{name}.detach().clone())"
                )
            if isinstance(module, nn.MultiheadAttention):
                raise CaptureError(
                    f"{what} is not supported: it keeps the weights of query, key and value in one "
                    f"parameter ({name}). Write it with three nn.Linear"
                )
            if not matched and not isinstance(module, _LEFT_ALONE):
                raise CaptureError(
                    f"{what} is not supported: its {name} belongs to no convolution (1-D, 2-D) or "
                    "linear module. Write it with nn.Conv1d, nn.Conv2d or nn.Linear"
                )


def _naming_the_place(root: nn.Module, attempt: Callable[[], fx.GraphModule]) -> fx.GraphModule:
    """Return the attempt's graph, or raise an error that names the module in which it failed."""
    with _running(root) as paths, warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        try:
            return attempt()
        except CaptureError:
            raise
        except Exception as error:
            path = paths[-1] if paths else ""
            place = (
                f"{path!r} ({type(root.get_submodule(path)).__name__})"
                if path
                else f"the network itself ({type(root).__name__})"
            )
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise CaptureError(
                f"the network cannot be traced: the forward pass of {place} failed with: {reason}. "
                "Its control flow must not depend on the data (if, for, len, int() on values of "
                "tensors) or on the number of samples; use torch.where, or sparsify the parts"
            ) from error


@contextmanager
def _running(root: nn.Module) -> Iterator[list[str]]:
    """Yield the paths of the modules whose forward pass is running, the innermost last."""
    paths: list[str] = []

    def leave(*_: Any) -> None:
        paths.pop()

    hooks = []
    for path, module in root.named_modules():
        hooks.append(module.register_forward_pre_hook(lambda *_, path=path: paths.append(path)))
        hooks.append(module.register_forward_hook(leave))
    try:
        yield paths
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _silent() -> Iterator[None]:
    """Keep what torch.export logs and prints about a failure off the terminal: we raise it."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(disabled)


def _exported(root: nn.Module, sample: Tensor) -> fx.GraphModule:
    """Trace by `torch.export`; a single sample is doubled, or its number would be a constant."""
    sample = torch.cat([sample[:2], sample[:1]])[:2]
    output = root(sample)
    if not isinstance(output, Tensor):
        raise CaptureError(
            f"the network returns a {type(output).__name__}; one tensor with the samples first is "
            "needed. Wrap it in a module that returns that one (for a classifier of the "
            "transformers library: cimf.data.text.TokenClassifier)"
        )
    with _silent():
        program = torch.export.export(
            root, (sample,), dynamic_shapes=({0: torch.export.Dim("samples")},), strict=False
        )
    signature = program.graph_signature
    held = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    for name, target in signature.inputs_to_lifted_tensor_constants.items():
        held[name] = f"_constant_{name}"
        setattr(root, held[name], program.constants[target])
    graph, values = fx.Graph(), {}
    for node in program.graph.find_nodes(op="placeholder"):
        path = held.get(node.name)
        values[node] = graph.get_attr(path) if path else graph.placeholder(node.name)
    outputs: Any = graph.graph_copy(program.graph, values)
    graph.output(outputs[0])
    for node in list(graph.nodes):
        _as_module_call(node, root)
    for node in reversed(graph.nodes):
        changes = getattr(getattr(node.target, "_schema", None), "is_mutable", False)
        if not node.users and node.op in ("call_function", "get_attr") and not changes:
            graph.erase_node(node)
    return fx.GraphModule(root, graph)


def _as_module_call(node: fx.Node, root: nn.Module) -> None:
    """Replace an operation on the tensors of a module by the call of the module."""
    kinds = _CALLS.get(getattr(node.target, "overloadpacket", None))
    names = [
        str(value.target)
        for value in node.args[1:]
        if isinstance(value, fx.Node) and value.op == "get_attr"
    ]
    if kinds is None or not names:
        return
    path = names[0].rpartition(".")[0]
    module: Any = root.get_submodule(path)
    # Padding other than by zeros is an operation of its own in the graph, before the convolution.
    if isinstance(module, kinds) and getattr(module, "padding_mode", "zeros") == "zeros":
        with node.graph.inserting_before(node):
            call = node.graph.call_module(path, (node.args[0],))
        node.replace_all_uses_with(call)
        node.graph.erase_node(node)


def _out_of_place(module: fx.GraphModule) -> None:
    """Let no operation change its input: pre-activations are targets, inputs are the caller's.

    What is read after a change in place is read from its result. A change through a view is not
    seen by the other readers of the same memory: the output differs, which `Calibration` checks.

    Raises
    ------
    CaptureError
        An operation in place that has no counterpart; the message names it.
    """
    changing = set()
    for part in module.modules():
        if getattr(part, "inplace", False):
            part.inplace = False  # type: ignore[assignment]
            changing.add(part)
    order = {node: k for k, node in enumerate(module.graph.nodes)}
    for node in order:
        if node.op == "call_module":
            changed = module.get_submodule(str(node.target)) in changing
        else:
            changed = _without_inplace(node) or _counterpart(node)
        if changed:
            source = node.all_input_nodes[0]
            source.replace_all_uses_with(
                node, delete_user_cb=lambda user, node=node: order[user] > order[node]
            )


def _without_inplace(node: fx.Node) -> bool:
    """Set a function's argument `inplace` to False; return whether it was True."""
    if node.kwargs.get("inplace"):
        node.update_kwarg("inplace", False)
        return True
    if getattr(node.target, "__module__", "") != functional.__name__:
        return False
    names = list(inspect.signature(node.target).parameters)  # type: ignore[arg-type]
    place = names.index("inplace") if "inplace" in names else len(node.args)
    if place < len(node.args) and node.args[place]:
        node.update_arg(place, False)
        return True
    return False


def _counterpart(node: fx.Node) -> bool:
    """Replace an operation in place by the one that returns a new tensor; say whether it was one.

    PyTorch names the former with a trailing underscore; `x += y` of a symbolic trace is no change.
    """
    target: Any = node.target
    if node.op not in ("call_method", "call_function"):
        return False
    overload = isinstance(target, torch._ops.OpOverload)
    name = str(getattr(target.overloadpacket if overload else target, "__name__", target))
    changes = target._schema.is_mutable if overload else name.endswith("_")
    if not changes or name.endswith("__"):
        return False
    owners = (
        (_ATEN,) if overload else (Tensor,) if node.op == "call_method" else (torch, functional)
    )
    owner = next((o for o in owners if callable(getattr(o, name[:-1], None))), None)
    found: Any = getattr(owner, name[:-1], None)
    if overload:
        found = getattr(found, target._overloadname, None)
    if found is None:
        raise CaptureError(
            f"the network changes a tensor in place by {name} ({node.name!r}), which has no "
            "counterpart that returns a new tensor: write it out of place, for example with "
            "torch.where"
        )
    node.target = name[:-1] if node.op == "call_method" else found
    return True


def _erase_identities(module: fx.GraphModule) -> None:
    """Remove dropout, which does nothing in eval mode, and identities."""
    for node in list(module.graph.nodes):
        if node.op == "call_module":
            called = module.get_submodule(str(node.target))
            nothing = isinstance(called, nn.Identity | nn.modules.dropout._DropoutNd)
        else:
            training = node.kwargs.get("training", node.args[2] if len(node.args) > 2 else True)
            nothing = node.target in _DROPOUT and training is False
        if nothing:
            node.replace_all_uses_with(node.all_input_nodes[0])
            module.graph.erase_node(node)
    module.recompile()


def _refuse_weights_read_elsewhere(module: fx.GraphModule, root: nn.Module) -> None:
    for node in module.graph.nodes:
        if node.op != "get_attr":
            continue
        path, _, name = str(node.target).rpartition(".")
        owner = root.get_submodule(path)
        if name == "weight" and isinstance(owner, MATCHED):
            raise CaptureError(
                f"layer {path!r} ({type(owner).__name__}) has its weight read by "
                f"{next(iter(node.users)).name!r} and not by a call of the module: call the module"
            )
