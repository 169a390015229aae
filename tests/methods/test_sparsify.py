import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

import cimf
from cimf import judge
from cimf.data import datasets
from cimf.errors import BackendError, CertificateError, InputError, UnknownNameError
from cimf.judge import certify
from cimf.methods.stacked.captured import Reference, least_squares
from cimf.methods.stacked.designs import DESIGNS, column_weights
from cimf.methods.stacked.model_report import block_misfits, relative_errors
from cimf.methods.stacked.moments import Moments
from cimf.methods.stacked.path_options import PathOptions
from cimf.methods.stacked.tie_break import own_rows, prefer_own_outputs, prefer_own_rows
from cimf.model.wellposed import layer_scales, state_scales
from cimf.solve.conic.backends import probe
from cimf.train.supervised import Schedule, batches, mlp, trained_mlp


@pytest.fixture(scope="module")
def data():
    return datasets.synthetic(n_samples=1200, n_features=8, n_classes=3, seed=1)


@pytest.fixture(scope="module")
def net(data):
    schedule = Schedule(epochs=20, learning_rate=1e-2, batch_size=64)
    return trained_mlp((8, 10, 6, 3), data, seed=0, schedule=schedule)


@pytest.fixture(scope="module")
def reference(data, net):
    return Reference.capture(
        net,
        batches(data.train_inputs, data.train_labels, 100),
        iter(batches(data.test_inputs, data.test_labels, 100)),
    )


def whole(samples):
    """The states of samples that fit in one chunk."""
    (states,) = samples.chunks()
    return states


def row_problems(reference, design, rescale=True):
    layout = reference.calibration.layout
    weights = column_weights(layout, DESIGNS[design].allowed(layout))
    return Moments.of(reference, rescale).gram, weights


def rows_in_solved_units(model, scale):
    scaled = model.scaled(scale)
    return np.hstack([scaled.A, scaled.B])


@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize("rescale", [True, False])
def test_every_row_is_certified_and_in_its_ball(reference, design, rescale):
    path = cimf.sparsify_path(reference, [0.0, 0.1, 0.9], design, rescale)
    layout = reference.calibration.layout
    scale = reference.scale(rescale)
    allowed = DESIGNS[design].allowed(layout)
    gram, weights = row_problems(reference, design, rescale)
    for result, kappa in zip(path, (0.0, 0.1, 0.9), strict=True):
        coef = result.report.solution.coef
        assert certify(gram, coef, kappa, weights=weights).passed.all()
        np.testing.assert_allclose(
            rows_in_solved_units(result.model, scale), coef, rtol=1e-12, atol=0
        )
        assert np.abs(coef[:, :-1]).sum(axis=1).max() <= kappa * (1 + 1e-9)
        assert not coef[~allowed].any()
        assert result.report.row()["worst_gap"] <= 1e-9


def test_designs_forbid_what_they_say(reference):
    path = {name: cimf.sparsify_path(reference, [0.5], name, rescale=False)[0] for name in DESIGNS}
    assert not np.diagonal(path["no-self-loop"].model.A).any()
    causal = path["causal"].model
    for block in reference.calibration.layout.blocks:
        assert not causal.A[block.rows, : block.stop].any()
    assert causal.wellposedness().acyclic
    assert np.diagonal(path["full"].model.A).any(), "this network uses self-loops"


def test_rescaled_and_causal_the_network_itself_is_found_again(reference):
    """It is feasible at 0.99 with residual zero, so that is the optimum."""
    result = cimf.sparsify_path(reference, [0.99], "causal")[0]
    assert max(result.report.state_error.values()) < 1e-6
    assert result.report.evaluation.output_error < 1e-6
    assert result.report.evaluation.accuracy == reference.dense_accuracy
    states = whole(reference.test)
    np.testing.assert_allclose(
        result.model.predict(states.U), states.Y, atol=1e-5 * np.abs(states.Y).max()
    )


