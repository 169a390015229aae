"""Suites, verdicts and reports against values by hand."""

import io
import time

import numpy as np
import pytest
from rich.console import Console

from cimf.errors import InputError
from cimf.runs import terminal
from cimf.verification import FAMILIES, Problem, Report, Verdict, problems, verify
from cimf.verification.interface import Interface
from cimf.verification.verdict import settled

# z is 3 times half the column: h(a) = 1/2 (2 a - 3)^2, least squares at 1.5, h(1) = 1/2.
ONE = Problem("one", np.array([[2.0]]), np.array([3.0]), 1.0)


def size(problem):
    """A number that changes with every entry of a problem."""
    m, n = problem.design.shape
    place = 1.0 + np.arange(n)
    finite = np.where(np.isfinite(problem.weights), problem.weights, 0.0)
    parts = (
        problem.kappa,
        np.linalg.norm(problem.design @ np.cos(place)),
        np.cos(1.0 + np.arange(m)) @ problem.target,
        finite @ place,
        np.isinf(problem.weights) @ place,
        problem.signs @ np.sqrt(place),
    )
    return np.log10(1e-12 + np.abs(parts)).sum()


# What a suite asks decides what "passed" means: it is changed on purpose, and then here.
SUITE = {
    "gaussian": (9, -167.198656),
    "correlated": (4, -76.6876682),
    "ties": (11, -235.460574),
    "duplicates": (9, -179.783638),
    "trivial": (14, -360.210245),
    "deficient": (8, -153.191198),
    "dead_units": (5, -112.155799),
    "scales": (12, -226.426009),
    "structured": (10, -109.765457),
    "adversarial": (33, -653.149695),
    "states": (15, -278.461219),
}


def test_the_suites_ask_what_they_asked():
    assert {name: len(problems(name)) for name in FAMILIES} == {k: c for k, (c, _) in SUITE.items()}
    for name, (_, total) in SUITE.items():
        assert sum(map(size, problems(name))) == pytest.approx(total, rel=1e-6), name
    names = [p.name for p in problems("quick")]
    assert names == [
        "gaussian 60x20, 0.3 of LS",
        "gaussian 24x24, 0.3 of LS",
        "common mean, 0.5 of LS",
        "all columns tied, 0.5 of LS",
        "tied beside others, 0.1 of LS",
        "duplicates, 0.6 of LS",
        "kappa = 0",
        "ball just inactive, 1.5 of LS",
        "m < N, 0.5 of LS",
        "columns x 1e-08, target x 1, 0.4 of LS",
        "columns x 1e+08, target x 1, 0.4 of LS",
        "weights, kappa 3",
        "free columns, kappa 3",
        "excluded columns, kappa 3",
        "signs, kappa 3",
        "14 segments, 0.5 of LS",
    ]


def test_columns_of_the_suites_that_are_almost_alike():
    """By how much is what those families are about, and too little for the sums above."""
    (near, _) = [p.design for p in problems("duplicates") if p.name.startswith("near")]
    assert np.std(near[:, 10:] - near[:, :10]) == pytest.approx(1e-9, rel=0.1)
    (clique, _) = [p.design for p in problems("adversarial") if p.name.startswith("almost")]
    apart = clique.reshape(30, 4, 6).std(axis=2, ddof=1)
    assert np.sqrt(np.square(apart).mean()) == pytest.approx(1e-5, rel=0.1)


