"""The shared Gram matrix: streaming, merging, files, and the input it refuses."""

import tracemalloc

import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cimf.errors import InputError, RunError
from cimf.solve import solve_rows
from cimf.statistics import Gram
from cimf.statistics import gram as module


def data(m=50, n=9, r=4, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((m, n)), rng.standard_normal((m, r))


def assert_close(found, expected, rtol=1e-12):
    assert found.n_samples == expected.n_samples
    for name in ("gram", "corr", "target_sq"):
        scale = np.abs(getattr(expected, name)).max(initial=0.0)
        np.testing.assert_allclose(
            getattr(found, name), getattr(expected, name), rtol=0, atol=rtol * scale
        )


@pytest.mark.parametrize(
    ("design", "targets"),
    [
        (np.empty((0, 3)), np.empty((0, 2))),
        (np.ones((4, 2)), np.ones((4, 2))),
        (np.ones((4, 3)), np.ones((5, 2))),
        (np.ones((4, 3)), np.ones((4, 3))),
        (np.ones(3), np.ones((1, 2))),
        (np.ones((4, 3), np.float16), np.ones((4, 2))),
        (np.ones((4, 3)), np.ones((4, 2), np.float16)),
        (np.ones((4, 3), complex), np.ones((4, 2))),
        (np.full((4, 3), np.nan), np.ones((4, 2))),
        (np.where(np.eye(4, 3) > 0, np.inf, 0.0), np.ones((4, 2))),
        (np.ones((4, 3)), np.where(np.eye(4, 2) > 0, np.nan, 0.0)),
        (np.ones((4, 3)), np.where(np.eye(4, 2) > 0, -np.inf, 0.0)),
        (scipy.sparse.csr_array(np.diag([np.nan, 1.0, 1.0])), np.ones((3, 2))),
        (scipy.sparse.csr_array(np.ones((3, 3))), np.full((3, 2), np.inf)),
        (np.array([["a", "b", "c"]]), np.ones((1, 2))),
    ],
)
def test_bad_batches_are_refused_and_add_nothing(design, targets):
    gram = Gram(3, 2).update(np.ones((1, 3)), np.ones((1, 2)))
    with pytest.raises(InputError):
        gram.update(design, targets)
    assert gram.n_samples == 1
    np.testing.assert_array_equal(gram.gram, 1.0)
    np.testing.assert_array_equal(gram.corr, 1.0)
    np.testing.assert_array_equal(gram.target_sq, 1.0)


def test_large_numbers_are_not_taken_for_infinity():
    big = np.full((4, 1), 1e140)
    assert Gram(2, 1).update(np.zeros((4, 2)), big).target_sq[0] == pytest.approx(4e280)


@pytest.mark.parametrize("form", [np.asarray, scipy.sparse.csr_array, scipy.sparse.coo_array])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32])
def test_the_moments_are_those_of_the_float64_data(form, dtype):
    design, targets = data()
    design, targets = (4 * design).astype(dtype), targets.astype(np.float32)
    found = Gram.from_arrays(form(design), targets)
    m, z = design.astype(float), targets.astype(float)
    np.testing.assert_allclose(found.gram, m.T @ m, rtol=0, atol=1e-12 * np.abs(m.T @ m).max())
    np.testing.assert_allclose(found.corr, z.T @ m, rtol=0, atol=1e-12 * np.abs(z.T @ m).max())
    np.testing.assert_allclose(found.target_sq, (z**2).sum(axis=0), rtol=1e-13)
    np.testing.assert_array_equal(found.gram, found.gram.T)


def test_float32_batches_are_accumulated_in_float64():
    """In float32 the sum of 10^5 products of 0.1 is off by more than 1e-5."""
    design = np.full((100_000, 2), 0.1, np.float32)
    found = Gram.from_arrays(design, design[:, :1])
    assert found.gram[0, 1] == pytest.approx(100_000 * float(np.float32(0.1)) ** 2, rel=1e-12)
    assert abs(float((design[:, 0] @ design[:, 0]) / found.gram[0, 0]) - 1) > 1e-9


