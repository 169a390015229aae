import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from safetensors.torch import load_file

import cimf
from cimf.errors import InputError
from cimf.methods import by_name
from cimf.runs import terminal
from cimf.studies import demo
from cimf.studies.kappa_sweep import KAPPAS
from cimf.studies.user_code import call_seeded, load_function
from cimf.train.supervised import Schedule

NETWORK = """
import torch

def load():
    net = torch.nn.Sequential(torch.nn.Linear(5, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3))
    inputs = torch.randn(200, 5)
    labels = net(inputs).argmax(dim=1)
    return net, [inputs[:150]], [(inputs[150:], labels[150:])]

def unlabelled():
    net, batches, _ = load()
    return net, batches

def wrong():
    return 3

def not_a_network():
    return "net", [torch.zeros(3, 5)]

def broken():
    raise ZeroDivisionError("the user's own bug")

value = 3
"""


@pytest.fixture
def run(command_line):
    return command_line("usernet", NETWORK)


def manifest(folder):
    return json.loads((Path(folder) / "manifest.json").read_text())


def test_demo_writes_a_complete_results_folder(run, monkeypatch):
    monkeypatch.setattr(demo, "SCHEDULE", Schedule(epochs=6, learning_rate=1e-2, batch_size=64))
    monkeypatch.setattr(demo, "SIZES", (64, 12, 8, 10))
    assert run("demo").exit_code == 0
    assert manifest("cimf-demo/kappa")["all_certified"] is True, "not among the files of a checkout"
    result = run("demo", "--out", "results/x")
    assert result.exit_code == 0, result.output
    assert "dense network" in result.output
    table = pd.read_csv("results/x/kappa/sweep.csv")
    configurations = table.groupby(["design", "rescale"]).ngroups
    assert len(table) == configurations * len(KAPPAS)
    assert (table["certified"] == table["rows"]).all()
    assert (table["converged"] == table["evaluated"]).all()
    for part in ("kappa", "prune"):
        for name in manifest(f"results/x/{part}")["files"]:
            assert (Path("results/x") / part / name).stat().st_size > 0
    assert Path("results/x/demo.png").stat().st_size > 10_000
    pruned = pd.read_csv("results/x/prune/table.csv")
    assert set(pruned["method"]) == {"layered", "obs", "magnitude-global"}
    assert np.allclose(pruned["sparsity_network_weights"], pruned["target"], atol=2e-3)
    record = manifest("results/x/kappa")
    assert record["all_certified"] is True
    assert record["worst_gap"] == pytest.approx(table["worst_gap"].max(), rel=1e-12)
    assert record["worst_gap"] <= 1e-9
    assert record["settings"]["seed"] == 0
    assert record["settings"]["data"]["checksums"]["arrays"].startswith("sha256:")
    assert record["samples"] == {"calibration": 1348, "evaluation": 449, "labelled": True}
    assert sum(record["rows_by_method"].values()) == len(table) * 20
    assert record["control_accuracy"] == table["control_accuracy"][0]
    with Image.open("results/x/kappa/sweep.png") as image:
        pixels = np.asarray(image.convert("L"))
    assert pixels.shape[1] > 900
    assert 0.01 < (pixels < 128).mean() < 0.5, "the figure is empty or black"
    text = Path("results/x/kappa/sweep.md").read_text()
    assert text.count("\n| ") == len(table) + 2
    assert "91.0 / 90.1" in text, "the paper's value at kappa 0.99"
    assert Path("results/x/kappa/sweep.tex").read_text().count(r"\\") == len(table) + 1


def test_a_run_is_reproducible_and_refreshable_but_not_replaceable(run):
    arguments = ("sparsify", "usernet:load", "--kappa", "0.5")
    first = run(*arguments)
    assert first.exit_code == 0, first.output
    before = Path("results/usernet-load/sweep.csv").read_text()
    assert run(*arguments).exit_code == 0
    assert Path("results/usernet-load/sweep.csv").read_text() == before
    other = run(*arguments, "--kappa", "0.1")
    assert other.exit_code == 1
    assert "another run (other kappas)" in other.output
    assert run(*arguments, "--seed", "1").exit_code == 1
    assert Path("results/usernet-load/sweep.csv").read_text() == before
    assert run(*arguments, "--seed", "1", "--overwrite").exit_code == 0
    assert Path("results/usernet-load/sweep.csv").read_text() != before


