"""Backends: probes, words, strict statuses, vendor errors; no licence needed."""

import dataclasses
import re
from pathlib import Path

import cvxpy as cp
import numpy as np
import pytest

from cimf.errors import BackendError, FormulationError, InputError, UnknownNameError
from cimf.solve.conic import backends
from cimf.solve.conic.cvxpy_front import solve_cvxpy
from cimf.solve.conic.solver_settings import DEFAULTS, SolverSettings, solver_named
from formulations import Constrained, LeastSquares, StateRows


def tiny():
    x = cp.Variable(2, name="x")
    return cp.Problem(cp.Minimize(cp.sum_squares(x - 3.0)), [cp.sum(x) <= 2.0])


class VendorError(Exception):
    """Like mosek.Error: no cvxpy.SolverError."""


UNLICENSED = VendorError("rescode.err_missing_license_file(1008): License cannot be located.\nmore")


@pytest.fixture
def _fresh_probes():
    backends.probe.cache_clear()
    yield
    backends.probe.cache_clear()


@pytest.fixture
def _unlicensed_mosek(monkeypatch, _fresh_probes):
    """MOSEK installed, every solve with it raising the vendor's licence error."""
    real = backends.run

    def run(problem, name, tol, **care):
        if name != "mosek":
            return real(problem, name, tol, **care)
        error = BackendError("mosek failed")
        error.__cause__ = UNLICENSED
        raise error

    monkeypatch.setattr(backends, "run", run)
    monkeypatch.setattr(backends, "_version", lambda package: "11.0")


def test_report_names_every_backend_and_clarabel_works():
    report = {state.name: state for state in backends.backend_report()}
    assert list(report) == ["mosek", "clarabel"]
    assert report["clarabel"].works
    assert report["clarabel"].version
    assert all(state.detail for state in report.values())


@pytest.mark.usefixtures("_unlicensed_mosek")
def test_unlicensed_mosek_does_not_disturb_auto():
    assert backends.candidates("auto") == ["clarabel"]
    problem = tiny()
    outcome = backends.solve(problem, "auto", 1e-9)
    assert outcome.backend == "clarabel"
    np.testing.assert_allclose(problem.var_dict["x"].value, 1.0, atol=1e-7)


@pytest.mark.usefixtures("_unlicensed_mosek")
def test_asking_for_unlicensed_mosek_says_what_is_missing(monkeypatch, tmp_path):
    monkeypatch.setenv("MOSEKLM_LICENSE_FILE", "/somewhere/else.lic")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(BackendError) as error:
        solve_cvxpy(Constrained(np.eye(3), np.ones(3), 1.0), backend="mosek")
    text = str(error.value)
    assert "package mosek 11.0 is installed, but without a usable licence" in text
    assert "MOSEKLM_LICENSE_FILE (set to /somewhere/else.lic)" in text
    assert f"{tmp_path}/mosek/mosek.lic (absent)" in text
    assert "err_missing_license_file" in text


@pytest.mark.usefixtures("_fresh_probes")
def test_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(backends, "_version", lambda package: "")
    with pytest.raises(BackendError, match=r"not installed: pip install 'cimf\[mosek\]'"):
        backends.candidates("mosek")
    with pytest.raises(BackendError, match=r"no backend works: mosek: .*; clarabel: "):
        backends.candidates("auto")


def test_vendor_errors_become_ours_with_their_cause(monkeypatch):
    def fail(*args, **kwargs):
        raise UNLICENSED

    from cvxpy.reductions.solvers.solving_chain import SolvingChain

    monkeypatch.setattr(SolvingChain, "solve_via_data", fail)
    with pytest.raises(BackendError, match=r"clarabel failed: rescode\.err_missing") as error:
        backends.run(tiny(), "clarabel", 1e-9)
    assert error.value.__cause__ is UNLICENSED