def test_where_solutions_tie_the_networks_own_row_is_kept_if_it_is_sparser(reference):
    half, full = cimf.sparsify_path(reference, [0.5, 0.99], "full")
    gram, weights = row_problems(reference, "full")
    solver = cimf.solve_rows(gram, 0.99, weights=weights)
    solution = full.report.solution
    own = solution.method == "network"
    assert own.any()
    scaled = reference.own.scaled(reference.scale(True))
    np.testing.assert_array_equal(
        solution.coef[own], np.hstack([scaled.A.toarray(), scaled.B.toarray()])[own]
    )
    counts = [np.count_nonzero(found.coef, axis=1) for found in (solution, solver)]
    assert (counts[0][own] < counts[1][own]).all()
    np.testing.assert_array_equal(counts[0][~own], counts[1][~own])
    assert certify(gram, solution.coef, 0.99, weights=weights).passed.all()
    assert full.report.row()["sparsity_network_weights"] >= 0.0, "the network itself is feasible"
    assert f"own rows      {own.sum()} rows" in str(full.report)
    assert any("rows of (C, D) are the network's own" in note for note in full.report.notes)
    # Where the ball forbids the network its rows are no candidates.
    assert "network" not in half.report.methods
    assert not half.report.notes


def test_units_by_layer_admit_the_network_and_no_less(reference, data, net):
    scale = reference.scale("layers")
    rows = own_rows(reference, scale)[:, :-1]  # the bias is outside of the ball
    for block in reference.own.blocks:
        assert len(np.unique(scale[block.rows])) == 1
        assert np.abs(rows[block.rows]).sum(axis=1).max() == pytest.approx(0.99, abs=1e-12)
    found = cimf.sparsify_path(reference, [0.99], "causal", "layers")[0]
    assert found.report.evaluation.output_error < 1e-7
    assert "states rescaled by layer" in str(found.report)
    solved = cimf.sparsify_path(reference, [0.3], "causal", "layers")[0]
    gram, weights = row_problems(reference, "causal", "layers")
    assert certify(gram, solved.report.solution.coef, 0.3, weights=weights).passed.all()
    model = rows_in_solved_units(solved.model, scale)
    np.testing.assert_allclose(model, solved.report.solution.coef, rtol=1e-12)
    with pytest.raises(InputError, match="rescale must be True, False or 'layers'"):
        cimf.sparsify(net, batches(data.train_inputs, data.train_labels), rescale="rows")


def test_units_by_layer_of_a_layer_with_too_much_feedback_are_refused():
    A = np.array([[0.0, 0.0], [2.0, 0.0]])  # eigenvalue 0, but a row of 2
    one, by_layer = (state_scales, layer_scales)
    assert (one(A, np.ones((2, 1))) > 0).all()
    with pytest.raises(InputError, match="no scale per layer"):
        by_layer(A, np.ones((2, 1)), [slice(0, 2)])
    np.testing.assert_allclose(by_layer(0.25 * A, np.ones((2, 1)), [slice(0, 2)], 1.0), 2.0)


def test_a_sparser_row_that_is_not_optimal_is_not_preferred(reference):
    gram, weights = row_problems(reference, "full")
    solution = cimf.solve_rows(gram, 0.99, weights=weights)
    wrong = own_rows(reference, reference.scale(True))
    wrong[:, 0] += 1e-3
    assert prefer_own_rows(solution, wrong, gram, 0.99, weights) is solution
    assert prefer_own_rows(solution, 0 * wrong, gram, 0.99, weights) is solution
    outputs, replaced = prefer_own_outputs(
        np.ones((1, 2)), np.array([[1.0, 0.0]]), np.eye(2), np.ones((1, 2)), 1e-9
    )
    assert replaced == 0
    assert outputs.all()