def test_the_truth_of_a_problem_by_hand():
    truth = ONE.truth
    np.testing.assert_allclose(truth.coef, [1.0], rtol=1e-12)
    assert truth.objective == pytest.approx(0.5)
    assert truth.lam == pytest.approx(2.0)  # the gradient is 4 - 6
    assert 0 <= truth.gap <= 1e-12
    assert truth.support.tolist() == [True]
    assert truth.seconds > 0
    assert ONE.scale == 4.5
    inside = Problem("inside", ONE.design, ONE.target, 2.0).truth
    assert (inside.lam, inside.objective) == (0.0, pytest.approx(0.0, abs=1e-15))
    free = Problem("free", np.eye(2), np.array([3.0, 4.0]), 1.0, weights=np.array([1.0, 0.0]))
    assert free.scale == pytest.approx(4.5), "what the free column leaves of 12.5"
    assert free.bounded.tolist() == [True, False]
    zero = Problem("zero", np.diag([2.0, 3.0]), np.zeros(2), 2.0, weights=np.array([1.0, 3.0]))
    assert zero.scale == pytest.approx(0.5 * 4.0**2)
    for array in (ONE.design, ONE.target, ONE.weights, ONE.signs):
        assert not array.flags.writeable
    given = np.array([[2.0]])
    mine = Problem("mine", given, [3.0], 1.0)
    given[0] = 7.0
    assert mine.design[0, 0] == 2.0
    for kappa in (-1.0, np.inf):
        with pytest.raises(InputError, match="problem p: kappa must be finite"):
            Problem("p", np.eye(2), np.ones(2), kappa)


@pytest.mark.parametrize(
    ("answer", "status", "failure", "excess", "violation", "gap", "detail"),
    [
        (1.0, "passed", "", 0.0, 0.0, 0.0, ""),
        # The gap is a g + kappa |g| = 2 at a = 1/2, g = -4; further out h >= 0 bounds better.
        (0.5, "failed", "", 1 / 3, 0.0, 2 / 4.5, "objective excess 3.3e-01"),
        (1.2, "failed", "", (0.18 - 0.5) / 4.5, 0.2, np.nan, "violation 2.0e-01"),
        (2.5, "failed", "", (2.0 - 0.5) / 4.5, 1.5, np.nan,
         "objective excess 3.3e-01, violation 1.5e+00"),
        (-1.0, "failed", "sign flipped", (12.5 - 0.5) / 4.5, 0.0, 12.5 / 4.5,
         "objective excess 2.7e+00"),
        (0.0, "failed", "", (4.5 - 0.5) / 4.5, 0.0, 1.0, "objective excess 8.9e-01"),
    ],
)  # fmt: skip
def test_a_verdict_by_hand(answer, status, failure, excess, violation, gap, detail):
    def solver(design, target, kappa):
        time.sleep(0.02)
        return [answer]

    (verdict,) = verify(solver, [ONE]).verdicts
    assert verdict.status == status
    assert bool(verdict.failure) == (status == "failed")
    assert failure in ("", verdict.failure)
    found = (verdict.excess, verdict.violation, verdict.gap)
    np.testing.assert_allclose(found, (excess, violation, gap), rtol=1e-9, atol=1e-12)
    assert verdict.detail == detail
    assert (verdict.precision, verdict.recall) == (1.0, float(answer != 0))
    assert 0.02 <= verdict.seconds < 5.0
    assert verdict.ours_seconds == ONE.truth.seconds


def test_a_ball_of_radius_zero_without_any_scale_has_unit_1():
    for design, target in ((np.eye(2), np.zeros(2)), (np.zeros((2, 2)), np.ones(2))):
        problem = Problem("p", design, target, 0.0)
        verdict = verify(lambda design, target, kappa: [0.25, 0.0], [problem]).verdicts[0]
        assert (verdict.violation, verdict.status) == (0.25, "failed")


def test_zeros_that_were_not_rounded():
    """Named where an answer is accurate and has no exact zero off the support."""
    design = np.eye(4)
    problem = Problem("p", design, np.array([3.0, 2.0, 0.0, 0.0]), 4.0)
    assert problem.truth.support.tolist() == [True, True, False, False]
    for off, failure, detail in (
        ([0.0, 0.0], "", ""),
        ([1e-9, 0.0], "", ""),
        ([1e-9, -2e-9], "no exact zeros", "no exact zero off the support, largest 2.0e-09"),
    ):
        answer = [2.5, 1.5, *off]
        verdict = verify(lambda design, target, kappa, a=answer: a, [problem]).verdicts[0]
        assert (verdict.failure, verdict.detail) == (failure, detail)
        assert verdict.status == ("failed" if failure else "passed")
        loose = verify(lambda design, target, kappa, a=answer: a, [problem], exact_zeros=False)
        assert loose.passed
    # Large entries off the support are no rounding: what is said is the excess.
    wrong = verify(lambda design, target, kappa: [2.4, 1.4, 0.1, 0.1], [problem], tol=0.1)
    assert wrong.passed


