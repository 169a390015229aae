"""Rewriting a traced graph: nothing in place, no dropout, no identities."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from cimf.errors import CaptureError

_ATEN = torch.ops.aten
_DROPOUT = {functional.dropout, torch.dropout, _ATEN.dropout.default}


def out_of_place(module: fx.GraphModule) -> None:
    """Let no operation change its input: pre-activations are targets, inputs are the caller's.

    What is read after a change in place is read from its result. A change through a view is not
    seen by the other readers of the same memory: the output differs, which is checked.

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


def erase_identities(module: fx.GraphModule) -> None:
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