@pytest.mark.usefixtures("_fresh_probes")
def test_a_probe_runs_once_and_believes_no_status(monkeypatch):
    calls = []

    def run(problem, name, tol, **care):
        calls.append(name)
        problem.variables()[0].value = np.array(1.0)  # not the solution

    monkeypatch.setattr(backends, "run", run)
    assert not backends.probe("clarabel").works
    assert "wrongly" in backends.probe("clarabel").detail
    assert calls == ["clarabel"]


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (cp.USER_LIMIT, BackendError),
        (cp.SOLVER_ERROR, BackendError),
        (cp.INFEASIBLE, BackendError),  # without a proof
        (cp.INFEASIBLE_INACCURATE, BackendError),
        (cp.UNBOUNDED, FormulationError),
        (cp.settings.UNBOUNDED_INACCURATE, FormulationError),
    ],
)
def test_statuses_that_are_not_accepted(monkeypatch, status, error):
    from cvxpy.reductions.solvers.solving_chain import SolvingChain

    real = SolvingChain.invert

    def invert(self, raw, inverse):
        solution = real(self, raw, inverse)
        solution.status = status
        return solution

    monkeypatch.setattr(SolvingChain, "invert", invert)
    with pytest.raises(error):
        backends.run(tiny(), "clarabel", 1e-9)


def test_inaccurate_is_judged_and_reported(monkeypatch):
    from cvxpy.reductions.solvers.solving_chain import SolvingChain

    real = SolvingChain.invert

    def invert(self, raw, inverse):
        solution = real(self, raw, inverse)
        solution.status = cp.OPTIMAL_INACCURATE
        return solution

    monkeypatch.setattr(SolvingChain, "invert", invert)
    solution = solve_cvxpy(Constrained(np.eye(3), np.ones(3), 1.0), backend="clarabel")
    assert solution.backend_status[0] == "inaccurate"
    assert solution.status[0] == "optimal"  # the certificate's word


def test_infeasible_is_proved():
    x = cp.Variable()
    with pytest.raises(FormulationError, match="infeasible because the constraints exclude"):
        backends.run(cp.Problem(cp.Minimize(x), [x >= 2, x <= 1]), "clarabel", 1e-9)


def test_not_convex_is_ours():
    x = cp.Variable()
    with pytest.raises(FormulationError, match="DCP"):
        backends.run(cp.Problem(cp.Minimize(-cp.square(x))), "clarabel", 1e-9)


def test_unknown_backend_and_bad_tolerance():
    with pytest.raises(UnknownNameError, match=r"unknown backend 'osqb'.* auto, clarabel"):
        backends.solve(tiny(), "osqb", 1e-9)
    for tol in (0.0, -1.0, 2.0, np.nan):
        with pytest.raises(InputError, match="tol must be"):
            backends.solve(tiny(), "auto", tol)


def test_tolerances_are_translated():
    clarabel = solver_named("clarabel").options(1e-7)
    assert clarabel["tol_gap_rel"] == clarabel["tol_feas"] == 1e-7
    mosek = solver_named("mosek").options(1e-7)["mosek_params"]
    assert mosek["MSK_DPAR_INTPNT_CO_TOL_REL_GAP"] == 1e-7
    loose, tight = (backends.run(tiny(), "clarabel", tol) for tol in (1e-3, 1e-10))
    assert loose.iterations < tight.iterations


def test_careful_settings_reach_the_solver_only_where_asked(monkeypatch):
    backend = solver_named("clarabel")
    assert dict(backend.careful) == {"max_step_fraction": 0.95}
    plain = backends.run(tiny(), "clarabel", 1e-9).iterations
    assert backends.run(tiny(), "clarabel", 1e-9, careful=True).iterations > plain
    stopped = dataclasses.replace(backend, careful={"max_iter": 1})
    monkeypatch.setitem(DEFAULTS, "clarabel", stopped)
    assert backends.run(tiny(), "clarabel", 1e-9).iterations == plain
    for solve in (backends.run, backends.solve):
        with pytest.raises(BackendError, match="user_limit"):
            solve(tiny(), "clarabel", 1e-9, careful=True)


def test_build_and_solve_are_timed_apart():
    outcome = backends.run(tiny(), "clarabel", 1e-9)
    assert outcome.build > 0
    assert outcome.solve > 0