def test_rows_whose_ball_is_inactive_are_counted(reference):
    empty, tight, loose = (r.report for r in cimf.sparsify_path(reference, [0.0, 1e-3, 0.99]))
    assert (empty.inactive, loose.inactive) == (0, 16)
    dead = int((~whole(reference.calibration).X.any(axis=1)).sum())
    assert tight.inactive <= dead
    assert "inactive ball 16 of 16 rows" in str(loose)
    assert "inactive" not in str(empty)
    assert loose.row()["inactive_rows"] == 16


def test_accuracy_stands_between_dense_network_and_control(reference):
    """No linear map separates this data; the network does, and so does its sparse model."""
    report = cimf.sparsify_path(reference, [0.9], "causal")[0].report
    assert report.dense_accuracy > 0.9
    assert report.control_accuracy < 0.6
    assert report.evaluation.accuracy > 0.85
    assert report.evaluation.converged == report.evaluation.samples == len(reference.labels)


def test_accuracy_is_computed_from_the_equilibrium(reference):
    result = cimf.sparsify_path(reference, [0.1])[0]
    states, model = whole(reference.test), result.model
    Y = model.predict(states.U)
    assert result.report.evaluation.accuracy == np.mean(Y.argmax(axis=0) == reference.labels)
    assert result.report.evaluation.output_error == pytest.approx(
        np.linalg.norm(Y - states.Y) / np.linalg.norm(states.Y)
    )
    captured = model.output(states.X, states.U)
    assert np.linalg.norm(captured - Y) > 1e-3, "captured states would have given another figure"


def test_the_default_output_has_no_map_of_the_input(reference):
    narrow = cimf.sparsify_path(reference, [0.1])[0]
    assert not narrow.model.D[:, :-1].any()
    wide = cimf.sparsify_path(reference, [0.1], options=PathOptions(output_inputs=True))[0]
    assert wide.model.D[:, :-1].any()
    assert wide.report.evaluation.accuracy == narrow.report.evaluation.accuracy_with_inputs
    assert wide.report.evaluation.accuracy_with_inputs is None


def test_without_refit_problem_5_gives_the_networks_own_head(reference, net):
    model = cimf.sparsify_path(reference, [0.1], options=PathOptions(refit=False))[0].model
    head = net[-1].weight.detach().double().numpy()
    states = whole(reference.calibration)
    np.testing.assert_allclose(
        model.output(states.X, states.U), states.Y, atol=1e-8 * np.abs(states.Y).max()
    )
    last = states.blocks[0]
    alive = states.X[last.rows].any(axis=1)
    np.testing.assert_allclose(model.C[:, last.rows][:, alive], head[:, alive], atol=1e-6)


def test_refit_is_no_worse_on_the_samples_it_was_fitted_to(reference):
    states = whole(reference.calibration)
    errors = []
    for refit in (True, False):
        model = cimf.sparsify_path(reference, [0.1], options=PathOptions(refit=refit))[0].model
        errors.append(np.linalg.norm(model.predict(states.U) - states.Y))
    assert errors[0] <= errors[1] * (1 + 1e-12)


def test_kappa_zero_empties_every_row(reference):
    report = cimf.sparsify_path(reference, [0.0])[0].report
    n = reference.calibration.layout.n_states
    assert report.nonzeros.emptied[:n] == tuple(range(n))
    assert f"{n - 6} emptied rows" in str(report)