def test_sparsify_saves_models_that_predict_what_the_report_says(run):
    result = run(
        "sparsify", "usernet:load", "--kappa", "0.1", "--kappa", "0.5", "--design", "causal"
    )
    assert result.exit_code == 0, result.output
    _, _, test = call_seeded(load_function("usernet:load"), 0)
    table = pd.read_csv("results/usernet-load/sweep.csv")
    for kappa, accuracy in zip((0.1, 0.5), table["accuracy"], strict=True):
        model = cimf.ImplicitModel.load(
            f"results/usernet-load/model-causal-rescaled-{kappa}.safetensors"
        )
        guess = model.predict(test[0][0].T.double().numpy()).argmax(axis=0)
        assert np.mean(guess == test[0][1].numpy()) == pytest.approx(accuracy)


LOSSES = """
import cvxpy as cp
from formulations import LOSSES

def largest(a, b):
    t = cp.Variable()
    return t, [cp.abs(a) <= t, cp.abs(b) <= t]

both = 0.5 * LOSSES["l1"]() + LOSSES["robust"]()
"""


@pytest.mark.parametrize(
    ("loss", "name", "more"),
    [
        ("l1", "L1", ("--lam", "0.5")),
        ("userlosses:largest", "largest", ()),
        ("userlosses:both", "L1 + Robust", ("--backend", "clarabel", "--no-rescale")),
        ("sensitivity", "sensitivity", ()),
    ],
)
def test_a_loss_is_swept_over_kappa(run, command_line, loss, name, more):
    command_line("userlosses", LOSSES)
    levels = ("0.3", "0.6") if loss == "sensitivity" else ("0.1", "0.5", "inf")
    kappas = [part for level in levels for part in ("--kappa", level)]
    arguments = ("sparsify", "usernet:load", "--loss", loss, "--design", "causal", *kappas, *more)
    result = run(*arguments, "--out", "o")
    assert result.exit_code == 0, result.output
    table = pd.read_csv("o/sweep.csv")
    assert table["kappa"].tolist() == [float(level) for level in levels]
    assert (table["loss"] == name).all()
    assert (table["certified"] == table["rows"]).all()
    assert (np.diff(table["loss_value"]) > 0).all(), "a larger ball has room for more"
    scaled = "plain" if loss == "sensitivity" or "--no-rescale" in more else "rescaled"
    for level in levels:
        assert Path(f"o/model-causal-{scaled}-{level}.safetensors").exists()
    assert f"| {name} |" in Path("o/sweep.md").read_text()
    assert manifest("o")["tolerance"] == 1e-7
    before = Path("o/sweep.csv").read_text()
    assert run(*arguments, "--out", "o").exit_code == 0, "the same run again"
    assert Path("o/sweep.csv").read_text() == before
    if ":" in loss:
        Path("userlosses.py").write_text(LOSSES + "# edited\n")
        assert "another run (other loss source)" in run(*arguments, "--out", "o").output
    elif loss == "l1":
        assert "another run (other lam)" in run(*arguments, "--lam", "0.7", "--out", "o").output


def test_a_penalty_on_the_sensitivity_needs_no_kappa(run):
    result = run(
        "sparsify", "usernet:load", "--loss", "sensitivity", "--lam", "0.1", "--design", "causal"
    )
    assert result.exit_code == 0, result.output
    table = pd.read_csv("results/usernet-load/sweep.csv")
    assert table["kappa"].isna().all()
    assert table["lam"].tolist() == [0.1]
    assert Path("results/usernet-load/model-causal-plain-penalty.safetensors").exists()