@settings(derandomize=True, deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.integers(1, 40), st.integers(1, 8), st.integers(0, 3))
def test_batches_and_merged_parts_add_up(seed, m, n, r):
    design, targets = data(m, n, r, seed)
    whole = Gram.from_arrays(design, targets)
    cuts = np.sort(np.random.default_rng(seed).integers(0, m + 1, 3))
    batches = [b for b in np.split(np.arange(m), cuts) if b.size]
    streamed, merged = Gram(n, r), Gram(n, r)
    for batch in batches:
        streamed.update(design[batch], targets[batch])
        _ = streamed.gram  # completed in between: nothing must be counted twice
        merged.merge(Gram.from_arrays(scipy.sparse.csr_array(design[batch]), targets[batch]))
    assert_close(streamed, whole)
    assert_close(merged, whole)
    a = np.random.default_rng(seed).standard_normal(n)
    for i in range(r):
        h = 0.5 * a @ whole.gram @ a - whole.corr[i] @ a + 0.5 * whole.target_sq[i]
        assert h == pytest.approx(0.5 * ((design @ a - targets[:, i]) ** 2).sum(), rel=1e-9)
    assert np.linalg.eigvalsh(whole.gram).min() >= -1e-12 * np.trace(whole.gram)


def test_a_planted_wrong_moment_is_seen():
    design, targets = data()
    whole, wrong = (Gram.from_arrays(design, targets) for _ in range(2))
    wrong.corr[1, 2] *= 1 + 1e-9
    with pytest.raises(AssertionError):
        assert_close(wrong, whole)


def test_blocks_of_samples_and_columns_do_not_show(monkeypatch):
    design, targets = data(m=37, n=11)
    whole = Gram.from_arrays(design, targets)
    monkeypatch.setattr(module, "_BLOCK", 5)
    monkeypatch.setattr(module, "_COLUMNS", 3)
    assert_close(Gram.from_arrays(design, targets), whole)
    assert_close(Gram.from_arrays(scipy.sparse.csr_array(design), targets), whole)
    assert_close(
        Gram.from_moments(whole.gram, whole.corr, whole.target_sq, whole.n_samples), whole, 0.0
    )


def test_selections():
    design, targets = data()
    gram = Gram.from_arrays(design, targets)
    part = gram.rows([3, 1])
    assert_close(part, Gram.from_arrays(design, targets[:, [3, 1]]))
    assert np.shares_memory(part.gram, gram.gram)
    assert part.gram.flags.c_contiguous
    assert gram.rows(slice(None, None, 2)).corr.flags.c_contiguous
    assert_close(gram.columns([4, 0]), Gram.from_arrays(design[:, [4, 0]], targets))
    for change in (lambda: part.update(design, targets[:, :2]), lambda: part.merge(part)):
        with pytest.raises(InputError, match="selection"):
            change()
    assert_close(gram, Gram.from_arrays(design, targets))


@pytest.mark.parametrize(
    "moments",
    [
        (np.eye(3), np.ones((2, 4)), np.ones(2)),
        (np.eye(3)[:2], np.ones((2, 3)), np.ones(2)),
        (np.triu(np.ones((3, 3))), np.ones((2, 3)), np.ones(2)),
        (-np.eye(3), np.ones((2, 3)), np.ones(2)),
        (np.eye(3), np.ones((2, 3)), -np.ones(2)),
        (np.full((3, 3), np.nan), np.ones((2, 3)), np.ones(2)),
        (np.eye(3, dtype=np.float16), np.ones((2, 3)), np.ones(2)),
    ],
)
def test_bad_moments(moments):
    with pytest.raises(InputError):
        Gram.from_moments(*moments, 5)


def test_merging_other_shapes_and_empty_sizes():
    with pytest.raises(InputError, match="same columns"):
        Gram(3, 2).merge(Gram(3, 1))
    for size in ((0, 1), (1, -1)):
        with pytest.raises(InputError):
            Gram(*size)


@pytest.fixture
def saved(tmp_path):
    gram = Gram.from_arrays(*data())
    gram.save(tmp_path / "gram.safetensors")
    return tmp_path / "gram.safetensors", gram


def test_files_keep_every_bit_and_can_be_continued(saved):
    path, gram = saved
    found = Gram.load(path)
    assert_close(found, gram, 0.0)
    assert_close(found.update(*data()), gram.merge(Gram.from_arrays(*data())))
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("where", [0.02, 0.3, 0.6, 0.95, 0.999])
def test_a_flipped_bit_is_found(saved, where):
    path, _ = saved
    content = bytearray(path.read_bytes())
    content[int(where * len(content))] ^= 1
    path.write_bytes(content)
    with pytest.raises(RunError):
        Gram.load(path)


@pytest.mark.parametrize("keep", [0.0, 0.01, 0.5, 0.999])
def test_a_truncated_file_is_refused(saved, keep):
    path, _ = saved
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(RunError):
        Gram.load(path)


