"""What is refused before a network's layers become row problems, by name and with advice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from cimf.errors import CaptureError
from cimf.network.batches import Batch, arguments
from cimf.network.copies import difference, tolerance
from cimf.network.exported import MATCHED, NORMS
from cimf.network.graph import Graph, as_output, op_name
from cimf.network.patches import Layer, grid, patches, targets

# Modules that own arrays which are no matrices, or are looked up, and stay as they are.
_LEFT_ALONE = (
    nn.Embedding,
    nn.EmbeddingBag,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.modules.batchnorm._BatchNorm,
    nn.PReLU,
    getattr(nn, "RMSNorm", nn.LayerNorm),  # torch 2.4
)
# Operations in which an array acts as a matrix, without the overload or underscore.
_PRODUCTS = {
    "linear", "matmul", "mm", "bmm", "addmm", "baddbmm", "einsum", "tensordot", "bilinear",
    "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d",
    "convolution", "scaled_dot_product_attention", "multi_head_attention_forward", "lstm", "gru",
    "rnn_tanh", "rnn_relu", "dot", "mv", "inner", "outer", "kron", "cdist", "__matmul__",
    "__rmatmul__",
}  # fmt: skip
# Modules whose parameters are overwritten.
_CHANGED = (*MATCHED, *NORMS)
_SHAPES = {"size", "sym_size", "shape", "dim", "ndim", "dtype", "device", "numel"}
# Positions of an output on which a layer is compared with its patches.
_POSITIONS = 64


def refuse_shared(net: nn.Module) -> None:
    """Refuse parameters and statistics of a layer or batch norm that another module owns too.

    Raises
    ------
    CaptureError
    """
    owners: dict[int, tuple[str, nn.Module]] = {}
    for path, module in net.named_modules():
        if not isinstance(module._parameters.get("weight"), nn.Parameter) and isinstance(
            module, MATCHED
        ):
            raise CaptureError(
                f"{_words(path, module)} has a weight that is no parameter, it is computed by a "
                "hook: make it a parameter, or use torch.nn.utils.parametrize"
            )
        own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        for name, value in own:
            other, owner = owners.setdefault(id(value), (path, module))
            if (
                owner is not module
                and not _tied_head(module, owner)
                and any(isinstance(m, _CHANGED) for m in (module, owner))
            ):
                raise CaptureError(
                    f"{_words(path, module)} shares its {name} with {other!r}: it cannot be chosen "
                    f"for one of them alone. Give it a copy: layer.{name} = "
                    f"nn.Parameter(layer.{name}.detach().clone())"
                )


def _tied_head(one: nn.Module, other: nn.Module) -> bool:
    """Whether one is a linear layer and the other a plain table with the same matrix."""
    tables = [m for m in (one, other) if type(m) is nn.Embedding and m.max_norm is None]
    heads = [m for m in (one, other) if isinstance(m, nn.Linear)]
    return len(tables) == len(heads) == 1 and tables[0].weight is heads[0].weight


def refuse_matrices(graph: Graph, net: nn.Module) -> None:
    """Refuse matrices that are applied otherwise than by calling a layer that is matched.

    Parameters that only scale, shift or are looked up (class tokens, position embeddings, tables of
    attention biases) are no matrices.

    Parameters
    ----------
    net : nn.Module
        What was traced: of a module that is not called the graph has the parameters only.

    Raises
    ------
    CaptureError
    """
    # What is computed from parameters and shapes alone: the name of an array in it, or "".
    constant: dict[fx.Node, str] = {}
    for node in graph.nodes:
        called = graph.called(node)
        if called is not None and not isinstance(called, MATCHED):
            for path, part in called.named_modules():
                _refuse_owner(f"{node.target}.{path}".rstrip("."), part)
        inputs = node.all_input_nodes
        if node.op == "get_attr":
            constant[node] = _array(net, node)
        elif node.op != "placeholder" and all(n in constant for n in inputs):
            # The output of a layer is no parameter any more.
            names = [constant[n] for n in inputs if constant[n]]
            constant[node] = names[0] if names and called is None else ""
        elif op_name(node) in _SHAPES or (node.target is getattr and node.args[1] in _SHAPES):
            constant[node] = ""
        elif op_name(node) in _PRODUCTS:
            attention = op_name(node) == "scaled_dot_product_attention"  # it adds its mask
            added = {*node.args[3:], node.kwargs.get("attn_mask")} if attention else set()
            for name in (constant[n] for n in inputs if constant.get(n) and n not in added):
                _refuse_product(net, node, name)


def _owner(net: nn.Module, target: str) -> tuple[str, nn.Module, str]:
    """Return path and module that own a tensor, and its name there."""
    path, _, name = target.rpartition(".")
    try:
        return path, net.get_submodule(path), name
    except AttributeError:  # the network is the layer
        return "", net, name


def _array(net: nn.Module, node: fx.Node) -> str:
    """Return the name of a parameter that could be a matrix; "" for others and for buffers."""
    path, owner, name = _owner(net, str(node.target))
    if isinstance(owner, MATCHED):
        raise CaptureError(
            f"{_words(path, owner)} has its {name} read by {next(iter(node.users)).name!r} and not "
            "by a call of the module alone: call the module, without a forward of its own class"
        )
    value = owner._parameters.get(name)
    hidden = name.startswith("_constant_")  # read from a closure, not from a module
    return str(node.target) if hidden or (value is not None and value.ndim > 1) else ""


def _refuse_owner(path: str, module: nn.Module) -> None:
    if isinstance(module, _LEFT_ALONE):
        return
    for name, value in module.named_parameters(recurse=False):
        if value.ndim > 1 and isinstance(module, nn.MultiheadAttention):
            raise CaptureError(
                f"{_words(path, module)} is not supported: it adds keys and values of its own "
                "(add_bias_kv, add_zero_attn) or is a subclass. Write it with three nn.Linear"
            )
        if value.ndim > 1:
            raise CaptureError(
                f"{_words(path, module)} is not supported: its {name} is applied inside of it, and "
                "only calls of nn.Conv1d, nn.Conv2d and nn.Linear are matched. Write it with "
                "these, or sparsify the parts before and after it"
            )


def _refuse_product(net: nn.Module, node: fx.Node, name: str) -> None:
    path, owner, own = _owner(net, name)
    if own not in owner._parameters:
        raise CaptureError(
            f"the network applies a matrix that is no parameter of it in {op_name(node)!r}: a "
            "module that is read from a closure must be registered (self.name = module)"
        )
    _refuse_owner(path, owner)
    raise CaptureError(
        f"{_words(path, owner)} applies its {own} as a matrix in {op_name(node)!r}: write it with "
        "nn.Conv1d, nn.Conv2d or nn.Linear"
    )


def _words(path: str, module: nn.Module) -> str:
    return f"layer {path or 'the network itself'!r} ({type(module).__name__})"


@torch.no_grad()
def sample_axes(graph: Graph, sample: Batch) -> dict[fx.Node, int | None]:
    """Return where every value has the samples; refuse networks that mix them.

    Returns
    -------
    dict of fx.Node to int or None
        The axis along which the samples follow each other, each with its values in a row; None
        where they alternate. Values that are the same for all samples are left out.

    Raises
    ------
    CaptureError
        The message names the first operation that mixes them.
    """
    fewer = (len(sample) + 1) // 2
    lanes = [graph.lane(u) for u in (sample, sample[:fewer])]
    axes: dict[fx.Node, int | None] = {}
    for node in graph.walk(*lanes):
        whole, part = (lane[node] for lane in lanes)
        if not isinstance(whole, Tensor) or whole.shape == part.shape:
            continue
        differ = [k for k in range(whole.ndim) if part.shape[k : k + 1] != whole.shape[k : k + 1]]
        axes[node] = None
        if len(differ) != 1 or whole.ndim != part.ndim or not whole.is_floating_point():
            continue
        axis = differ[0]
        first = whole.narrow(axis, 0, part.shape[axis])
        if difference(first, part) <= tolerance(graph.dtype):
            axes[node] = axis
        elif axis == 0 and len(whole) == len(sample):
            raise CaptureError(
                f"{graph.where(node)} mixes the samples of a batch: they must be in the first "
                "dimension, and its values for one must not depend on the others"
            )
    return axes


@torch.no_grad()
def check_layers(net: nn.Module, layers: Sequence[Layer], sample: Batch) -> Tensor:
    """Run a network; every layer must be called as in its graph, as W x + b with its own W and b.

    Parameters
    ----------
    net : nn.Module
        A `working_copy`, which is changed: it gets hooks.

    Returns
    -------
    Tensor
        The output.

    Raises
    ------
    CaptureError
        A layer is something else; the message names it.
    """
    seen: dict[str, int] = {}

    def compare(layer: Layer, module: Any, x: Tensor, z: Tensor) -> None:
        seen[layer.path] = seen.get(layer.path, 0) + 1
        one = Layer(layer.path, layer.node, module)
        x, z = x[:2], z[:2]
        where = grid(one, z, _POSITIONS, np.random.default_rng(0))
        weight = one.module.weight.flatten(1).unflatten(0, (one.groups, -1))
        design = patches(one, x, where).reshape(one.groups, -1, one.n_columns)
        product = torch.cat(list(design @ weight.mT), -1)
        scale = torch.cat(list(design.abs() @ weight.abs().mT), -1).nan_to_num().max()
        if one.has_bias:
            product = product + module.bias
            scale = scale + module.bias.abs().max()
        wanted = targets(one, z, where)
        finite = product.isfinite() & wanted.isfinite()  # overflow is named when states are taken
        error = (product - wanted).where(finite, 0.0).abs().max()
        if not error <= 1e3 * torch.finfo(z.dtype).eps * scale:
            raise CaptureError(
                f"{_words(layer.path, module)} does not return its weight times its input plus its "
                f"bias (difference {float(error):.1e}): its class or a hook does something else"
            )

    for layer in layers:

        def hook(
            module: nn.Module, args: Any, kwargs: Any, out: Tensor, layer: Layer = layer
        ) -> None:
            compare(layer, module, args[0] if args else kwargs["input"], out)

        net.get_submodule(layer.path).register_forward_hook(hook, with_kwargs=True)
    args, kwargs = arguments(sample.clone())
    output = as_output(net(*args, **kwargs), len(sample))
    for layer in layers:
        if seen.get(layer.path) != len(layer.calls):
            raise CaptureError(
                f"layer {layer.path!r} was called {seen.get(layer.path, 0)} times by the network "
                f"and {len(layer.calls)} times by its graph"
            )
    return output