def test_without_labels_the_figure_shows_the_output_error(run):
    result = run("sparsify", "usernet:unlabelled", "--sweep", "--no-rescale", "--out", "o")
    assert result.exit_code == 0, result.output
    assert len(pd.read_csv("o/sweep.csv")) == len(KAPPAS)
    assert "accuracy" not in result.output
    assert manifest("o")["dense_accuracy"] is None
    with Image.open("o/sweep.png") as image:
        assert image.size[0] > 900


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("usernet",), "not of the form module:function"),
        (("usernet:",), "not of the form module:function"),
        (("nosuchmodule:load",), "no module 'nosuchmodule'"),
        (("usernet:lod",), "no function 'lod'; it has load, "),
        (("usernet:value",), "no function 'value'"),
        (("usernet:wrong",), "wrong returned int"),
        (("usernet:not_a_network",), "not a torch.nn.Module"),
        (("usernet:load", "--design", "magic"), "known: causal, full"),
        (("usernet:load", "--method", "magic"), "unknown"),
        (("usernet:load", "--kappa", "-1"), "kappa"),
        (("usernet:load", "--kappa", "nan"), "kappa"),
        (("usernet:load", "--kappa", "1.5"), "allow_ill_posed=True"),
        (("usernet:load", "--kappa", "0.5", "--sweep"), "not both"),
        (("usernet:load", "--loss", "magic"), "known: column-group, elastic-net"),
        (("usernet:load", "--loss", "usernet:value"), "usernet has no loss 'value'; it has load"),
        (("usernet:load", "--loss", "l1", "--lam", "-1"), "lam must be a number >= 0"),
        (("usernet:load", "--loss", "l1", "--kappa", "inf"), "(--allow-ill-posed)"),
        (("usernet:load", "--loss", "l1", "--method", "torch"), "unknown option 'method'"),
        (("usernet:load", "--lam", "1"), "give one, for example 'l1' (--loss, --lam)"),
        (
            ("usernet:load", "--loss", "sensitivity", "--kappa", "0.5", "--lam", "1"),
            "either a budget kappa or a penalty lam",
        ),
    ],
)
def test_our_errors_are_one_line_and_write_nothing(run, arguments, message):
    result = run("sparsify", *arguments)
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    lines = [line for line in result.output.splitlines() if line.strip() and line[:8] != "running "]
    assert len(lines) == 1, result.output
    assert lines[0].startswith("error: ")
    assert message in lines[0]
    assert not Path("results").exists()


def test_the_users_own_errors_keep_their_traceback(run):
    assert isinstance(run("sparsify", "usernet:broken").exception, ZeroDivisionError)
    Path("half.py").write_text("import a_module_that_is_not_there\n")
    with pytest.raises(ModuleNotFoundError, match="a_module_that_is_not_there"):
        load_function("half:load")


def test_usage_errors_exit_with_2(run):
    assert run("sparsify").exit_code == 2
    assert run("demo", "--seed", "x").exit_code == 2
    assert run("--version").output.strip() == f"cimf {cimf.__version__}"


def test_doctor_solves_and_says_so(run):
    result = run("doctor")
    assert result.exit_code == 0, result.output
    for word in ("numpy", "backend clarabel", "main job", "4 of 4 rows certified", "CIMF_DATA"):
        assert word in result.output


def test_doctor_fails_where_the_main_job_does(run, monkeypatch):
    from cimf import doctor

    def _main_job():
        raise InputError("planted")
        yield

    monkeypatch.setattr(doctor, "CHECKS", (_main_job,))
    result = run("doctor")
    assert result.exit_code == 1
    assert "planted" in result.output


def test_help_is_fast_and_loads_nothing_heavy():
    code = (
        "import sys; sys.argv = ['cimf', '--help']; from cimf.cli import app\n"
        "try: app()\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'cvxpy', 'matplotlib', 'pandas'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "sparsify" in done.stdout


def one_line(result, message):
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit)
    lines = [line for line in result.output.splitlines() if line.strip() and line[:8] != "running "]
    assert len(lines) == 1, result.output
    assert message in lines[0]


