"""The verification kit: right solvers pass, planted wrong ones are recognised by class."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch

import cimf
from cimf import Gram, solve_rows
from cimf.errors import InputError, UnknownNameError
from cimf.verification import FAMILIES, SUITES, Problem, Report, Verdict, problems, verify
from cimf.verification.diagnosis import ADVICE
from cimf.verification.mistakes import MISTAKES


def right(design, target, kappa, bounded=None, weights=None, signs=None, lam=None):
    return solve_rows(
        Gram.from_arrays(design, target), kappa, lam=lam,
        bounded=bounded, weights=weights, signs=signs, n_jobs=1,
    ).coef[0]  # fmt: skip


def constrained(design, target, kappa, bounded, weights, signs):
    return right(design, target, kappa, bounded, weights, signs)


def moments(gram, corr, kappa):
    """The right answer from moments alone; ||z||^2 is not given and not needed: any large one."""
    square = float(corr @ np.linalg.pinv(gram, rcond=1e-10) @ corr) * 1.1 + 1e-300
    one = Gram.from_moments(gram, corr[None, :], np.array([square]), 1)
    return solve_rows(one, kappa, n_jobs=1).coef[0]


@pytest.mark.parametrize("suite", [*SUITES, "quick"])
def test_the_right_solver_passes(suite):
    report = cimf.verify(constrained, suite, tol=1e-8)
    assert report.passed, report.findings()
    assert set(report.table["status"]) == {"passed"}
    assert report.table["excess"].max() <= 1e-8
    known = report.table.dropna(subset="precision")
    assert len(known) > 0
    assert (known[["precision", "recall"]] == 1.0).all(axis=None)


def test_a_solver_of_moments_passes_and_structured_problems_are_skipped():
    report = verify(moments, "quick")
    assert report.interface == "gram"
    assert report.passed, report.findings()
    skipped = report.table.query("status == 'skipped'")
    assert set(skipped["family"]) == {"structured"}
    assert set(skipped["detail"]) == {f"the solver takes no {k}" for k in
                                      ("bounded", "weights", "signs")}  # fmt: skip


def test_every_suite_is_deterministic_and_covers_its_families():
    first, second = problems("default"), problems("default")
    assert {p.family for p in first} == set(FAMILIES)
    assert len({(p.family, p.name) for p in first}) == len(first)
    for a, b in zip(first, second, strict=True):
        assert a.name == b.name
        assert a.kappa == b.kappa
        assert np.array_equal(a.design, b.design)
        assert np.array_equal(a.target, b.target)


# Wrong solvers, one of each class; `right` does the work of the wrong problem.


def raises(design, target, kappa):
    raise RuntimeError("singular matrix\nand more")


def wrong_shape(design, target, kappa):
    return np.zeros((3, 3))


def no_array(design, target, kappa):
    return {"coef": "none"}


def not_finite(design, target, kappa):
    """Gradient steps that diverge."""
    a = np.ones(design.shape[1])
    for _ in range(400):
        a = 1e20 * (design.T @ (design @ a - target)) - a
    return a / kappa if kappa else a * np.nan


def writes(design, target, kappa):
    answer = right(design, target, kappa)
    design *= 2.0
    return answer


def zeros(design, target, kappa):
    return np.zeros(design.shape[1])


def flipped(design, target, kappa):
    return -right(design, target, kappa)


def penalty(design, target, kappa):
    return right(design, target, None, lam=kappa)


def squared(design, target, kappa):
    return right(design, target, kappa**2)


def no_half(design, target, kappa):
    """Gradient 2 G a - c: the factor of one term only."""
    return right(design, 0.5 * target, kappa)


def per_sample(design, target, kappa):
    """scikit-learn's 1/(2 m) ||M a - z||^2 + alpha |a| with alpha = kappa."""
    return right(design, target, None, lam=len(target) * kappa)


def least_squares(design, target, kappa):
    return np.linalg.lstsq(design, target, rcond=1e-12)[0]


