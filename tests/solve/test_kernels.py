"""The compiled kernels themselves: inside their arrays, and never run from a stale cache."""

import os
import subprocess
import sys

import pytest

from cimf.solve import compiled

_DEGENERATE_ROWS = """
import numpy as np
from cimf.solve import solve_rows
from cimf.statistics import Gram

rng = np.random.default_rng(0)
for trial in range(600):
    m, n = rng.integers(1, 30, size=2)
    design = [
        rng.normal(size=(m, n)),
        rng.integers(-2, 3, size=(m, n)).astype(float),
        rng.normal(size=(m, n))[:, rng.integers(0, n, size=n)] * rng.choice([-1, 1], size=n),
        np.maximum(rng.normal(size=(m, n)), 0.0) * (rng.random(n) < 0.8),
    ][trial % 4]
    targets = rng.normal(size=(m, 2)) if trial % 3 else design @ rng.normal(size=(n, 2))
    weights = np.where(rng.random(n) < 0.2, rng.choice([0.0, np.inf, 3.0], size=n), 1.0)
    signs = rng.integers(-1, 2, size=n) * (weights > 0) * (trial % 5 == 0)
    norm = np.abs(np.linalg.lstsq(design, targets[:, 0], rcond=None)[0]).sum()
    kappa = norm * rng.choice([0.0, 0.1, 0.9, 0.999, 1.5])
    found = solve_rows(
        Gram.from_arrays(design, targets), kappa, weights=weights, signs=signs, n_jobs=1
    )
    assert found.coef.shape == (2, n)
    if trial % 3:
        found.raise_if_failed()
"""


@pytest.mark.slow
def test_kernels_stay_inside_their_arrays(tmp_path):
    """Compiled with bounds checks; a block size that overflowed once read outside (a crash)."""
    environment = {**os.environ, "NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", _DEGENERATE_ROWS], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_cache_follows_the_sources(monkeypatch, tmp_path):
    """Another source means another folder, also for kernels whose own file did not change."""
    (tmp_path / "package").mkdir()
    source = tmp_path / "package" / "compiled.py"
    monkeypatch.setattr(compiled, "__file__", str(source))
    source.write_text("a = 1\n")
    first = compiled._folder()
    assert compiled._folder() == first
    (tmp_path / "package" / "other.py").write_text("b = 2\n")
    assert compiled._folder() != first
