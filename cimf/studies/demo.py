"""The demonstration: the main job on data that is embedded in scikit-learn, within a minute."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from cimf.data import datasets
from cimf.methods.stacked.captured import Reference
from cimf.methods.stacked.sparsify import PathOptions, Sparsified
from cimf.studies.kappa_sweep import run_sweep
from cimf.train.supervised import Schedule, batches, trained_mlp

SIZES = (64, 32, 16, 10)
SCHEDULE = Schedule(epochs=40, learning_rate=1e-2, batch_size=128)


def run(
    folder: str | Path,
    *,
    seed: int = 0,
    overwrite: bool = False,
    options: PathOptions | None = None,
) -> list[Sparsified]:
    """Train an MLP 64-32-16-10 on the digits and sweep kappa; see `run_sweep`."""
    data = datasets.digits()

    def network() -> Reference:
        return Reference.capture(
            trained_mlp(SIZES, data, seed=seed, schedule=SCHEDULE),
            batches(data.train_inputs, data.train_labels),
            batches(data.test_inputs, data.test_labels),
        )

    return run_sweep(
        f"digits, MLP {'-'.join(map(str, SIZES))}",
        folder,
        {"network": {"sizes": SIZES, **asdict(SCHEDULE)}, "seed": seed},
        network,
        configurations=(("full", True), ("full", False)),
        paper=True,
        dataset=data,
        overwrite=overwrite,
        options=options,
    )
