"""The layered design and every baseline at several sparsities: one table, two figures."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cimf.baselines import BASELINES
from cimf.layered.sparsify import Calibration, SparseNetwork
from cimf.results import RunFolder
from cimf.tables import markdown
from cimf.terminal import out, print_table

LEVELS = (0.6, 0.75, 0.8, 0.9)
OURS = "layered"


@torch.no_grad()
def accuracy(net: nn.Module, inputs: Tensor, labels: Tensor, batch: int = 500) -> float:
    """Return the share of correct labels; inputs (m, ...), labels (m,)."""
    right = 0
    for u, label in zip(inputs.split(batch), labels.split(batch), strict=True):
        right += int((net(u).argmax(1) == label).sum())
    return right / len(labels)


def compare(
    name: str,
    folder: Path,
    settings: dict[str, Any],
    load: Callable[[], tuple[nn.Module, Tensor, Tensor, Tensor, dict[str, Any]]],
    *,
    levels: Sequence[float] = LEVELS,
    methods: Sequence[str] = (OURS, *BASELINES),
    dense_head: Sequence[str] = (),
    positions: int | None = 128,
    overwrite: bool = False,
) -> list[dict[str, Any]]:
    """Run methods at sparsity levels on the same calibration samples and write a results folder.

    Parameters
    ----------
    load : () -> (network, calibration inputs, test inputs, test labels, data description)
    dense_head : sequence of str
        Layers that the baselines keep dense, where that is better for them.
    positions : int, optional
        As `cimf.layered.sparsify.sparsify_layers`.

    Returns
    -------
    list of dict
        One row per method and level.
    """
    run = RunFolder.claim(
        folder,
        {**settings, "levels": levels, "methods": methods, "positions": positions},
        overwrite,
    )
    net, calibration, inputs, labels, data = load()
    dense = accuracy(net, inputs, labels)
    out.print(f"{name}: dense {dense:.2%} on {len(labels):,} test images")
    start = time.perf_counter()
    captured = Calibration(net, calibration, positions=positions, precision=torch.float32)
    captured.survey  # noqa: B018 - the statistics that all methods share
    shared = time.perf_counter() - start
    rows: list[dict[str, Any]] = []
    shares: dict[float, dict[str, float]] = {}
    texts: list[str] = []
    for level in levels:
        for method in methods:
            start = time.perf_counter()
            result = _run(captured, method, level, tuple(dense_head))
            seconds = time.perf_counter() - start
            value = accuracy(result.network, inputs, labels)
            report = result.report
            rows.append({
                "method": method,
                "target": level,
                "accuracy": value,
                **{f"sparsity_{key}": number for key, number in report.sparsity.items()},
                "nonzero_weights": report.nonzeros["network_weights"][0],
                "emptied_rows": sum(len(layer.emptied) for layer in report.layers),
                "unread_channels": sum(layer.unread for layer in report.layers),
                "head_mismatch": report.layers[-1].mismatch,
                "seconds": seconds,
            })  # fmt: skip
            out.print(f"  {level:.0%} {method}: {value:.2%} ({seconds:.0f} s)")
            if method == OURS:
                shares[level] = {layer.path: layer.sparsity for layer in report.layers}
            texts.append(f"{method}, {level:.0%}: {value:.2%}\n{report}")
    title = ["method", *(f"{level:.0%}" for level in levels)]
    table = [
        [method, *(f"{100 * r['accuracy']:.2f}" for r in rows if r["method"] == method)]
        for method in methods
    ]
    print_table(title, table, title=name)
    plot(rows, shares, dense, run.path, name)
    import pandas as pd

    sources = "".join(f"- {key}: {BASELINES[key].source}\n" for key in methods if key in BASELINES)
    run.finish(
        {
            "table.csv": pd.DataFrame(rows).to_csv(index=False),
            "table.md": (
                f"# {name}\n\nTest accuracy in percent at equal sparsity of all convolution and "
                f"linear weights; dense {dense:.2%}.\n\n{markdown(title, table)}\n{sources}"
            ),
            "layers.txt": "\n\n".join(texts) + "\n",
        },
        ("accuracy.png", "layers.png") if shares else ("accuracy.png",),
        data=data,
        dense_accuracy=dense,
        samples={"calibration": captured.n_samples, "test": len(labels)},
        seconds={"shared statistics": shared},
    )
    return rows


def _run(
    captured: Calibration, method: str, level: float, dense_head: tuple[str, ...]
) -> SparseNetwork:
    if method == OURS:
        return captured.sparsify(level)
    return BASELINES[method].run(captured, level, keep=dense_head)


def plot(
    rows: Sequence[dict[str, Any]],
    shares: dict[float, dict[str, float]],
    dense: float,
    folder: Path,
    title: str,
) -> None:
    """Write accuracy.png (accuracy against sparsity) and layers.png (sparsity of every layer)."""
    from matplotlib.figure import Figure

    from cimf.files import atomic_path

    figure = Figure(figsize=(7.2, 4.5), dpi=160, layout="constrained")
    axes = figure.add_subplot()
    for k, method in enumerate(dict.fromkeys(row["method"] for row in rows)):
        part = [row for row in rows if row["method"] == method]
        axes.plot(
            [100 * row["sparsity_network_weights"] for row in part],
            [100 * row["accuracy"] for row in part],
            marker="osD^vPX*"[k % 8],
            linewidth=2.2 if method == OURS else 1.2,
            linestyle="-" if method == OURS else "--",
            label=method,
        )
    axes.axhline(100 * dense, color="0.35", linewidth=1.0, zorder=0)
    axes.set_xlabel("sparsity of all convolution and linear weights (%)")
    axes.set_ylabel("test accuracy (%)")
    axes.grid(color="0.92", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    axes.set_title(title, fontsize=10, loc="left")
    with atomic_path(folder / "accuracy.png") as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})
    if not shares:
        return
    figure = Figure(figsize=(7.2, 4.0), dpi=160, layout="constrained")
    axes = figure.add_subplot()
    for level, layers in shares.items():
        axes.plot(list(layers), [100 * value for value in layers.values()], marker="o",
                  markersize=4, label=f"{level:.0%}")  # fmt: skip
    axes.tick_params(axis="x", rotation=90, labelsize=7)
    axes.set_ylabel("sparsity of the layer (%)")
    axes.legend(frameon=False, fontsize=8, title="whole network")
    axes.spines[["top", "right"]].set_visible(False)
    with atomic_path(folder / "layers.png") as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})