@pytest.fixture
def _other_backend(monkeypatch, _fresh_probes):
    """A backend without a dual point: SCS in the place of MOSEK."""
    other = SolverSettings("SCS", "scs", lambda tol: {"eps_abs": 1e-9, "eps_rel": 1e-9})
    monkeypatch.setitem(DEFAULTS, "mosek", other)


@pytest.mark.usefixtures("_other_backend")
def test_auto_prefers_the_first_that_works_and_records_it():
    solution = solve_cvxpy(tiny())
    assert solution.backend[0].startswith("mosek")  # its place, not its name
    assert solution.passed  # bounded by Clarabel's dual point
    rows = solve_cvxpy(Constrained(np.eye(3), np.arange(3.0), 1.0))
    assert rows.method[0] == "mosek+polish"
    assert rows.certificate.passed.all()


@pytest.mark.usefixtures("_other_backend")
def test_auto_falls_through_when_the_first_fails_on_a_problem(monkeypatch):
    assert backends.candidates("auto") == ["mosek", "clarabel"]
    real = backends.run

    asked = []

    def run(problem, name, tol, **care):
        asked.append((name, tol, care))
        if name == "mosek":
            raise BackendError("out of tokens")
        return real(problem, name, tol, **care)

    monkeypatch.setattr(backends, "run", run)
    assert backends.solve(tiny(), "auto", 1e-9, careful=True).backend == "clarabel"
    assert asked == [(name, 1e-9, {"careful": True}) for name in ("mosek", "clarabel")]
    with pytest.raises(BackendError, match="out of tokens"):
        backends.solve(tiny(), "mosek", 1e-9)


def test_no_bare_solve_in_the_packages():
    """A bare solve() lets CVXPY choose: OSQP's answer to P(kappa) was 3e-2 outside the ball."""
    root = Path(backends.__file__).parents[3]
    bare = re.compile(r"\b(?:prob|problem)\w*\.solve\(\s*\)")
    assert bare.search("problem.solve()")
    for package in ("formulations", "cimf", "experiments"):
        paths = list((root / package).rglob("*.py"))
        assert len(paths) > 5, root / package
        for path in paths:
            assert not bare.search(path.read_text(encoding="utf-8")), path


def test_states_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        backends.probe("clarabel").works = False


@pytest.mark.parametrize("name", ["SCS", "osqp", "Highs"])
def test_any_solver_of_cvxpy_by_its_name(name):
    """All reach the same certified rows; what each returned itself is in `raw`."""
    if name.upper() not in cp.installed_solvers():
        pytest.skip(f"{name} is not installed")
    rng = np.random.default_rng(0)
    problem = Constrained(rng.normal(size=(40, 6)), rng.normal(size=(40, 2)), 0.5)
    truth = solve_cvxpy(problem, backend="clarabel")
    found = solve_cvxpy(problem, backend=name)
    assert found.certificate.passed.all()
    assert found.backend[0].startswith(f"{name.lower()} ")
    assert found.backend[0].split()[1]  # the version of its package
    assert found.raw.worst_gap < 1e-5
    np.testing.assert_allclose(found.coef, truth.coef, atol=1e-9)


def test_a_whole_model_by_a_first_order_solver():
    """The bound comes from Clarabel's dual point, whoever found the point."""
    rng = np.random.default_rng(1)
    data = LeastSquares.from_arrays(rng.normal(size=(30, 5)), rng.normal(size=(30, 2)))
    problem = StateRows(data, 2, np.ones((2, 5), dtype=bool), kappa=0.7, loss="l1", lam1=1.0)
    found = solve_cvxpy(problem, backend="scs")
    assert abs(found.gap) < 1e-7
    assert all(name.startswith("scs") for name in found.backend)


def test_a_solver_that_cannot_take_the_problem_says_so():
    with pytest.raises(BackendError, match="scipy does not work here"):
        solve_cvxpy(Constrained(np.eye(3), np.ones(3), 1.0), backend="SCIPY")