def loses_ties(design, target, kappa):
    corr = np.abs(design.T @ target)
    kept = np.array([not np.isclose(corr[:j], corr[j], rtol=1e-12).any() for j in range(len(corr))])
    return right(design, target, kappa, weights=np.where(kept, 1.0, np.inf))


def early(design, target, kappa):
    """Ten projected gradient steps."""
    a = np.zeros(design.shape[1])
    step = 1.0 / max(np.linalg.norm(design, 2) ** 2, 1e-300)
    for _ in range(10):
        a -= step * (design.T @ (design @ a - target))
        norm = np.abs(a).sum()
        a *= min(1.0, kappa / norm) if norm > 0 else 1.0
    return a


def bisected_early(design, target, kappa):
    low, high = 0.0, float(np.abs(design.T @ target).max())
    for _ in range(8):
        middle = 0.5 * (low + high)
        a = right(design, target, None, lam=middle)
        low, high = (low, middle) if np.abs(a).sum() < kappa else (middle, high)
    return right(design, target, None, lam=high)


def outside(design, target, kappa):
    """Right, and then a little too large."""
    return 1.01 * right(design, target, kappa)


def nonnegative(design, target, kappa):
    return right(design, target, kappa, signs=np.ones(design.shape[1]))


def transposed(design, target, kappa):
    return right(design.T, target, kappa)


def centred(design, target, kappa):
    return right(design - design.mean(axis=0), target - target.mean(), kappa)


def normalised(design, target, kappa):
    scale = np.linalg.norm(design, axis=0)
    return right(design / np.where(scale > 0, scale, 1.0), target, kappa)


def ridge_ball(design, target, kappa):
    """The l2 ball, by bisection over the ridge."""
    gram, corr = design.T @ design, design.T @ target
    value, vector = np.linalg.eigh(gram)
    proj = vector.T @ corr

    def at(t):
        return vector @ (proj / (np.maximum(value, 0.0) + t))

    low, high = 1e-14 * value[-1] + 1e-300, np.linalg.norm(corr) / max(kappa, 1e-300) + 1e-300
    for _ in range(200):
        middle = np.sqrt(low * high)
        low, high = (middle, high) if np.linalg.norm(at(middle)) > kappa else (low, middle)
    return at(high) if kappa else 0.0 * corr


def smooth(design, target, kappa):
    """Interior: every zero is 1e-9."""
    a = right(design, target, kappa)
    return np.where(a == 0, 1e-9 * np.abs(a).max(initial=0.0), a * (1 - 1e-7))


def penalised_bias(design, target, kappa, weights, signs):
    return right(design, target, kappa, None, np.where(weights == 0, 1.0, weights), signs)


def unweighted(design, target, kappa, weights, signs):
    plain = np.where(np.isfinite(weights) & (weights > 0), 1.0, weights)
    return right(design, target, kappa, None, plain, signs)


def includes_excluded(design, target, kappa, weights, signs):
    return right(design, target, kappa, None, np.where(np.isinf(weights), 1.0, weights), signs)


def unsigned(design, target, kappa, weights, signs):
    return right(design, target, kappa, None, weights)


def drops_small(design, target, kappa):
    """Right, then everything below 1 % of the largest is zero."""
    a = right(design, target, kappa)
    return np.where(np.abs(a) < 0.01 * np.abs(a).max(initial=0.0), 0.0, a)


def on_the_sphere(design, target, kappa):
    """Right, then scaled to the norm kappa."""
    a = right(design, target, kappa)
    norm = np.abs(a).sum()
    return a * (kappa / norm) if norm > 0 else a


def without_last(design, target, kappa):
    if design.shape[1] == 1:
        return np.zeros(1)
    return np.append(right(design[:, :-1], target, kappa), 0.0)


def without_first(design, target, kappa):
    return without_last(design[:, ::-1], target, kappa)[::-1]


