"""Sweeps and layered runs as folders: what is refused, what is kept, what the manifest says."""

import json
from collections import OrderedDict
from dataclasses import asdict, replace
from datetime import datetime
from importlib import import_module
from io import StringIO
from itertools import islice
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from cimf.errors import CertificateError, InputError, RunError, UnknownNameError
from cimf.methods.by_name import METHODS
from cimf.methods.stacked.captured import Reference
from cimf.methods.stacked.path_options import PathOptions
from cimf.methods.stacked.sparsify import iter_path, row_options, sparsify
from cimf.runs.folder import MANIFEST
from cimf.studies import kappa_sweep as sweep
from cimf.studies.kappa_sweep import run_sweep
from cimf.studies.prune_run import run_prune
from cimf.studies.sweep_figure import plot_sweep


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


def spoilt(*arguments, **options):
    """Models of a path as they are, but for the gap of one row, above 1e-9 in the first."""
    for k, found in enumerate(iter_path(*arguments, **options)):
        solution = found.report.solution
        certificate = solution.certificate
        gap = certificate.gap.copy()
        gap[2] = (3e-4, 2e-12)[k]
        bad = replace(solution, certificate=replace(certificate, gap=gap, passed=gap <= 1e-9))
        yield replace(found, report=replace(found.report, solution=bad))


def test_one_bad_row_is_not_all(tmp_path, monkeypatch):
    """A row of the first model fails: the manifest says so, and which gap is the worst."""
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


def test_the_manifest_and_the_text_of_a_sweep(tmp_path):
    net, batches, test = network()
    wrong = [(test[0][0], (test[0][1] + (torch.arange(40) < 10).long()) % 3)]  # 10 of 40 labels
    reference = Reference.capture(net, batches, wrong)
    configurations = ("full", True), ("causal", False)
    table = swept(tmp_path, lambda: reference, configurations=configurations)
    reports = [
        model.report
        for design, rescale in configurations
        for model in iter_path(reference, (0.1, 0.5), design, rescale)
    ]
    pd.testing.assert_frame_equal(table, pd.DataFrame([report.row() for report in reports]))
    found = record(tmp_path)
    assert found["samples"] == {"calibration": 80, "evaluation": 40, "labelled": True}
    assert found["network"] == {
        "sha256": reference.digest,
        "weights": 4 * 5 + 5 * 3,
        "parameters": 4 * 5 + 5 + 5 * 3 + 3,
        "states": 5,
        "reconstruction_error": reference.calibration.reconstruction.worst,
    }
    assert found["dense_accuracy"] == 0.75
    assert found["control_accuracy"] == reference.control_accuracy
    assert found["tolerance"] == 1e-9
    assert found["worst_gap"] == max(report.solution.certificate.worst_gap for report in reports)
    assert found["all_certified"] is True
    assert sum(found["rows_by_method"].values()) == 4 * 5
    assert set(found["seconds"]) == {
        "train and capture", "solve and evaluate: full, rescaled",
        "solve and evaluate: causal, as captured",
    }  # fmt: skip
    assert all(seconds > 0 for seconds in found["seconds"].values())
    formats = ("csv", "md", "parquet", "pdf", "png", "tex")
    assert found["files"] == ["report.html", "report.txt", *(f"sweep.{kind}" for kind in formats)]
    text = (tmp_path / "sweep.md").read_text()
    assert text.startswith("# a sweep\n\n| design |")
    control = f"control (linear map from the input alone) {reference.control_accuracy:.2%}"
    assert f"- dense network 75.00%, {control}, on 40 test samples\n" in text
    assert "paper columns" not in text
    assert (tmp_path / "report.txt").read_text() == "\n\n".join(map(str, reports)) + "\n"
    assert list(pd.read_csv(tmp_path / "sweep.csv")["kappa"]) == [0.1, 0.5] * 2


def test_what_is_said_of_models_that_did_not_end_well():
    table = pd.DataFrame({
        "rows": [8, 8, 8], "certified": [8, 7, 8], "worst_gap": [1e-12, 2e-3, 1e-11],
        "inactive_rows": [0, 3, 1000], "kappa": [0.1, 0.99, 0.5], "evaluated": 40,
        "converged": [40, 30, 38], "wellposed": ["ball", "none", "norm"],
    })  # fmt: skip
    unlabelled = {"samples": {"labelled": False}}
    assert sweep._summary(unlabelled, table) == [
        "23 of 24 rows certified, worst relative gap 2.0e-03",
        "1,003 rows, at kappa 0.5, 0.99, have an inactive ball (multiplier 0): their optimum may "
        "not be unique, and the non-zeros are those of one solution",
        "2 of 3 models proved well-posed; 12 equilibria did not converge: see the column",
    ]
    assert sweep._summary(unlabelled, table[:1]) == [
        "8 of 8 rows certified, worst relative gap 1.0e-12",
        "1 of 1 models proved well-posed; every equilibrium converged",
    ]