def test_a_failed_certificate_raises_or_is_reported_never_averaged(reference, monkeypatch):
    import importlib

    module = importlib.import_module("cimf.methods.stacked.sparsify")
    honest = module.solve_path

    def corrupted(gram, kappas, **keywords):
        out = []
        for kappa, solution in zip(kappas, honest(gram, kappas, **keywords), strict=True):
            coef = solution.coef.copy()
            coef[2] *= 0.99
            certificate = certify(gram, coef, kappa, weights=keywords["weights"])
            out.append(dataclasses.replace(solution, coef=coef, certificate=certificate))
        return tuple(out)

    monkeypatch.setattr(module, "solve_path", corrupted)
    with pytest.raises(CertificateError, match=r"1 of 16 rows.*keep_going=True.*tol=") as caught:
        cimf.sparsify_path(reference, [0.1, 0.2])
    # Nothing is lost: every level is finished and carried.
    finished = caught.value.result
    assert [part.report.kappa for part in finished] == [0.1, 0.2]
    assert caught.value.solution is finished[0].report.solution
    kept = cimf.sparsify_path(reference, [0.1, 0.2], options=PathOptions(keep_going=True))
    for part, same in zip(finished, kept, strict=True):
        np.testing.assert_array_equal(part.model.A, same.model.A)
    monkeypatch.setattr(module.Reference, "capture", lambda *_: reference)
    with pytest.raises(CertificateError) as caught:
        cimf.sparsify(None, None, kappa=0.1)
    np.testing.assert_array_equal(caught.value.result.model.A, kept[0].model.A)
    report = cimf.sparsify_path(reference, [0.1], options=PathOptions(keep_going=True))[0].report
    assert report.certified == 15
    assert report.row()["worst_gap"] > 1e-9
    assert "15 of 16 rows certified" in str(report)


@pytest.mark.parametrize("kappas", [[], [-0.1], [np.nan], [np.inf], [0.1, -1.0], ["a"]])
def test_impossible_kappas(reference, kappas):
    with pytest.raises(InputError):
        cimf.sparsify_path(reference, kappas)


def test_kappa_above_one_needs_a_reason(reference):
    for design in ("full", "no-self-loop"):
        with pytest.raises(InputError, match="unique equilibrium"):
            cimf.sparsify_path(reference, [1.5], design)
    assert cimf.sparsify_path(reference, [1.5], "causal")[0].report.wellposedness.acyclic
    report = cimf.sparsify_path(reference, [1.5], options=PathOptions(allow_ill_posed=True))[
        0
    ].report
    assert report.certified == 16


@pytest.mark.parametrize(
    ("option", "known"),
    [
        ({"design": "magic"}, "causal.*full.*no-self-loop"),
        ({"method": "magic"}, "exact"),
        ({"method": "cvxpy", "backend": "gurobi"}, "clarabel"),
    ],
)
def test_unknown_names_list_the_known_ones(reference, option, known):
    with pytest.raises(UnknownNameError, match=known):
        cimf.sparsify(mlp((4, 5, 3), seed=0), [X], 0.1, **option)


def test_cvxpy_agrees_with_the_fast_path(reference):
    fast = cimf.sparsify_path(reference, [0.1, 0.5])
    done = []
    slow = cimf.sparsify_path(
        reference, [0.1, 0.5], options=PathOptions("cvxpy", "clarabel"), progress=done.append
    )
    for a, b in zip(fast, slow, strict=True):
        first, second = a.report.solution, b.report.solution
        half = np.maximum(first.objective, 1e-300)
        assert np.all(first.objective <= second.objective * (1 + 1e-7) + 1e-12)
        assert (np.abs(first.objective - second.objective) / half).max() < 1e-5
        assert all("clarabel" in method for method in b.report.methods)
    assert done[-1] == reference.calibration.layout.n_states


@pytest.mark.skipif(probe("mosek").works, reason="MOSEK has a licence here")
def test_an_unusable_backend_is_named(reference):
    with pytest.raises(BackendError, match="mosek does not work here"):
        PathOptions(method="cvxpy", backend="mosek")


def test_few_samples_warn(net, data):
    with pytest.warns(UserWarning, match="20 calibration samples for 25 columns"):
        report = cimf.sparsify(net, [torch.from_numpy(data.train_inputs[:20])]).report
    assert "note: 20 calibration samples" in str(report)
    assert report.evaluation.accuracy is None
    assert report.row()["accuracy"] is None


def test_states_that_cannot_be_rescaled_are_reported():
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2))
    samples = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
    report = cimf.sparsify(net, [samples]).report
    assert any("5 states keep their units" in note for note in report.notes)
    assert report.certified == 9