def test_missing_and_foreign_files(tmp_path):
    from safetensors.numpy import save_file

    with pytest.raises(RunError):
        Gram.load(tmp_path / "none.safetensors")
    save_file({"gram": np.eye(2)}, tmp_path / "foreign.safetensors")
    with pytest.raises(RunError):
        Gram.load(tmp_path / "foreign.safetensors")
    tensors = {"gram": np.eye(2), "corr": np.ones((1, 2)), "target_sq": np.ones(1)}
    save_file(tensors, tmp_path / "other.safetensors", metadata={"n_samples": "many"})
    with pytest.raises(RunError):
        Gram.load(tmp_path / "other.safetensors")


@pytest.mark.parametrize("sparse", [False, True])
def test_peak_memory_is_two_grams_and_a_batch(sparse):
    n, m = 1200, 300
    design = scipy.sparse.random_array((m, n), density=0.05, rng=np.random.default_rng(0)).tocsr()
    batch = design if sparse else design.toarray().astype(np.float32)
    gram_bytes, batch_bytes = 8 * n * n, 8 * n * m
    tracemalloc.start()
    gram = Gram(n, 1)
    for _ in range(3):
        gram.update(batch, np.ones((m, 1)))
        _ = gram.gram
    part = Gram(n, 1).update(batch, np.ones((m, 1)))
    gram.merge(part)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * gram_bytes + 2 * batch_bytes + gram_bytes // 2


@pytest.mark.parametrize("sparse", [False, True])
def test_values_whose_squares_overflow_are_refused_and_nothing_is_added(sparse):
    design, targets = np.eye(4)[:, :3], np.ones((4, 2))
    gram = Gram(3, 2)
    shaped = scipy.sparse.csr_array if sparse else np.asarray
    for bad in ((shaped(1e155 * design), targets), (shaped(design), 1e200 * targets)):
        with pytest.raises(InputError, match="rescale the data"):
            gram.update(*bad)
    assert gram.n_samples == 0
    assert not gram.gram.any()


def test_what_is_no_statistics_is_named(tmp_path):
    gram = Gram(3, 2)
    with pytest.raises(InputError, match="nothing to save"):
        gram.save(tmp_path / "empty.safetensors")
    with pytest.raises(InputError, match="no samples"):
        solve_rows(gram.columns([0]), 1.0)
    with pytest.raises(InputError, match="got int"):
        gram.merge(3)
    with pytest.raises(InputError, match="toarray"):
        gram.update(np.ones((4, 3)), scipy.sparse.csr_array(np.ones((4, 2))))


def test_wide_designs_are_taken_in_panels(monkeypatch):
    """Two threads of OpenBLAS crash in one dsyrk of 16,000 columns."""
    design, targets = data(m=40, n=23)
    expected = Gram.from_arrays(design, targets)
    monkeypatch.setattr(module, "_SYRK", 8)
    monkeypatch.setattr(module, "_PANEL", 5)
    found = Gram(23, 4).update(design[:25], targets[:25]).update(design[25:], targets[25:])
    assert_close(found, expected)
    np.testing.assert_array_equal(found.gram, found.gram.T)


def test_tensors_that_require_grad():
    rng = np.random.default_rng(0)
    design, targets = rng.normal(size=(9, 4)), rng.normal(size=(9, 2))
    wanted = Gram.from_arrays(design, targets)
    m, z = (torch.tensor(x, requires_grad=True) for x in (design, targets))
    assert_close(Gram.from_arrays(m, z), wanted)
    assert_close(Gram(4, 2).update(m, z), wanted)
    moments = (m.T @ m, z.T @ m, (z * z).sum(0))
    assert_close(Gram.from_moments(*moments, n_samples=9), wanted)


@pytest.mark.parametrize("scale", [(1e-165, 1.0), (1.0, 1e-165), (1e-165, 1e-165)])
def test_values_whose_squares_underflow_are_refused_and_nothing_is_added(scale):
    """With (1e-165, 1e-165) every moment was 0 and every point optimal."""
    gram = Gram(3, 2)
    targets = np.ones((4, 2))
    targets[:, 1] = scale[1]
    with pytest.raises(InputError, match="underflow"):
        gram.update(scale[0] * np.ones((4, 3)), targets)
    assert gram.n_samples == 0
    gram.update(np.ones((4, 3)), np.zeros((4, 2)))  # zeros are zeros
    with pytest.raises(InputError, match="underflow"):
        Gram.from_moments(np.eye(2), [[1e-165, 0.0]], [0.0], 1)


