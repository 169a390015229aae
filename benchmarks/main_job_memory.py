"""Peak memory of the main job: 60,000 Fashion-MNIST images through an MLP 784-1024-1024-10.

    CIMF_DATA=data python -m benchmarks.main_job_memory

Prints the peak of the process after every stage; the states of all samples would take 2 GB alone.
"""

from __future__ import annotations

import resource
import sys
from typing import Annotated

import typer

SIZES = (784, 1024, 1024, 10)


def peak() -> float:
    """Return the largest memory of this process so far in GiB."""
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size / (2**30 if sys.platform == "darwin" else 2**20)


def main(
    images: Annotated[int, typer.Option(help="Calibration images.")] = 60_000,
    kappa: Annotated[float, typer.Option(help="Radius of the ball.")] = 0.001,
) -> None:
    """Train for one epoch, capture, take moments, solve, evaluate."""
    import cimf
    from cimf.data import datasets
    from cimf.methods.stacked.moments import Moments
    from cimf.train.supervised import Schedule, batches, trained_mlp

    data = datasets.fashion_mnist()
    schedule = Schedule(epochs=1, learning_rate=1e-3, batch_size=256)
    net = trained_mlp(SIZES, data, seed=0, schedule=schedule)
    print(f"{peak():.2f} GiB  data and network", flush=True)
    reference = cimf.Reference.capture(
        net,
        batches(data.train_inputs[:images], data.train_labels[:images]),
        batches(data.test_inputs, data.test_labels),
    )
    print(f"{peak():.2f} GiB  captured and checked", flush=True)
    moments = Moments.of(reference)
    print(f"{peak():.2f} GiB  moments", flush=True)
    (result,) = cimf.sparsify_path(reference, [kappa], "causal", moments=moments)
    print(f"{peak():.2f} GiB  solved and evaluated\n\n{result.report}")


if __name__ == "__main__":
    typer.run(main)