def test_tolerances_pass_at_their_value():
    for answer in (1.2, 0.8):
        report = verify(lambda design, target, kappa, a=answer: [a], [ONE], tol=0.3)
        assert report.passed
    verdict = verify(lambda design, target, kappa: [1.2], [ONE], tol=0.19).verdicts[0]
    assert (verdict.status, verdict.detail) == ("failed", "violation 2.0e-01")


def test_a_row_of_the_table_has_everything():
    verdict = Verdict(
        ONE, "failed", "not optimal", "seen", 0.1, 0.2, 0.3, 0.4, 0.5, seconds=6.0, ours_seconds=2.0
    )
    assert verdict.row() == {
        "problem": "one", "family": "own", "samples": 1, "columns": 1, "kappa": 1.0,
        "orders": ONE.orders, "status": "failed", "failure": "not optimal", "detail": "seen",
        "excess": 0.1, "violation": 0.2, "gap": 0.3, "precision": 0.4, "recall": 0.5,
        "seconds": 6.0, "ours_seconds": 2.0, "time_ratio": 3.0,
    }  # fmt: skip


def made_up():
    two = Problem("two | three", np.ones((4, 2)), np.arange(4.0), 0.5, family="pairs")
    right = Verdict(ONE, "passed", "", "", 0.0, 0.0, 1e-12, 1.0, 0.5, 4.0, 2.0)
    wrong = Verdict(
        two,
        "failed",
        "not optimal",
        "excess [bold]",
        0.25,
        np.nan,
        np.nan,
        np.nan,
        np.nan,
        1.0,
        4.0,
    )
    limit = Verdict(two, "limit", "wrong scaling", "", 2e-5, seconds=9.0, ours_seconds=1.0)
    skipped = Verdict(two, "skipped", detail="the solver takes no signs")
    return Report("mine", "hand", "design", 1e-6, (right, wrong, limit, skipped))


def test_a_report_by_hand(tmp_path):
    report = made_up()
    assert not report.passed
    assert report.summary() == (
        "mine on suite 'hand' at tolerance 1e-06: 1 passed, 1 failed, 1 at the limit of float64, "
        "1 skipped; 2 times our time in the median"
    )
    assert report.diagnosis == {"not optimal": 1}
    first, second = report.findings()
    assert first.startswith("not optimal (1 problems): inside the ball")
    assert second.startswith("limit of float64 (1 problems): not counted as wrong")
    heading, rows = report.lines()
    assert heading == [
        "problem", "verdict", "excess", "violation", "gap", "precision", "recall", "time / ours",
    ]  # fmt: skip
    assert rows == [
        ["one", "passed", "0e+00", "0e+00", "1e-12", "1", "0.5", "2"],
        ["two | three", "failed: not optimal - excess [bold]", "2e-01", "", "", "", "", "0.25"],
        ["two | three", "limit: wrong scaling", "2e-05", "", "", "", "", "9"],
        ["two | three", "skipped: the solver takes no signs", "", "", "", "", "", ""],
    ]
    text = report.to_markdown().splitlines()
    assert text[0] == report.summary()
    assert text[1:5] == ["", f"- {first}", f"- {second}", ""]
    assert text[5] == "| " + " | ".join(heading) + " |"
    assert text[6] == "| --- | --- |" + " ---: |" * 6
    assert text[8].startswith(r"| two \| three | failed: not optimal - excess [bold] | 2e-01 |")
    record = report.record()
    assert record.pop("problems")[0] == report.verdicts[0].row()
    assert record.pop("versions")["numpy"] == np.__version__
    assert record == {
        "solver": "mine", "suite": "hand", "interface": "design", "tol": 1e-6, "passed": False,
        "diagnosis": {"not optimal": 1},
    }  # fmt: skip
    report.save(tmp_path / "new")
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [
        "verify.csv", "verify.json", "verify.md",
    ]  # fmt: skip
    clean = Report("mine", "hand", "gram", 1e-6, report.verdicts[:1])
    assert clean.summary() == (
        "mine on suite 'hand' at tolerance 1e-06: 1 passed, 0 failed; 2 times our time in the "
        "median"
    )
    assert "\n\n\n" not in clean.to_markdown()
    nothing = Report("mine", "hand", "gram", 1e-6, report.verdicts[3:])
    assert nothing.summary().endswith("0 passed, 0 failed, 1 skipped")