def test_a_network_without_biases_and_one_output():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 20, bias=False), nn.ReLU(), nn.Linear(20, 1, bias=False))
    inputs = torch.randn(300, 4)
    labels = (net(inputs)[:, 0] > 0).long()
    result = cimf.sparsify(net, [inputs], 0.99, "causal", test=[(inputs, labels)])
    assert (
        result.report.nonzeros.network_parameters == result.report.nonzeros.network_weights == 100
    )
    assert result.report.dense_accuracy == 1.0
    assert result.report.evaluation.accuracy > 0.98


@pytest.mark.parametrize(
    "labels", [torch.full((50,), 0.5), torch.full((50,), torch.nan), torch.zeros(50, 2)]
)
def test_labels_must_be_classes(labels):
    inputs = torch.randn(50, 3)
    with pytest.raises(InputError, match="whole class numbers"):
        Reference.capture(mlp((3, 4, 2), 0), [inputs], [(inputs, labels)])


def test_labels_may_be_whole_numbers_of_any_type():
    inputs, labels = torch.randn(50, 3), torch.arange(50) % 2
    net = mlp((3, 4, 2), 0)
    expected = Reference.capture(net, [inputs], [(inputs, labels)]).labels
    for kind in (torch.float32, torch.float64, torch.uint8):
        found = Reference.capture(net, [inputs], [(inputs, labels.to(kind))]).labels
        np.testing.assert_array_equal(found, expected)


def test_accounting_of_the_report_counts_the_model(reference):
    result = cimf.sparsify_path(reference, [0.1])[0]
    model, count = result.model, result.report.nonzeros
    total = sum(np.count_nonzero(part) for part in (model.A, model.B, model.C, model.D))
    assert count.weights + count.biases == total
    assert count.network_weights == 8 * 10 + 10 * 6 + 6 * 3
    assert count.network_parameters == count.network_weights + 10 + 6 + 3
    assert [block.name for block in count.blocks][-1] == "output"
    assert set(result.report.row()) >= {f"sparsity_{name}" for name in judge.DENOMINATORS}


def test_block_errors_find_a_planted_error(reference):
    states = whole(reference.calibration)
    wrong = states.Z.copy()
    wrong[states.blocks[1].rows] *= 1.1
    halves = [slice(100), slice(100, None)]
    misfits = sum(block_misfits(states.blocks, states.Z[:, h], wrong[:, h]) for h in halves)
    errors = relative_errors(states.blocks, misfits)
    assert errors[states.blocks[0].name] == 0.0
    assert errors[states.blocks[1].name] == pytest.approx(0.1)


def test_least_squares_ignores_what_is_noise_in_its_units():
    rng = np.random.default_rng(0)
    signal = rng.standard_normal((2, 50))
    regressors = np.vstack([signal, 1e-14 * rng.standard_normal((1, 50)), np.zeros((1, 50))])
    targets = np.array([[1.0, -2.0], [0.5, 0.0]]) @ signal + 0.1 * rng.standard_normal((2, 50))
    units = np.full(4, np.sqrt(50.0))
    fitted = least_squares(regressors, targets, units)
    assert np.abs(fitted[:, 2:]).max() < 1e-6
    np.testing.assert_allclose(fitted[:, :2], least_squares(signal, targets), atol=1e-10)


X = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("batches", "options", "message"),
    [
        (None, {}, "batches must be an iterable of tensors, got NoneType"),
        ([X], {"test": 3}, "test batches must be an iterable of tensors, got int"),
        ([X], {"kapa": 0.5}, "unknown option 'kapa'; known: .*kappa.*method.*tol"),
        ([X], {"refit": "no"}, "refit must be True or False"),
        ([X], {"kappa": [0.1, 0.5]}, "several share one pass over the rows: cimf.sparsify_path"),
        ([X], {"design": "layered"}, r"cimf.prune\(net, batches, sparsity=0.8\)"),
        ([X], {"design": "layered", "target_sparsity": 0.5}, "cimf.prune"),
        ([X], {"target_sparsity": 0.5}, "unknown option 'target_sparsity'"),
        ([X], {"backend": "clarabel"}, "backend is used by method='cvxpy'"),
        ([X], {"backend": "gurobi"}, "unknown backend 'gurobi'; known: auto, clarabel"),
        ([X], {"method": "foo"}, "known: auto, bisection, cvxpy, exact, torch"),
        ([X], {"test": [(X[:2], torch.tensor([0, 3]))]}, "from 0 to 3; .* classes 0 to 2"),
        ([X], {"test": [(X[:2], torch.tensor([-1, 1]))]}, "from -1 to 1"),
        ([X], {"n_jobs": 0}, "n_jobs must not be 0"),
    ],
)
def test_what_cannot_be_used_is_refused(batches, options, message):
    with pytest.raises(InputError, match=message):
        cimf.sparsify(mlp((4, 5, 3), seed=0), batches, **options)


@pytest.mark.parametrize(
    "option", [{"method": "foo"}, {"design": "foo"}, {"kappa": -1.0}, {"n_jobs": 0}, {"tol": 0.0}]
)
def test_wrong_options_are_refused_before_anything_is_captured(option):
    def samples():
        pytest.fail("calibration samples were read")
        yield

    with pytest.raises(InputError, match=r"unknown|kappas|n_jobs|tol"):
        cimf.sparsify(mlp((4, 5, 3), seed=0), samples(), **option)


def test_the_layered_design_names_prune(reference):
    with pytest.raises(InputError, match=r"cimf.prune\(net, batches, sparsity=0.8\)"):
        cimf.sparsify_path(reference, [0.5], "layered")


def test_equal_kappas_are_refused(reference):
    with pytest.raises(InputError, match="given once"):
        cimf.sparsify_path(reference, [0.5, 0.1, 0.5])


def test_one_output_tells_two_classes():
    net = mlp((4, 5, 1), seed=0)
    for label in (0, 1):
        cimf.sparsify(net, [X], test=[(X[:2], torch.tensor([0, label]))])
    with pytest.raises(InputError, match="classes 0 to 1"):
        cimf.sparsify(net, [X], test=[(X[:2], torch.tensor([0, 2]))])


def test_states_that_cannot_be_rescaled_are_not_called_rescaled():
    tanh = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    report = cimf.sparsify(tanh, [X]).report
    assert "states as captured" in str(report)
    assert "no state was rescaled" in str(report)
    report = cimf.sparsify(mlp((4, 5, 3), seed=0), [X]).report
    assert "states rescaled" in str(report)
    assert not report.notes


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_16_bit_network_is_named_in_the_report(dtype):
    report = cimf.sparsify(mlp((4, 5, 3), seed=0).to(dtype), [X]).report
    name = str(dtype).removeprefix("torch.")
    assert f"weights were {name}: captured in float64 from the rounded weights" in report.notes


def test_a_large_model_of_a_convolution_points_to_prune():
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    images = torch.randn(200, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    large, small = (cimf.sparsify(net, [images], kappa=kappa).report for kappa in (0.9, 0.0))
    assert large.row()["sparsity_network_weights"] < -1
    assert any("cimf.prune" in note for note in large.notes)
    assert not any("cimf.prune" in note for note in small.notes)


def test_a_model_that_is_worth_little_says_so():
    net = mlp((4, 8, 6, 3), seed=0)
    test = [(X, net(X).argmax(1))]
    poor, good = (cimf.sparsify(net, [X], kappa=k, test=test).report for k in (0.0, 0.99))
    zero, useless = poor.notes[-2:]
    assert zero.startswith("A is zero: no state reads another")
    assert f"{poor.control_accuracy:.2%}: the states add nothing" in useless
    assert good.evaluation.accuracy > good.control_accuracy
    assert not any("A is zero" in note or "add nothing" in note for note in good.notes)
