"""Rows in parallel: threads, processes and a Dask cluster give the same bits; nothing is lost."""

import os
import signal
import threading
import time
from unittest import mock

import joblib
import numpy as np
import pytest
import threadpoolctl

from cimf.solve import rows, solve_path, solve_rows
from cimf.statistics import Gram
from formulations.columns import Columns
from formulations.level import Radius

ROWS = 130  # above 64 rows chunks hold several: here 43 of three rows, and one of one


def statistics(n_rows=ROWS, n=160, seed=0):
    """A problem whose Gram matrix is above the threshold for memory maps used below."""
    rng = np.random.default_rng(seed)
    design = rng.standard_normal((2 * n, n)) + rng.standard_normal((2 * n, 1))
    return Gram.from_arrays(design, rng.standard_normal((2 * n, n_rows)))


def assert_same_bits(found, expected):
    found.raise_if_failed()
    for name in ("coef", "lam", "iterations"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


@pytest.fixture(scope="module")
def gram():
    return statistics()


@pytest.fixture(scope="module", params=["exact", "bisection"])
def serial(request, gram):
    return request.param, solve_rows(gram, 0.8, method=request.param, n_jobs=1)


def test_threads_and_the_number_of_chunks_do_not_change_the_bits(gram, serial):
    method, expected = serial
    assert_same_bits(solve_rows(gram, 0.8, method=method, n_jobs=2), expected)
    for size in (1, 7, 70):
        parts = [
            solve_rows(gram.rows(slice(k, k + size)), 0.8, method=method, n_jobs=2).coef
            for k in range(0, ROWS, size)
        ]
        np.testing.assert_array_equal(np.concatenate(parts), expected.coef)


def test_processes_give_the_same_bits_with_weights_per_row_and_paths(gram, serial):
    method, expected = serial
    weights = np.ones((ROWS, 160))
    weights[np.arange(ROWS), np.arange(ROWS)] = np.inf
    excluded = solve_rows(gram, 0.8, weights=weights, method=method, n_jobs=1)
    path = solve_path(gram, [0.2, 0.8], method=method, n_jobs=1)
    with joblib.parallel_config("loky", n_jobs=2, max_nbytes="100K"):
        assert_same_bits(solve_rows(gram, 0.8, method=method), expected)
        assert_same_bits(solve_rows(gram, 0.8, weights=weights, method=method), excluded)
        for found, single in zip(solve_path(gram, [0.2, 0.8], method=method), path, strict=True):
            assert_same_bits(found, single)


def test_chunks_hold_several_rows(gram):
    sizes = []

    exact = rows.METHODS["exact"]

    def noted(part, *chunk):
        sizes.append(part.n_targets)
        return exact(part, *chunk)

    with mock.patch.dict(rows.METHODS, {"exact": noted}):
        solve_rows(gram, 0.8, method="exact", n_jobs=1)
    assert sizes == [3] * 43 + [1]


def test_the_planted_wrong_bit_is_seen(gram, serial):
    wrong = serial[1].coef.copy()
    wrong[3, np.flatnonzero(wrong[3])[0]] *= 1 + 2.3e-16
    with pytest.raises(AssertionError):
        np.testing.assert_array_equal(wrong, serial[1].coef)


def probe(gram, columns, level, tol):
    """A row solver that returns what it saw: BLAS threads, writable, process, contiguous."""
    time.sleep(0.02)  # so that no worker does everything
    threads = max(
        i["num_threads"] for i in threadpoolctl.threadpool_info() if i["user_api"] == "blas"
    )
    arrays = (gram.gram, gram.corr, gram.target_sq, columns.weights, columns.signs, level.values)
    seen = np.zeros((*level.values.shape, gram.n_features))
    seen[..., 0], seen[..., 1] = threads, all(a.flags.writeable for a in arrays)
    seen[..., 2], seen[..., 3] = os.getpid(), all(a.flags.c_contiguous for a in arrays)
    return seen, np.zeros(level.values.shape), np.zeros(level.values.shape, np.int64)


def run(solver, gram, n_jobs=None):
    """What the solver returned for the chunks of rows."""
    columns = Columns.build(gram.n_features, gram.n_targets)
    level = Radius(np.full((gram.n_targets, 1), 0.8))
    with mock.patch.dict(rows.METHODS, test=solver):
        return rows._run(gram, columns, level, rows._How("test", 1e-9, n_jobs, None))


def seen_by_workers(gram):
    return np.concatenate([part[0][:, 0] for part in run(probe, gram)])


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one core: one thread")
@pytest.mark.parametrize(("n_jobs", "threads"), [(None, True), (2, True), (1, False)])
def test_long_work_goes_to_threads_and_short_work_does_not(gram, n_jobs, threads):
    """The default is one thread per core; what takes no time is done by the caller."""
    pause, seen = 0.0, set()

    def noted(*chunk):
        time.sleep(pause)
        seen.add(threading.get_ident())
        return rows.METHODS["exact"](*chunk)

    run(noted, gram.rows(slice(0, 2)), n_jobs)
    assert seen == {threading.get_ident()}
    pause = 0.01
    run(noted, gram, n_jobs)
    assert (len(seen) > 1) == threads


def test_worker_processes_run_blas_on_one_thread_and_see_writable_arrays(gram):
    with joblib.parallel_config("loky", n_jobs=2, max_nbytes="100K"):
        seen = seen_by_workers(gram)
    assert (seen[:, 0] == 1).all(), "a BLAS of several threads in each of several processes"
    assert (seen[:, 1] == 1).all(), "numba would compile every kernel again for read-only arrays"
    assert (seen[:, 3] == 1).all(), "numba would compile every kernel again for strided arrays"
    assert os.getpid() not in seen[:, 2]


@pytest.fixture(scope="module")
def cluster():
    distributed = pytest.importorskip("distributed", reason="needs the extra [cluster]")
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
        ) as local,
        distributed.Client(local) as client,
    ):
        yield client


@pytest.mark.parametrize("scatter", [False, True])
def test_a_dask_cluster_gives_the_same_bits(gram, serial, cluster, scatter):
    method, expected = serial
    with joblib.parallel_config("dask", client=cluster, scatter=[gram] if scatter else None):
        assert_same_bits(solve_rows(gram, 0.8, method=method), expected)
        seen = seen_by_workers(gram)
    assert (seen[:, 0] == 1).all()
    assert (seen[:, 1] == 1).all()
    assert len(np.unique(seen[:, 2])) == 2


def slow(gram, *chunk):
    time.sleep(0.02 * gram.n_targets)
    return rows.METHODS["exact"](gram, *chunk)


@pytest.mark.parametrize("scatter", [False, True])
def test_nothing_is_lost_when_a_worker_is_killed(gram, cluster, scatter, monkeypatch):
    expected = solve_rows(gram, 0.8, n_jobs=1)
    monkeypatch.setitem(rows.METHODS, "slow", slow)
    victims = [worker["pid"] for worker in cluster.run(lambda: {"pid": os.getpid()}).values()]
    killed = []

    def kill_one(done):
        if not killed:
            os.kill(victims[0], signal.SIGKILL)
            killed.append(done)

    with joblib.parallel_config("dask", client=cluster, scatter=[gram] if scatter else None):
        found = solve_rows(gram, 0.8, method="slow", progress=kill_one)
    assert killed
    assert killed[0] < ROWS
    assert_same_bits(found, expected)