PLANTED = {
    drops_small: "rounds small entries to zero",
    on_the_sphere: "sphere instead of the ball",
    without_last: "ignores the last column",
    without_first: "ignores the first column",
    raises: "raises RuntimeError",
    wrong_shape: "wrong shape",
    no_array: "wrong shape",
    not_finite: "not finite",
    writes: "changes its inputs",
    zeros: "returns zeros",
    flipped: "sign flipped",
    penalty: "kappa treated as lam",
    squared: "squared radius",
    no_half: "wrong scaling",
    per_sample: "wrong scaling",
    least_squares: "ignores the ball",
    loses_ties: "loses ties",
    early: "not optimal",
    bisected_early: "misses the radius",
    outside: "violates the ball",
    nonnegative: "non-negative only",
    transposed: "transposed design",
    centred: "centres the data",
    normalised: "normalises the columns",
    ridge_ball: "l2 ball",
    smooth: "no exact zeros",
    penalised_bias: "penalises the free columns",
    unweighted: "ignores the weights",
    includes_excluded: "uses excluded columns",
    unsigned: "ignores the signs",
}


@pytest.mark.parametrize(
    ("solver", "expected"), PLANTED.items(), ids=[solver.__name__ for solver in PLANTED]
)
@pytest.mark.parametrize("suite", ["quick", "default"])
def test_planted_wrong_solvers_are_recognised(solver, expected, suite):
    report = verify(solver, suite)
    assert not report.passed
    classes = [
        name for name in report.diagnosis if solver is not transposed or "raises" not in name
    ]
    assert classes[0] == expected, report.findings()
    assert any(line.startswith(expected) for line in report.findings())


def test_every_class_of_failure_has_advice_and_a_planted_solver():
    assert set(MISTAKES) <= set(ADVICE)
    assert set(ADVICE) - set(PLANTED.values()) == {"violates the signs", "limit of float64"}
    assert set(PLANTED.values()) - set(ADVICE) == {"raises RuntimeError"}


def test_an_exception_is_not_relabelled():
    def fragile(design, target, kappa):
        if len(design) > design.shape[1]:
            raise ZeroDivisionError("pivot 3")
        return right(design, target, kappa)

    report = verify(fragile, "gaussian")
    assert report.diagnosis == {"raises ZeroDivisionError": 6}
    assert report.failures[0].detail == "ZeroDivisionError: pivot 3"
    assert "see the message" in report.findings()[0]


def test_right_answers_to_designs_that_are_not_square_refute_a_transposed_one():
    def square_is_transposed(design, target, kappa):
        return (
            transposed(design, target, kappa)
            if len(set(design.shape)) == 1
            else right(design, target, kappa)
        )

    assert set(verify(square_is_transposed, "gaussian").diagnosis) == {"not optimal"}
    assert "transposed design" not in verify(drops_small, "default").diagnosis


@pytest.mark.parametrize(
    "wrap",
    [
        lambda a: (a, {"iterations": 3}),
        lambda a: (list(a), 0.5),
        lambda a: tuple(a),
        lambda a: list(a),
        lambda a: a[:, None],
        lambda a: scipy.sparse.csr_array(a[None]),
        lambda a: torch.tensor(a, requires_grad=True),
        lambda a: (torch.tensor(a, requires_grad=True), None),
        lambda a: torch.tensor(a[None], requires_grad=True) * 1.0,
    ],
)
def test_what_solvers_return_is_understood(wrap):
    report = verify(lambda design, target, kappa: wrap(right(design, target, kappa)), "quick")
    assert report.passed, [v.detail for v in report.failures]


@pytest.mark.parametrize(
    ("answer", "failure", "detail"),
    [
        (None, "wrong shape", "returned NoneType"),
        ((), "wrong shape", "returned shape"),
        ((None, 3), "wrong shape", "returned shape (2,)"),
        (np.array([1j]), "wrong shape", "complex numbers"),
        (np.array(["a"]), "wrong shape", "no array of numbers"),
        (object(), "wrong shape", "no array of numbers"),
    ],
)
def test_what_is_no_answer_is_a_finding(answer, failure, detail):
    problem = Problem("one", np.array([[2.0]]), np.array([3.0]), 1.0)
    verdict = verify(lambda design, target, kappa: answer, [problem]).verdicts[0]
    assert (verdict.status, verdict.failure) == ("failed", failure)
    assert detail in verdict.detail