@pytest.mark.parametrize("failures", [1, 12, 14])
def test_what_a_terminal_shows(monkeypatch, failures):
    stream = io.StringIO()
    monkeypatch.setattr(terminal, "out", Console(file=stream, width=110, highlight=False))
    right, wrong, limit, skipped = made_up().verdicts
    report = Report("mine", "hand", "design", 1e-6, (right, *[wrong] * failures, limit, skipped))
    report.show()
    lines = stream.getvalue().splitlines()
    cells = [line.split() for line in lines]
    assert ["own", "1", "0", "0", "0", "0e+00", "0e+00", "2"] in cells
    shown = "0.25" if failures > 1 else "4.62"  # of 0.25 and 9
    assert ["pairs", "0", str(failures), "1", "1", "2e-01", shown] in cells
    failed = "failed pairs, two | three - not optimal: excess [bold]"
    assert lines.count(failed) == min(failures, 12)
    assert sum("more, in the table" in line for line in lines) == (failures > 12)
    assert ("... and 2 more, in the table of the report" in lines) == (failures == 14)
    assert [line for line in lines if line in report.findings()] == report.findings()
    assert lines[-1] == report.summary()


def test_a_class_is_chosen_by_what_explains_most():
    def failed(problem=ONE):
        return Verdict(problem, "failed")

    far = Problem("far", np.array([[1e-6]]), np.array([1e-6]), 0.5)
    assert far.at_limit
    chosen = settled([
        (failed(), ["squared radius", "wrong scaling"]),
        (failed(), ["wrong scaling"]),
        (failed(), ["misses the radius", "squared radius"]),
        (failed(far), ["wrong scaling"]),
        (failed(far), ["l2 ball"]),
        (failed(far), ["not optimal"]),
        (Verdict(ONE, "failed", "not finite"), []),
        (Verdict(far, "failed", "not finite"), []),
    ])  # fmt: skip
    assert [(v.status, v.failure) for v in chosen] == [
        ("failed", "wrong scaling"), ("failed", "wrong scaling"), ("failed", "squared radius"),
        ("failed", "wrong scaling"), ("limit", "l2 ball"), ("limit", "not optimal"),
        ("failed", "not finite"), ("failed", "not finite"),
    ]  # fmt: skip
    # The general class gives way to a special one that explains half as many.
    several = [(failed(), ["misses the radius", "squared radius"])]
    several += [(failed(), ["misses the radius"])] * 3
    assert [v.failure for v in settled(several)] == ["misses the radius"] * 4
    assert settled(several[:2])[0].failure == "squared radius"


WIDE = Problem("wide", np.eye(2, 3), np.ones(2), 1.0)