def test_close_kappas_have_files_of_their_own_and_equal_ones_are_refused(run):
    close = ("0.1234567", "0.12345671")
    arguments = ("sparsify", "usernet:load", "--kappa", close[0], "--kappa", close[1])
    assert run(*arguments).exit_code == 0
    for kappa in close:
        assert Path(f"results/usernet-load/model-full-rescaled-{kappa}.safetensors").is_file()
    text = Path("results/usernet-load/sweep.md").read_text()
    assert all(f"| {kappa} |" in text for kappa in close)
    assert "paper" not in text, "the paper's columns belong to the paper's experiments"
    one_line(
        run("sparsify", "usernet:load", "--kappa", "0.5", "--kappa", "0.50", "--out", "o"),
        "given once, got",
    )


def test_prune_saves_the_sparse_network(run):
    arguments = ("prune", "usernet:unlabelled", "--out", "o")
    result = run(*arguments, "--sparsity", "0.5")
    assert result.exit_code == 0, result.output
    assert "sparsity 50.00%" in Path("o/report.txt").read_text()
    record = manifest("o")
    assert record["files"] == ["network.safetensors", "report.html", "report.txt"]
    assert record["sparsity"]["network_weights"] == 0.5
    net, _ = call_seeded(load_function("usernet:unlabelled"), 0)
    state = load_file("o/network.safetensors")
    net.load_state_dict(state)
    zeros = sum(int((value == 0).sum()) for value in state.values() if value.ndim == 2)
    assert zeros == 24
    assert record["evaluation"] is None
    one_line(run(*arguments, "--sparsity", "0.6"), "other sparsity")


def test_prune_tests_dense_and_sparse_network(run):
    arguments = ("--sparsity", "0.4", "--option", "support=ball", "--option", "swaps=False")
    result = run("prune", "usernet:load", *arguments)
    assert result.exit_code == 0, result.output
    record = manifest("results/usernet-load")
    net, _, ((inputs, labels),) = call_seeded(load_function("usernet:load"), 0)
    found = record["evaluation"]
    assert (found["samples"], found["dense_accuracy"]) == (50, 1.0), "labels are the network's own"
    net.load_state_dict(load_file("results/usernet-load/network.safetensors"))
    accuracy = float((net(inputs).argmax(1) == labels).float().mean())
    assert found["accuracy"] == pytest.approx(accuracy)
    assert accuracy < 1.0, "otherwise a test that reports the dense accuracy twice would pass"
    text = f"accuracy {accuracy:.2%}, the network itself 100.00%"
    assert text in result.output
    assert text in Path("results/usernet-load/report.txt").read_text()
    assert record["settings"]["options"] == {"support": "ball", "swaps": "False"}
    assert "6/6" in result.output, "rows of the convex problem that are certified"
    for words in ("implicit model: 6 states; its equilibrium gives", "well-posed for any weights"):
        assert words in Path("results/usernet-load/report.txt").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--backend", "gurobi"), "known: auto, clarabel"),
        (("--backend", "clarabel"), "only (--backend, --method)"),
        (("--method", "foo"), "known: auto, bisection, cvxpy, exact, torch"),
        (("--n-jobs", "0"), "n_jobs must not be 0"),
        (("--out", "/proc/foo"), "cannot be written"),
    ],
)
def test_what_a_design_does_not_use_is_refused(run, arguments, message):
    one_line(run("sparsify", "usernet:unlabelled", *arguments), message)
    assert not Path("results").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "needs a target sparsity, for example 0.8 (--sparsity)"),
        (("--sparsity", "2"), "in [0, 1)"),
        (("--sparsity", "nan"), "in [0, 1)"),
        (
            ("--sparsity", "0.5", "--method", "foo"),
            "unknown method 'foo'; known: alps, fista",
        ),
        (("--sparsity", "0.5", "--option", "kapa=1"), "unknown option of 'layered' 'kapa'; known:"),
        (("--sparsity", "0.5", "--option", "swaps"), "NAME=VALUE needed"),
        (("--sparsity", "0.5", "--option", "support=foo"), "magnitude, obs"),
        (("--sparsity", "0.5", "--option", "n_jobs=0"), "n_jobs must not be 0"),
        (("--sparsity", "0.5", "--option", "damping=-1"), "damping must be a positive number"),
    ],
)
def test_wrong_options_of_prune_are_refused_before_the_network_is_made(run, arguments, message):
    one_line(run("prune", "usernet:broken", *arguments), message)
    assert not Path("results").exists()


