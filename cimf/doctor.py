"""`cimf doctor`: what works on this machine, found out by trying it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from cimf.errors import CimfError
from cimf.runs.provenance import threads, versions
from cimf.runs.terminal import doing, print_table


@dataclass(frozen=True)
class Finding:
    """One line of the examination: a failure means that the main job could not run."""

    subject: str
    state: Literal["ok", "note", "FAIL"]
    detail: str


def examine() -> bool:
    """Print every finding; return whether the main job can run."""
    findings = []
    for check in CHECKS:
        with doing(f"{_name(check)} ..."):
            findings += _guarded(check)
    print_table(
        ["subject", "state", "what was found"],
        [[finding.subject, finding.state, finding.detail] for finding in findings],
        left=3,
    )
    return all(finding.state != "FAIL" for finding in findings)


def _guarded(check: Callable[[], Iterator[Finding]]) -> list[Finding]:
    """Run a check; an exception of any kind is itself a finding."""
    try:
        return list(check())
    except Exception as error:
        return [Finding(_name(check), "FAIL", f"{type(error).__name__}: {error}")]


def _name(check: Callable[[], Iterator[Finding]]) -> str:
    return check.__name__.strip("_").replace("_", " ")


def _versions() -> Iterator[Finding]:
    for name, found in versions().items():
        yield Finding(name, "ok" if found else "note", found or "not installed")


def _threads() -> Iterator[Finding]:
    import numpy  # noqa: F401 - loads the BLAS that threadpoolctl reports
    import scipy.linalg  # noqa: F401

    record = threads()
    limits = ", ".join(f"{key}={value}" for key, value in record["environment"].items())
    yield Finding(
        "CPUs", "ok", f"{record['cpus']}; {limits or 'no thread limit in the environment'}"
    )
    for library in record["libraries"]:
        name = f"{library['internal_api']} {library['version'] or ''}".strip()
        yield Finding(library["user_api"], "ok", f"{name}: {library['num_threads']} threads")


def _backends() -> Iterator[Finding]:
    from cimf.solve.conic.backends import backend_report

    for state in backend_report():
        yield Finding(f"backend {state.name}", "ok" if state.works else "note", state.detail)


def _gpu() -> Iterator[Finding]:
    import torch

    if torch.cuda.is_available():
        yield Finding("GPU", "ok", torch.cuda.get_device_name())
    else:
        yield Finding("GPU", "note", "none that torch can use; nothing here needs one")


def _data() -> Iterator[Finding]:
    from cimf.data.datasets import cache_folder, data_folder

    try:
        folder = data_folder()
    except CimfError as error:
        yield Finding("CIMF_DATA", "note", str(error))
        return
    if folder is None:
        where = f"not set; downloads are kept in {cache_folder()}"
        yield Finding("CIMF_DATA", "note", where)
    else:
        found = ", ".join(sorted(path.name for path in folder.iterdir() if path.is_dir()))
        yield Finding("CIMF_DATA", "ok", f"{folder}: {found or 'no data sets in it'}")


def _main_job() -> Iterator[Finding]:
    """Sparsify a tiny network for real; most of the time goes into loading and compiling."""
    import torch

    from cimf.methods.stacked.captured import Reference
    from cimf.methods.stacked.sparsify import sparsify_path
    from cimf.train.supervised import mlp

    samples = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
    (result,) = sparsify_path(Reference.capture(mlp((3, 4, 2), seed=0), [samples]), [0.5])
    report = result.report
    yield Finding(
        "main job",
        "ok",
        f"tiny network: {report.certified} of {len(report.solution.gap)} rows certified, worst gap "
        f"{report.solution.certificate.worst_gap:.0e}",
    )


CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    _versions,
    _threads,
    _backends,
    _gpu,
    _data,
    _main_job,
)
