"""Sweeps and layered runs as folders: what is refused, what is kept, what the manifest says."""

import json
from dataclasses import replace

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from cimf.errors import CertificateError, InputError, RunError, UnknownNameError
from cimf.methods.stacked.captured import Reference
from cimf.methods.stacked.path_options import PathOptions
from cimf.methods.stacked.sparsify import sparsify
from cimf.runs.folder import MANIFEST, UNFINISHED
from cimf.studies import kappa_sweep as sweep
from cimf.studies.kappa_sweep import run_sweep
from cimf.studies.prune_run import run_prune


def network():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.ReLU(), torch.nn.Linear(5, 3))
    inputs = torch.randn(120, 4)
    labels = net(inputs).argmax(dim=1)
    return net, [inputs[:80]], [(inputs[80:], labels[80:])]


def never():
    pytest.fail("the network was trained")


def swept(folder, make=lambda: Reference.capture(*network()), **given):
    return run_sweep("a sweep", folder, {"seed": 0}, make, **{"kappas": (0.1, 0.5), **given})


def record(folder, name=MANIFEST):
    return json.loads((folder / name).read_text())


@pytest.mark.parametrize(
    ("options", "name"),
    [
        (PathOptions(tol=1e-8), "tol"),
        (PathOptions(refit=False), "refit"),
        (PathOptions(method="exact"), "method"),
        (PathOptions(method="cvxpy", backend="clarabel"), "backend, method"),
        (PathOptions(output_inputs=True), "output_inputs"),
        (PathOptions(allow_ill_posed=True), "allow_ill_posed"),
        (PathOptions(keep_going=True), "keep_going"),
    ],
)
def test_other_options_in_the_same_folder_are_refused(tmp_path, options, name):
    swept(tmp_path)
    with pytest.raises(RunError, match=rf"another run \(other {name}\)"):
        swept(tmp_path, never, options=options)
    settings = record(tmp_path)["settings"]
    assert settings["tol"] == 1e-9, "defaults are settings, too"
    assert "n_jobs" not in settings, "threads change no number"
    assert len(swept(tmp_path, options=PathOptions(n_jobs=1))) == 2