@pytest.mark.parametrize("argument", ["design", "targets"])
def test_masked_and_complex_samples_are_refused(argument):
    for bad, named in ((np.ma.masked_equal, "masked"), (lambda x, _: x + 0j, "complex")):
        data = {"design": np.ones((4, 3)), "targets": np.ones((4, 2))}
        data[argument] = bad(data[argument], 0.0)
        with pytest.raises(InputError, match=named):
            Gram.from_arrays(**data)


def test_the_number_of_samples_is_in_the_checksum(tmp_path):
    path = tmp_path / "gram.safetensors"
    Gram.from_arrays(np.ones((123, 2)), np.ones((123, 1))).save(path)
    whole = path.read_bytes()
    assert whole.count(b'"123"') == 1
    path.write_bytes(whole.replace(b'"123"', b'"124"'))
    with pytest.raises(RunError, match="checksum"):
        Gram.load(path)


def test_a_short_repr():
    gram = Gram.from_arrays(np.ones((9, 4)), np.ones((9, 2)))
    assert repr(gram) == "Gram(4 columns, 2 targets, 9 samples)"


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_whole_weights_are_repeated_samples(sparse, dtype):
    design, targets = (part.astype(dtype) for part in data())
    weight = np.random.default_rng(1).integers(0, 4, 50)
    repeated = Gram.from_arrays(design.repeat(weight, axis=0), targets.repeat(weight, axis=0))
    given = scipy.sparse.csr_array(design) if sparse else design
    gram = Gram.from_arrays(given, targets, weight)
    assert gram.n_samples == np.count_nonzero(weight)
    assert 0 < gram.n_samples < 50
    repeated.n_samples = gram.n_samples  # the one difference
    assert_close(gram, repeated)
    kept = weight > 0
    parts = Gram(9, 4).update(design[:20], targets[:20], sample_weight=weight[:20])
    parts.merge(Gram.from_arrays(design[20:], targets[20:], sample_weight=weight[20:]))
    assert_close(parts, gram)
    assert_close(Gram.from_arrays(design[kept], targets[kept], weight[kept]), gram)
    assert solve_rows(gram, 0.5).gap.max() <= 1e-9


def test_weights_of_one_change_nothing_and_others_are_a_weighted_norm():
    design, targets = data()
    plain, ones = Gram.from_arrays(design, targets), Gram.from_arrays(design, targets, np.ones(50))
    for name in ("gram", "corr", "target_sq", "n_samples"):
        np.testing.assert_array_equal(getattr(plain, name), getattr(ones, name))
    weight = np.random.default_rng(2).uniform(0.0, 3.0, 50)
    gram = Gram.from_arrays(design, targets, weight)
    np.testing.assert_allclose(gram.gram, design.T * weight @ design, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(gram.corr, targets.T * weight @ design, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(gram.target_sq, weight @ targets**2, rtol=1e-12)
    # The minimiser: of the weighted least squares, whatever the unit of the weights.
    root = np.sqrt(weight)[:, None]
    expected = np.linalg.lstsq(root * design, root * targets, rcond=None)[0].T
    for unit in (1.0, 1e-3):
        solution = solve_rows(Gram.from_arrays(design, targets, unit * weight), 1e3)
        np.testing.assert_allclose(solution.coef, expected, atol=1e-10)


@pytest.mark.parametrize(
    ("weight", "words"),
    [
        (-np.eye(50)[0], "must be >= 0"),
        (np.where(np.arange(50) == 3, np.nan, 1.0), "NaN"),
        (np.where(np.arange(50) == 3, np.inf, 1.0), "infinite"),
        (np.ones(49), "shape"),
        (np.ones((50, 1)), "shape"),
        (2.0, "shape"),
        (np.zeros(50), "0 for every sample"),
        (np.full(50, 1e300), "overflow"),
        (np.full(50, 1e-300), "underflow"),
    ],
)
@pytest.mark.parametrize("sparse", [False, True])
def test_bad_weights_are_refused_and_add_nothing(weight, words, sparse):
    design, targets = data()
    gram = Gram.from_arrays(design, targets)
    before = gram.gram.copy()
    given = scipy.sparse.csr_array(design) if sparse else design
    with pytest.raises(InputError, match=words):
        gram.update(given, targets, sample_weight=weight)
    np.testing.assert_array_equal(gram.gram, before)
    assert gram.n_samples == 50
