"""Tracing by `torch.export`, for forward passes that symbolic tracing cannot follow.

Keyword arguments that are None, shapes that are unpacked, a choice by configuration: the
transformers library. The number of samples is left open; calls of linear maps are turned back into
calls of their modules.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from typing import Any

import torch
from torch import fx, nn

from cimf.network.batches import Batch, Inputs, arguments, joined, run
from cimf.network.graph import as_output

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
MATCHED = (nn.Conv1d, nn.Conv2d, nn.Linear)
_ATEN = torch.ops.aten
# Operations of an exported graph that are the call of a module; its tensors are the arguments.
_CALLS: dict[Any, tuple[type[nn.Module], ...]] = {
    _ATEN.linear: (nn.Linear,),
    _ATEN.conv1d: (nn.Conv1d,),
    _ATEN.conv2d: (nn.Conv2d,),
    _ATEN.batch_norm: NORMS,
    _ATEN.embedding: (nn.Embedding,),
}


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


def exported(root: nn.Module, sample: Batch) -> fx.Graph:
    """Trace by `torch.export`; a single sample is doubled, or its number would be a constant."""
    sample = joined([sample[:2], sample[:1]])[:2]
    args, kwargs = arguments(sample)
    as_output(run(root, sample, "calibration"), len(sample))
    many = {0: torch.export.Dim("samples")}
    shapes: Any = dict.fromkeys(kwargs, many) if kwargs else tuple(many for _ in args)
    with _silent():
        program = torch.export.export(root, args, kwargs, dynamic_shapes=shapes, strict=False)
    signature = program.graph_signature
    held = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    for name, target in signature.inputs_to_lifted_tensor_constants.items():
        held[name] = f"_constant_{name}"
        setattr(root, held[name], program.constants[target])
    graph, values = fx.Graph(), {}
    # By keyword, the program may have them in the order of the signature.
    names = sample.names if isinstance(sample, Inputs) and sample.names else signature.user_inputs
    inputs = {name: graph.placeholder(str(name)) for name in names}
    for node in program.graph.find_nodes(op="placeholder"):
        path = held.get(node.name)
        values[node] = graph.get_attr(path) if path else inputs[node.name]
    outputs: Any = graph.graph_copy(program.graph, values)
    found = outputs[len(outputs) - len(signature.user_outputs) :]  # before them: buffers' changes
    graph.output(found[0] if len(found) == 1 else found)
    for node in list(graph.nodes):
        _as_module_call(node, root)
    for node in reversed(graph.nodes):
        changes = getattr(getattr(node.target, "_schema", None), "is_mutable", False)
        if not node.users and node.op in ("call_function", "get_attr") and not changes:
            graph.erase_node(node)
        stack = node.meta.get("nn_module_stack") or {"": ("", None)}
        node.meta["owner"] = list(stack.values())[-1][0]
    return graph


def _as_module_call(node: fx.Node, root: nn.Module) -> None:
    """Replace an operation on the tensors of a module by the call of the module."""
    operation = getattr(node.target, "overloadpacket", None)
    kinds = _CALLS.get(operation)
    table = operation is _ATEN.embedding  # reads its second argument in its first
    tensors = [
        str(value.target).rpartition(".")
        for value in (node.args[:1] if table else node.args[1:])
        if isinstance(value, fx.Node) and value.op == "get_attr"
    ]
    if kinds is None or not tensors:
        return
    if len({path for path, _, _ in tensors}) != 1 and operation is not _ATEN.linear:
        return
    path = tensors[0][0]
    module: Any = root.get_submodule(path)
    if not isinstance(module, kinds):  # one matrix of two modules goes by the name of the first
        weight = getattr(module, tensors[0][2], None)
        heads = [p for p, m in root.named_modules() if isinstance(m, kinds) and m.weight is weight]
        if not heads:
            return
        path = heads[0]
        module = root.get_submodule(path)
    if any(owner != path for owner, _, _ in tensors[1:]):
        return
    own = {name for name in ("weight", "bias") if getattr(module, name, None) is not None}
    # Padding other than by zeros is an operation of its own in the graph, before the convolution.
    plain = getattr(module, "padding_mode", "zeros") == "zeros"
    if isinstance(module, kinds) and plain and own <= {name for _, _, name in tensors}:
        with node.graph.inserting_before(node):
            call = node.graph.call_module(path, (node.args[1 if table else 0],))
        node.replace_all_uses_with(call)
        node.graph.erase_node(node)