def test_a_note_is_said_once_with_its_kappas():
    def noted(kappa, *notes):
        return {"row": {"kappa": kappa}, "notes": notes}

    points = [noted(0.5, "all", "some"), noted(0.1, "all", "some"), noted(0.9, "one", "all")]
    assert sweep._notes(points) == [
        "note: all", "note, kappa 0.1, 0.5: some", "note, kappa 0.9: one",
    ]  # fmt: skip


def dies_after(kept, models=iter_path):
    """Return `iter_path` that ends after so many models, as a process that is killed."""

    def dying(*arguments, **options):
        yield from islice(models(*arguments, **options), kept)
        raise KeyboardInterrupt

    return dying


def stand_still(monkeypatch):
    """Make clocks and the repository stand still: files that hold times are compared, too."""
    monkeypatch.setattr("time.perf_counter", lambda: 0.0)
    now = SimpleNamespace(now=lambda zone: datetime(2026, 1, 1))
    monkeypatch.setattr("cimf.runs.provenance.datetime", now)
    monkeypatch.setattr("cimf.runs.provenance.commit", lambda: None)
    monkeypatch.setattr("cimf.runs.folder.commit", lambda: None)


def content(path):
    """Return what a file holds; of safetensors the header as a record, which it writes shuffled."""
    raw = path.read_bytes()
    if path.suffix != ".safetensors":
        return raw
    end = 8 + int.from_bytes(raw[:8], "little")
    return json.loads(raw[8:end]), raw[end:]


def test_an_interrupted_sweep_continues_to_the_same_files(tmp_path, monkeypatch):
    """Killed after its second model of four; then before the figure, with no model missing."""
    stand_still(monkeypatch)
    made = []

    def counted(*arguments, **options):
        for found in iter_path(*arguments, **options):
            made.append(found.report.kappa)
            yield found

    def stopped(*_, **__):
        raise KeyboardInterrupt

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    given = {"models": True, "kappas": (0.1, 0.3, 0.9, 0.5), "options": PathOptions(n_jobs=1)}
    table = swept(whole, **given)
    for models, draw in ((dies_after(2), plot_sweep), (counted, stopped)):
        monkeypatch.setattr(sweep, "iter_path", models)
        monkeypatch.setattr(sweep, "plot_sweep", draw)
        with pytest.raises(KeyboardInterrupt):
            swept(killed, **given)
    assert made == [0.9, 0.5]
    with pytest.raises(RunError, match=r"another run \(other tol\)"):
        swept(killed, never, **{**given, "options": PathOptions(tol=1e-6)})
    monkeypatch.setattr(sweep, "plot_sweep", plot_sweep)
    pd.testing.assert_frame_equal(swept(killed, never, **given), table)
    assert len(list(whole.glob("*.safetensors"))) == 4
    assert {path.name: content(path) for path in killed.iterdir()} == {
        path.name: content(path) for path in whole.iterdir()
    }


@pytest.mark.parametrize(
    ("options", "solver"),
    [
        (PathOptions(), "sparsify.prefer_own_rows"),
        (row_options("l1", (), {}), "loss_rows._l1_rows"),
        (row_options("elastic-net", (), {}), "loss_rows._solved"),
        (row_options("sensitivity", (), {}), "sensitivity_model._least_sensitive"),
    ],
    ids=["ball", "l1", "cone", "sensitivity"],
)
def test_models_that_are_not_wanted_are_not_made_and_change_no_bit(monkeypatch, options, solver):
    reference, kappas, wanted = Reference.capture(*network()), (0.1, 0.3, 0.9), (False, True, False)
    whole = [*iter_path(reference, kappas, "full", True, options)][1]
    calls, path = [], f"cimf.methods.stacked.{solver}"
    place, _, name = path.rpartition(".")
    solve = getattr(import_module(place), name)
    monkeypatch.setattr(path, lambda *a, **k: (calls.append(a), solve(*a, **k))[1])
    (found,) = iter_path(reference, kappas, "full", True, options, wanted=wanted)
    assert len(calls) == 1
    assert found.report.row() == whole.report.row()
    for part in "ABCD":
        np.testing.assert_array_equal(getattr(found.model, part), getattr(whole.model, part))


def test_an_infinite_kappa_outlives_an_interruption(tmp_path, monkeypatch):
    given = {
        "options": row_options("l1", (), {}), "kappas": (None, 0.5),
        "configurations": (("causal", True),),
    }  # fmt: skip
    monkeypatch.setattr(sweep, "iter_path", dies_after(1))
    with pytest.raises(KeyboardInterrupt):
        swept(tmp_path, **given)
    monkeypatch.setattr(sweep, "iter_path", iter_path)
    assert swept(tmp_path, **given)["kappa"].tolist() == [np.inf, 0.5]
    assert list(pd.read_csv(tmp_path / "sweep.csv")["kappa"]) == [np.inf, 0.5]