def test_a_solver_that_exits_does_not_end_the_run():
    def leaves(design, target, kappa):
        sys.exit("licence not found")

    report = verify(leaves, "gaussian")
    assert report.diagnosis == {"raises SystemExit": 9}
    assert report.failures[0].detail == "SystemExit: licence not found"

    def interrupted(design, target, kappa):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        verify(interrupted, "gaussian")


def test_weights_that_are_written_are_a_finding():
    def writes_weights(design, target, kappa, weights, signs):
        answer = constrained(design, target, kappa, None, weights, signs)
        weights[:] = 1.0
        return answer

    assert "changes its inputs" in verify(writes_weights, "structured").diagnosis


def test_difficulty_is_the_span_of_the_data():
    rng = np.random.default_rng(0)
    design, target = np.linalg.qr(rng.normal(size=(30, 4)))[0], np.zeros(30)
    target[:] = design @ np.array([1.0, 2.0, 3.0, 4.0]) / np.sqrt(30.0)
    plain = Problem("plain", design, target, 100.0)
    assert plain.orders == pytest.approx(0.0, abs=1e-6)
    for problem, orders in (
        (Problem("large target", design, 1e6 * target, 1e9), 6.0),
        (Problem("small columns", 1e-5 * design, target, 1e9), 5.0),
        (Problem("columns apart", design * [1.0, 1e-3, 1.0, 1.0], target, 1e9), 3.0),
        (Problem("duplicates", np.hstack([design, design]), target, 100.0), 0.0),
        (Problem("zero target", design, 0.0 * target, 1.0), 0.0),
    ):
        assert problem.orders == pytest.approx(orders, abs=0.01), problem.name
        assert problem.at_limit == (orders >= 4.5)
    assert {p.family for p in problems("default") if p.at_limit} == {
        "scales", "adversarial", "dead_units", "states",
    }  # fmt: skip


def test_the_limit_of_float64_is_not_called_wrong():
    def absolute(design, target, kappa):
        """Right in the units around 1 that it was written for."""
        if not 1e-5 < np.linalg.norm(target) < 1e7 or not np.linalg.norm(design) < 1e7:
            return np.zeros(design.shape[1])
        return right(design, target, kappa)

    report = verify(absolute, [*problems("gaussian"), *problems("scales")])
    assert report.passed
    limited = [v for v in report.verdicts if v.status == "limit"]
    assert {v.failure for v in limited} == {"returns zeros"}
    assert all(v.problem.orders > 6 for v in limited)
    assert len(limited) == report.table["status"].eq("limit").sum() > 0
    assert f"0 failed, {len(limited)} at the limit of float64;" in report.summary()
    assert report.findings()[0].startswith(
        f"limit of float64 ({len(limited)} problems): not counted"
    )
    # The same answer at a problem of ordinary units is wrong, and then everywhere.
    assert verify(zeros, [*problems("gaussian"), *problems("scales")]).diagnosis == {
        "returns zeros": len(problems("gaussian")) + len(problems("scales"))
    }
    assert not verify(zeros, "scales").passed


def test_a_ball_of_radius_zero_is_judged_in_the_units_of_a_coefficient():
    problem = Problem("kappa = 0", np.eye(3), np.full(3, 1e3), 0.0)
    nearly = verify(lambda design, target, kappa: np.full(3, 1e-6), [problem]).verdicts[0]
    assert nearly.status == "passed"
    assert nearly.violation == pytest.approx(3e-6 / (1e3 * np.sqrt(3.0)))
    assert not verify(lambda design, target, kappa: np.full(3, 1.0), [problem]).passed


def test_reports_of_skipped_verdicts():
    problem = Problem("p", np.eye(2), np.ones(2), 1.0)
    skipped, passed = Verdict(problem, "skipped"), Verdict(problem, "passed")
    failed, limit = Verdict(problem, "failed", "not optimal"), Verdict(problem, "limit")
    for verdicts, expected in (
        ([], False),
        ([skipped, skipped], False),
        ([skipped, limit], False),
        ([skipped, passed], True),
        ([passed, limit], True),
        ([passed, failed], False),
    ):
        assert Report("s", "x", "design", 1e-6, tuple(verdicts)).passed is expected