def test_options_that_do_not_exist_are_refused_before_any_work(tmp_path):
    with pytest.raises(TypeError, match="keep_goin"):
        swept(tmp_path, never, keep_goin=True)
    with pytest.raises(TypeError, match="keep_goin"):
        PathOptions(keep_goin=True)
    with pytest.raises(UnknownNameError, match=r"unknown option 'keep_goin'; known: .*keep_going"):
        sparsify(*network()[:2], keep_goin=True)
    for options in ({"method": "magic"}, {"tol": -1.0}, {"n_jobs": 0}, {"keep_going": 1}):
        with pytest.raises(InputError):
            PathOptions(**options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kappa", [[0.1, 0.5], (0.1,), "0.5", torch.tensor([0.1, 0.2]), 1j])
def test_several_kappas_are_sent_to_the_path(kappa):
    net, batches, _ = network()
    with pytest.raises(InputError, match=r"kappa must be one number, got .*sparsify_path"):
        sparsify(net, batches, kappa)


def test_one_bad_row_is_not_all(tmp_path, monkeypatch):
    """A row of the first model fails: the manifest says so, and which gap is the worst."""
    original = sweep.iter_path

    def spoilt(*arguments, **options):
        for k, found in enumerate(original(*arguments, **options)):
            solution = found.report.solution
            certificate = solution.certificate
            gap = certificate.gap.copy()
            gap[2] = (3e-4, 2e-12)[k]
            bad = replace(solution, certificate=replace(certificate, gap=gap, passed=gap <= 1e-9))
            yield replace(found, report=replace(found.report, solution=bad))

    monkeypatch.setattr(sweep, "iter_path", spoilt)
    with pytest.raises(CertificateError, match=r"kappa = 0.1: .*keep_going=True") as caught:
        swept(tmp_path)
    results = caught.value.result
    assert [result.report.certified for result in results] == [4, 5]
    found = record(tmp_path)
    assert found["all_certified"] is False
    assert found["worst_gap"] == 3e-4
    assert found["rows_by_method"] == {
        name: sum(r.report.methods.get(name, 0) for r in results)
        for name in found["rows_by_method"]
    }
    assert sum(found["rows_by_method"].values()) == 10
    table = pd.read_csv(tmp_path / "sweep.csv")
    assert list(table["certified"]) == [4, 5]
    assert (
        "9 of 10 rows certified, worst relative gap 3.0e-04" in (tmp_path / "sweep.md").read_text()
    )


def test_finished_models_outlive_one_that_fails(tmp_path, monkeypatch):
    original = sweep.iter_path

    def failing(*arguments, **options):
        found = original(*arguments, **options)
        yield next(found)
        raise CertificateError("planted")

    monkeypatch.setattr(sweep, "iter_path", failing)
    with pytest.raises(CertificateError):
        swept(tmp_path, models=True)
    assert len(pd.read_csv(tmp_path / "sweep.csv")) == 1
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["model-full-rescaled-0.1.safetensors", "sweep.csv", UNFINISHED]
    monkeypatch.setattr(sweep, "iter_path", original)
    swept(tmp_path)
    assert "model-full-rescaled-0.1.safetensors" not in record(tmp_path)["files"]
    assert not (tmp_path / "model-full-rescaled-0.1.safetensors").exists()


def test_a_failing_figure_loses_no_table(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "plot_sweep", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        swept(tmp_path)
    assert record(tmp_path)["files"] == ["report.txt", "sweep.csv", "sweep.md", "sweep.tex"]


def test_every_level_is_a_line_where_there_is_no_terminal(tmp_path, capsys):
    configurations = (("full", True), ("causal", False))
    swept(tmp_path, configurations=configurations)
    lines = [line for line in capsys.readouterr().err.splitlines() if "kappa" in line]
    assert [line.partition(", accuracy")[0] for line in lines] == [
        "full, rescaled: kappa 0.1", "full, rescaled: kappa 0.5",
        "causal, as captured: kappa 0.1", "causal, as captured: kappa 0.5",
    ]  # fmt: skip
    assert all("certified all, worst gap" in line for line in lines)


@pytest.mark.parametrize("where", ["cimf.studies.prune_run.implicit_summary",
                                   "cimf.evaluate.held_out.HeldOut.evaluated"])  # fmt: skip
def test_the_network_outlives_what_is_computed_after_it(tmp_path, monkeypatch, where):
    def broken(*_):
        raise RuntimeError("planted")

    monkeypatch.setattr(where, broken)
    with pytest.raises(RuntimeError, match="planted"):
        run_prune(tmp_path, {}, network, 0.5, options={})
    state = load_file(tmp_path / "network.safetensors")
    assert sum(int((value == 0).sum()) for value in state.values() if value.ndim == 2) == 17
    assert "sparsity 48.57%" in (tmp_path / "report.txt").read_text()
    assert not (tmp_path / MANIFEST).exists()
    monkeypatch.undo()
    run_prune(tmp_path, {}, network, 0.5, options={})
    assert record(tmp_path)["files"] == ["network.safetensors", "report.txt"]


def test_everything_chosen_is_part_of_the_fingerprint(tmp_path):
    run_prune(tmp_path, {"seed": 0}, network, 0.5, options={"n_jobs": 1})
    for settings, sparsity, method, options, name in (
        ({"seed": 1}, 0.5, "layered", {}, "seed"),
        ({"seed": 0}, 0.4, "layered", {}, "sparsity"),
        ({"seed": 0}, 0.5, "obs", {}, "method"),
        ({"seed": 0}, 0.5, "layered", {"support": "magnitude"}, "options"),
    ):
        with pytest.raises(RunError, match=rf"\(other {name}\)"):
            run_prune(tmp_path, settings, never, sparsity, method, options=options)
    run_prune(tmp_path, {"seed": 0}, network, 0.5, options={"n_jobs": 2})