@pytest.mark.parametrize("name", ["partial", "instance"])
def test_any_callable_can_be_named(run, name):
    Path("callables.py").write_text(
        "import functools\nfrom usernet import unlabelled\n"
        "class Load:\n    def __call__(self):\n        return unlabelled()\n"
        "instance, partial = Load(), functools.partial(unlabelled)\n"
    )
    sys.modules.pop("callables", None)
    result = run("sparsify", f"callables:{name}")
    assert result.exit_code == 0, result.output
    assert len(manifest(f"results/callables-{name}")["settings"]["source"]) == 64


def test_a_function_without_a_source_file(run):
    one_line(run("sparsify", "os:getcwd"), "getcwd returned str")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--method", "foo"), "known: auto, bisection, cvxpy, exact, torch"),
        (("--method", "cvxpy", "--backend", "foo"), "known: auto, clarabel"),
        (("--backend", "clarabel"), "only (--backend, --method)"),
        (("--design", "foo"), "known: causal, full, no-self-loop"),
        (("--kappa", "1.5"), "--allow-ill-posed"),
    ],
)
def test_wrong_options_are_refused_before_the_network_is_made(run, arguments, message):
    """`broken` would raise ZeroDivisionError if it were called: the user's training."""
    one_line(run("sparsify", "usernet:broken", *arguments), message)
    assert not Path("results").exists()


def test_a_wrong_method_is_refused_before_the_demonstration_trains(run, monkeypatch):
    monkeypatch.setattr(demo, "trained_mlp", lambda *_, **__: pytest.fail("it was trained"))
    one_line(run("demo", "--method", "foo"), "known: auto, bisection")


def test_ctrl_c_while_libraries_are_loaded_is_not_swallowed():
    """CVXPY catches what an extension makes of KeyboardInterrupt; `loading` is not to be caught."""
    code = (
        "import os, signal\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # the parent may ignore it
        "from cimf.runs.terminal import loading\n"
        "with loading():\n"
        "    try: os.kill(os.getpid(), signal.SIGINT); import time; time.sleep(5)\n"
        "    except BaseException: pass\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, f"{terminal._INTERRUPTED}\n")


def test_ctrl_c_is_one_line_and_exit_code_130(run):
    Path("slow.py").write_text("def load():\n    raise KeyboardInterrupt\n")
    result = run("sparsify", "slow:load")
    assert result.exit_code == 130
    assert result.output.splitlines() == [
        "running slow:load ...",
        "interrupted; nothing was written to results/slow-load yet",
    ]
    assert not Path("results").exists()


METHODS = """
import copy
import torch
from cimf.methods.base import Method, Outcome

def half(task, sparsity, options):
    net = copy.deepcopy(task.net)
    with torch.no_grad():
        for layer in net:
            if hasattr(layer, "weight"):
                layer.weight.view(-1)[::2] = 0.0
    return Outcome(net)

every_other = Method("a test", half)
"""


def test_a_method_of_ones_own_is_named_by_its_import_path(run, monkeypatch):
    monkeypatch.setitem(by_name.METHODS, "mine:every_other", None)  # taken out again
    Path("mine.py").write_text(METHODS)
    arguments = ("prune", "usernet:load", "--sparsity", "0.5", "--method", "mine:every_other")
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    record = manifest("results/usernet-load")
    assert record["sparsity"]["network_weights"] == 0.5
    assert record["settings"]["method"] == "mine:every_other"
    Path("mine.py").write_text(METHODS + "# edited\n")
    one_line(run(*arguments), "another run (other method source)")
    one_line(run(*arguments[:-1], "mine:half"), "mine has no Method 'half'; it has every_other")
    one_line(run(*arguments[:-1], "mine:"), "'mine:' is not of the form module:method")