def test_precision_and_recall():
    design = np.linalg.qr(np.random.default_rng(0).normal(size=(12, 5)))[0]
    problem = Problem("p", design, design @ np.array([3.0, 2.0, 1.0, 0.0, 0.0]), 5.5)
    assert problem.truth.support.tolist() == [True, True, True, False, False]
    for answer, precision, recall in (
        ([3.0, 0.0, 0.0, 1.0, 0.0], 1 / 2, 1 / 3),
        ([3.0, 2.0, 0.0, 0.0, 0.0], 1.0, 2 / 3),
        ([1.0, 1.0, 1.0, 1.0, 0.0], 3 / 4, 1.0),
        ([0.0, 0.0, 0.0, 0.0, 0.0], 1.0, 0.0),
    ):
        given = np.array(answer)
        verdict = verify(lambda design, target, kappa, a=given: a, [problem]).verdicts[0]
        assert (verdict.precision, verdict.recall) == (precision, recall)


def test_an_answer_with_a_forbidden_sign_is_named():
    design = np.eye(3)
    problem = Problem("signs", design, np.array([1.0, -2.0, 0.5]), 2.0, signs=np.array([1, 1, 0]))

    def wrong(design, target, kappa, signs):
        return np.array([1.0, -0.3, 0.2])

    assert list(verify(wrong, [problem]).diagnosis) == ["violates the signs"]


def test_approximate_zeros_can_be_accepted():
    assert verify(smooth, "quick", exact_zeros=False, tol=1e-5).passed


def test_the_tolerance_decides():
    def nearly(design, target, kappa):
        return (1 - 1e-4) * right(design, target, kappa)

    assert not verify(nearly, "gaussian", tol=1e-6).passed
    assert verify(nearly, "gaussian", tol=1e-3).passed


def test_support_is_judged_where_the_solution_is_unique():
    rng = np.random.default_rng(0)
    design = np.linalg.qr(rng.normal(size=(12, 4)))[0]
    target = design @ np.array([3.0, 2.0, 0.0, 0.0])
    unique = Problem("unique", design, target, 4.0)
    assert unique.truth.support.tolist() == [True, True, False, False]
    double = Problem("duplicate", np.hstack([design, design]), target, 4.0)
    assert double.truth.support is None
    # The third column joins exactly here: its multiplier is zero, its coefficient too.
    tied = Problem("degenerate", design, design @ np.array([3.0, 2.0, 1.0, 0.0]), 3.0)
    assert tied.truth.support is None

    def half_right(design, target, kappa):
        return np.array([kappa, 0.0, 1e-3, 0.0])

    verdict = verify(half_right, [unique]).verdicts[0]
    assert (verdict.precision, verdict.recall) == (0.5, 0.5)


def test_zero_targets_are_judged_in_the_units_of_the_ball():
    problem = Problem("zero target", np.eye(3), np.zeros(3), 2.0)
    assert problem.scale == pytest.approx(2.0)
    report = verify(lambda design, target, kappa: np.full(3, 1e-9), [problem])
    assert report.passed
    assert not verify(lambda design, target, kappa: np.full(3, 0.5), [problem]).passed


def test_report_formats_agree(tmp_path):
    report = verify(least_squares, "quick")
    record = json.loads(report.to_json())
    assert record["passed"] is False
    assert record["diagnosis"] == report.diagnosis
    assert len(record["problems"]) == len(report.table) == len(problems("quick"))
    assert [p["problem"] for p in record["problems"]] == list(report.table["problem"])
    text = report.to_markdown()
    assert text.count("\n| ") == len(report.table) + 2
    assert "- ignores the ball (" in text
    report.save(tmp_path)
    table = pd.read_csv(tmp_path / "verify.csv")
    np.testing.assert_allclose(table["excess"], report.table["excess"], rtol=1e-12)
    assert (tmp_path / "verify.md").read_text() == text
    assert json.loads((tmp_path / "verify.json").read_text()) == record


