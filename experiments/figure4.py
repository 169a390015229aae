"""Figure 4 of the paper: test performance against the share of the training data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from cimf.runs.terminal import one_line_errors
from experiments.options import Full, KeepGoing, Networks, Overwrite
from experiments.trained_networks import chosen_networks

# By network, where the plan is not the default one: the digits have 65 columns and 1,348 samples,
# ResNet-20 needs a minute for a cell.
_PLANS: dict[str, dict[str, Any]] = {
    "digits": {"shares": (0.05, 0.1, 0.2, 0.3, 0.5, 1.0)},
    "fashion-mlp": {},
    "cifar10": {"data": 5_000, "tests": 2_000, "seeds": (0,), "shares": (0.02, 0.1, 0.2, 0.5, 1.0)},
}
_QUICK, _FULL = ("digits",), ("fashion-mlp",)


def main(
    out: Annotated[Path, typer.Option(help="Results folder, one below it per network.")] = Path(
        "results/figure4"
    ),
    full: Full = False,
    network: Networks = None,
    keep_going: KeepGoing = False,
    overwrite: Overwrite = False,
) -> None:
    """Figure 4: test performance against the share of the training data, and where it flattens."""
    with one_line_errors():
        from cimf.studies.data_share import SharePlan, data_share

        for key, title, load in chosen_networks(network, _FULL if full else _QUICK, _PLANS):
            data_share(
                f"Figure 4, {title}", out / key, load, SharePlan(**_PLANS[key]),
                overwrite=overwrite, keep_going=keep_going,
            )  # fmt: skip