def test_a_row_that_failed_before_the_interruption_still_raises(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "iter_path", dies_after(1, spoilt))
    with pytest.raises(KeyboardInterrupt):
        swept(tmp_path)
    monkeypatch.setattr(sweep, "iter_path", iter_path)
    with pytest.raises(CertificateError, match=r"kappa = 0.1: .*gap 0.0003") as caught:
        swept(tmp_path)
    assert [result.report.kappa for result in caught.value.result] == [0.5]
    assert record(tmp_path)["worst_gap"] == 3e-4


def of_another_network(net, batches, test):
    net[0].weight.data += 1.0
    return net, batches, test


def on_other_samples(net, batches, test):
    return net, [batches[0] + 0.5, *batches[1:]], test


def with_other_labels(net, batches, test):
    (inputs, labels), *rest = test
    return net, batches, [(inputs, labels.flip(0)), *rest]


@pytest.mark.parametrize(
    ("change", "what"),
    [(of_another_network, "network"), (on_other_samples, "samples"),
     (with_other_labels, "test samples")],
)  # fmt: skip
def test_a_sweep_goes_on_with_its_own_network_and_samples_alone(
    tmp_path, monkeypatch, change, what
):
    monkeypatch.setattr(sweep, "iter_path", dies_after(1))
    with pytest.raises(KeyboardInterrupt):
        swept(tmp_path)
    monkeypatch.setattr(sweep, "iter_path", iter_path)
    other = change(*network())
    with pytest.raises(RunError, match=f"continues: {what};"):
        swept(tmp_path, lambda: Reference.capture(*other))


def test_models_of_a_sweep_that_was_interrupted_are_saved_if_asked_for(tmp_path, monkeypatch):
    """Those that were not saved are made again; those that are not asked for go."""
    monkeypatch.setattr(sweep, "iter_path", dies_after(1))
    names = {f"model-full-rescaled-{kappa}.safetensors" for kappa in (0.1, 0.5)}
    for models, expected in ((True, set()), (False, names)):
        monkeypatch.setattr(sweep, "iter_path", dies_after(1))
        with pytest.raises(KeyboardInterrupt):
            swept(tmp_path, models=models)
        monkeypatch.setattr(sweep, "iter_path", iter_path)
        swept(tmp_path, models=not models)
        assert {path.name for path in tmp_path.glob("*.safetensors")} == expected
        assert names & set(record(tmp_path)["files"]) == expected


def test_a_failing_figure_loses_no_table(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "plot_sweep", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        swept(tmp_path)
    formats = ("csv", "md", "parquet", "tex")
    names = ["report.html", "report.txt", *(f"sweep.{kind}" for kind in formats)]
    assert record(tmp_path)["files"] == names


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
    assert record(tmp_path)["files"] == ["network.safetensors", "report.html", "report.txt"]


@pytest.mark.parametrize("labelled", [True, False])
def test_a_run_of_prune_prints_and_writes_its_report(tmp_path, monkeypatch, labelled):
    """Lines of any length and text in brackets as they are, in a terminal of any width."""
    stream = StringIO()
    monkeypatch.setattr("cimf.studies.prune_run.out", Console(file=stream, width=30))
    monkeypatch.setattr("cimf.studies.prune_run.implicit_summary", lambda *_: "a [red] summary")
    net, *samples = network()
    net = torch.nn.Sequential(OrderedDict(zip(("[bold]", "1", "2"), net, strict=True)))
    result = run_prune(
        tmp_path, {}, lambda: (net, *samples[: 1 + labelled]), 0.5, options={"n_jobs": 1}
    )
    assert "[bold]" in str(result.report)
    report = (tmp_path / "report.txt").read_text()
    assert report == f"{result.report}\n\na [red] summary\n"
    assert stream.getvalue().startswith(report)
    shown = " ".join(stream.getvalue()[len(report) :].split())
    assert shown.endswith("network.safetensors, report.txt, report.html, manifest.json")
    found = record(tmp_path)
    assert found["source"] == METHODS["layered"].source
    assert found["sparsity"] == result.report.sparsity
    assert found["seconds"] == result.report.seconds
    assert (result.report.evaluation is not None) == labelled
    assert found["evaluation"] == (asdict(result.report.evaluation) if labelled else None)
    state = load_file(tmp_path / "network.safetensors")
    for name, value in result.network.state_dict().items():
        assert torch.equal(state[name], value)


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
    run_prune(tmp_path, {"seed": 1}, network, 0.5, options={}, overwrite=True)
    assert json.loads((tmp_path / "manifest.json").read_text())["settings"]["seed"] == 1