def test_the_terminal_report_names_the_class(capsys, monkeypatch):
    from rich.console import Console

    monkeypatch.setattr("cimf.runs.terminal.out", Console(highlight=False, width=100))
    verify(least_squares, "default").show()
    shown = capsys.readouterr().out
    assert "ignores the ball (" in shown
    assert "more, in the table of the report" in shown
    assert shown.strip().splitlines()[-1].startswith("least_squares on suite 'default'")


def test_progress_is_reported():
    done = []
    verify(zeros, "trivial", progress=done.append)
    assert done == list(range(1, len(problems("trivial")) + 1))


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((zeros, "nosuch"), UnknownNameError, "unknown suite 'nosuch'; known: adversarial, "),
        ((zeros, []), InputError, "no problems"),
        ((lambda a: a, "quick"), InputError, "this one takes (a)"),
        ((lambda foo, b, kappa: b, "quick"), InputError, "first parameter 'foo'"),
        ((3, "quick"), InputError, "cannot be read"),
    ],
)
def test_what_is_no_solver_is_refused(arguments, error, words):
    with pytest.raises(error) as caught:
        verify(*arguments)
    assert words in str(caught.value)


def test_bad_options_are_refused():
    with pytest.raises(InputError, match="'design' or 'gram'"):
        verify(zeros, "quick", interface="x")
    with pytest.raises(InputError, match="tol must be positive"):
        verify(zeros, "quick", tol=0.0)
    with pytest.raises(InputError, match="kappa must be finite"):
        Problem("p", np.eye(2), np.ones(2), np.nan)
    with pytest.raises(InputError, match="NaN"):
        Problem("p", np.full((2, 2), np.nan), np.ones(2), 1.0)


def test_the_interface_can_be_stated():
    def unnamed(a, b, radius):
        return right(a, b, radius)

    assert verify(unnamed, "gaussian", interface="design").passed


SOLVERS = """
import numpy as np
from cimf import Gram, solve_rows

def good(design, target, kappa):
    return solve_rows(Gram.from_arrays(design, target), kappa, n_jobs=1).coef[0]

def bad(design, target, kappa):
    return np.linalg.lstsq(design, target, rcond=None)[0]

def odd(foo, target, kappa):
    return bad(foo, target, kappa)
"""


@pytest.fixture
def run(command_line):
    invoke = command_line("mysolvers", SOLVERS)
    return lambda *arguments: invoke("verify", *arguments)


def test_command_line(run, tmp_path):
    good = run("mysolvers:good", "--suite", "quick", "--out", "o")
    assert good.exit_code == 0, good.output
    assert "good on suite 'quick' at tolerance 1e-06: 12 passed, 0 failed, 4 skipped" in good.output
    assert json.loads((tmp_path / "o" / "verify.json").read_text())["passed"] is True
    bad = run("mysolvers:bad", "--suite", "quick", "--json")
    assert bad.exit_code == 1
    assert next(iter(json.loads(bad.output)["diagnosis"])) == "ignores the ball"
    assert run("mysolvers:odd", "--suite", "quick", "--interface", "design").exit_code == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("mysolvers:odd",), "first parameter 'foo'"),
        (("mysolvers:good", "--suite", "x"), "unknown suite 'x'"),
        (("mysolvers:none",), "no function 'none'"),
        (("mysolvers:good", "--interface", "x"), "'design' or 'gram'"),
        (("mysolvers:good", "--tol", "0"), "tol must be positive"),
    ],
)
def test_command_line_errors_are_one_line(run, arguments, words):
    result = run(*arguments)
    assert result.exit_code == 1
    lines = [line for line in result.output.splitlines() if line.strip()]
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert words in lines[0]


def test_the_code_of_the_documentation_page_runs(run, tmp_path, capsys):
    page = Path(__file__).parents[2] / "docs" / "verify_a_solver.md"
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL)
    assert len(blocks) >= 3
    names: dict = {}
    for block in blocks:
        exec(compile(block, str(page), "exec"), names)
    shown = capsys.readouterr().out
    expected = re.search(r"```text\n(.*?)\n```", page.read_text(), flags=re.DOTALL)
    assert expected.group(1).splitlines()[0] in shown