@pytest.mark.parametrize(
    ("answer", "failure", "detail"),
    [
        (np.zeros(2), "transposed design",
         "one coefficient per sample (2) instead of one per column (3)"),
        (np.zeros(4), "wrong shape", "returned shape (4,), (3,) needed"),
        (np.zeros((3, 3)), "wrong shape", "returned shape (3, 3), (3,) needed"),
        ([1.0, np.nan, np.inf], "not finite", "2 of 3 coefficients are NaN or infinite"),
        (None, "wrong shape", "returned NoneType, no array of numbers: nothing"),
    ],
)  # fmt: skip
def test_answers_that_cannot_be_judged(answer, failure, detail):
    def solver(design, target, kappa):
        time.sleep(0.02)
        return answer

    (verdict,) = verify(solver, [WIDE]).verdicts
    assert (verdict.status, verdict.failure, verdict.detail) == ("failed", failure, detail)
    assert 0.02 <= verdict.seconds < 5.0
    assert np.isnan(verdict.excess)


def test_a_solver_that_raises_is_timed_and_quoted():
    def solver(design, target, kappa):
        time.sleep(0.02)
        raise ValueError("first line\nsecond line")

    (verdict,) = verify(solver, [ONE]).verdicts
    assert (verdict.failure, verdict.detail) == ("raises ValueError", "ValueError: first line")
    assert 0.02 <= verdict.seconds < 5.0


def test_what_a_solver_takes_is_read_from_its_parameters():
    def everything(M, z, kappa, *, weights, signs, bounded=None): ...

    def moments(G, c, r, weights): ...

    def positional(*arguments): ...

    def third(design, target, weights, signs): ...

    assert Interface.of(everything).keywords == ("bounded", "weights", "signs")
    assert Interface.of(everything).kind == "design"
    assert (Interface.of(moments).kind, Interface.of(moments).keywords) == ("gram", ("weights",))
    assert Interface.of(positional, "gram").kind == "gram"
    assert Interface.of(third).keywords == ("signs",), "the third is kappa, whatever its name"
    assert Interface.of(moments, "design").kind == "design"
    with pytest.raises(InputError, match="first parameter '' does not say"):
        Interface.of(positional)


@pytest.mark.parametrize(
    ("weights", "signs", "needed"),
    [
        ([1.0, 1.0], [0, 0], {(): "", ("signs",): ""}),
        ([1.0, 2.0], [0, 0], {(): "weights", ("bounded",): "weights", ("weights",): ""}),
        ([1.0, np.inf], [0, 0], {(): "weights", ("weights",): ""}),
        ([0.0, 1.0], [0, 0], {(): "bounded", ("signs",): "bounded", ("bounded",): "",
                              ("weights",): ""}),
        ([1.0, 1.0], [0, -1], {(): "signs", ("weights",): "signs", ("signs",): ""}),
    ],
)  # fmt: skip
def test_what_a_solver_lacks(weights, signs, needed):
    problem = Problem("p", np.eye(2), np.ones(2), 1.0, np.array(weights), np.array(signs))
    for keywords, missing in needed.items():
        assert Interface(lambda *_: None, "design", keywords).missing(problem) == missing


def test_a_solver_is_given_the_data_and_may_keep_them():
    seen = []
    problem = Problem(
        "p", np.eye(3, 2), np.arange(3.0), 0.5, np.array([0.0, 2.0]), np.array([0, 1])
    )

    def design(design, target, kappa, bounded, weights, signs):
        seen.append((design, target, kappa, bounded, weights, signs))
        return np.zeros(2)

    def gram(gram, corr, kappa, weights, signs):
        seen.append((gram, corr, kappa, weights, signs))
        return np.zeros(2)

    for solver, expected in (
        (design, (np.eye(3, 2), [0, 1, 2], 0.5, [False, True], [0, 2], [0, 1])),
        (gram, (np.eye(2), [0, 1], 0.5, [0, 2], [0, 1])),
    ):
        seen.clear()
        verify(solver, [problem])
        assert len(seen) == 2, "once for warming up"
        for given, value in zip(seen[-1], expected, strict=True):
            np.testing.assert_array_equal(given, value)
        assert all(given.flags.writeable for given in seen[-1] if isinstance(given, np.ndarray))
        assert not any(
            np.shares_memory(a, b)
            for a, b in zip(*seen, strict=True) if isinstance(a, np.ndarray)
        )  # fmt: skip
