"""The command line: demo; sparsify, prune and verify of your code; report and doctor."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from cimf import __version__
from cimf.errors import InputError
from cimf.runs.terminal import loading, one_line_errors, out
from cimf.studies.user_code import (
    load_function,
    load_loss,
    load_method,
    made,
    named_value,
    source_digest,
)

app = typer.Typer(
    help="Certified convex sparsification of trained networks through implicit models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

Seed = Annotated[int, typer.Option(help="Seed of everything random.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace another run in --out.")]
Folder = Annotated[
    Path | None, typer.Option(help="Results folder. Default: results/MODULE-FUNCTION.")
]
Jobs = Annotated[int | None, typer.Option(help="Processes or threads for the rows.")]
Network = Annotated[
    str,
    typer.Argument(
        metavar="MODULE:FUNCTION",
        help="A function without arguments that returns (net, calibration batches) or "
        "(net, calibration batches, test batches); modules of the current folder are found.",
    ),
]
Method = Annotated[str, typer.Option(help="Row solver: auto, exact, bisection, torch or cvxpy.")]
Backend = Annotated[
    str,
    typer.Option(help="Of cone programs: auto, mosek, clarabel, or another solver that CVXPY has."),
]


def _version(value: bool) -> None:
    if value:
        out.print(f"cimf {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Certified convex sparsification of trained networks through implicit models."""


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Results folder.")] = Path("cimf-demo"),
    seed: Seed = 0,
    method: Method = "auto",
    backend: Backend = "auto",
    n_jobs: Jobs = None,
    overwrite: Overwrite = False,
) -> None:
    """Train a small network on embedded digits, prune it, and sweep kappa as in Table 1."""
    with one_line_errors():
        with loading():
            from cimf.methods.stacked.path_options import PathOptions
            from cimf.studies.demo import run
        options = PathOptions(method=method, backend=backend, n_jobs=n_jobs)
        run(out, seed=seed, overwrite=overwrite, options=options)


@app.command()
def sparsify(
    target: Network,
    kappa: Annotated[
        list[float] | None, typer.Option(help="Radius of the ball; repeat it. Default: 0.5.")
    ] = None,
    sweep: Annotated[
        bool, typer.Option("--sweep", help="All kappas of the paper's Table 1.")
    ] = False,
    design: Annotated[
        str, typer.Option(help="full, no-self-loop, causal or predecessors.")
    ] = "full",
    rescale: Annotated[
        bool, typer.Option(help="Rescale the states so that the network itself is feasible.")
    ] = True,
    loss: Annotated[
        str | None,
        typer.Option(
            help="What is minimised beside the misfit: l1, group, row-sums, perspective, ..., "
            "sensitivity (--kappa is then its share of the network's), or MODULE:NAME of your own "
            "function or formulations.Loss. --kappa inf: no ball."
        ),
    ] = None,
    lam: Annotated[
        float | None,
        typer.Option(help="Multiplier of --loss; of the sensitivity, instead of --kappa."),
    ] = None,
    constraint: Annotated[
        list[str] | None,
        typer.Option("--set", help="Set that the rows are in: nonnegative, ...; repeat it."),
    ] = None,
    inputs: Annotated[
        str | None,
        typer.Option(help="Of the sensitivity: inputs move by their 'range', or by 'unit'."),
    ] = None,
    output_inputs: Annotated[
        bool, typer.Option("--output-inputs", help="Let D use all inputs, not only the bias.")
    ] = False,
    method: Method = "auto",
    backend: Backend = "auto",
    tol: Annotated[
        float | None,
        typer.Option(help="Relative gap that passes. Default: 1e-9; with --loss 1e-7."),
    ] = None,
    out: Folder = None,
    seed: Seed = 0,
    n_jobs: Jobs = None,
    keep_going: Annotated[
        bool, typer.Option("--keep-going", help="Report uncertified rows instead of stopping.")
    ] = False,
    allow_ill_posed: Annotated[
        bool, typer.Option("--allow-ill-posed", help="Permit kappa > 1 where A has feedback.")
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """Turn your trained network into certified sparse implicit models."""
    with one_line_errors():
        if kappa and sweep:
            raise InputError("give --kappa or --sweep, not both")
        function = load_function(target)
        folder = out or Path("results") / target.replace(":", "-")
        settings: dict[str, Any] = {
            "target": target,
            "source": source_digest(function),
            "seed": seed,
        }
        with loading():
            from cimf.methods.stacked.captured import Reference
            from cimf.methods.stacked.sparsify import row_options
            from cimf.studies.kappa_sweep import KAPPAS, run_sweep
        minimised: Any = loss
        if loss is not None and ":" in loss:
            minimised, settings["loss source"] = load_loss(loss)
        one = None if loss == "sensitivity" and lam is not None else 0.5
        options = {
            "method": None if method == "auto" else method,
            "backend": None if backend == "auto" else backend,
            "output_inputs": output_inputs or None,
            "allow_ill_posed": allow_ill_posed or None,
            "keep_going": keep_going or None,
            "n_jobs": n_jobs,
            "lam": lam,
            "tol": tol,
            "inputs": inputs,
        }
        asked = {name: value for name, value in options.items() if value is not None}
        run_sweep(
            target,
            folder,
            settings,
            lambda: Reference.capture(*made(target, function, seed)),
            kappas=tuple(kappa) if kappa else KAPPAS if sweep else (one,),
            configurations=((design, rescale and loss != "sensitivity"),),
            overwrite=overwrite,
            models=True,
            options=row_options(minimised, constraint or (), asked),
        )


@app.command()
def prune(
    target: Network,
    sparsity: Annotated[
        float | None, typer.Option(help="Share of the weights that is zero, in [0, 1).")
    ] = None,
    method: Annotated[
        str,
        typer.Option(
            help="layered, obs, obs-error, fista, wanda, magnitude-global, ..., or MODULE:NAME of "
            "your own cimf.methods.base.Method."
        ),
    ] = "layered",
    option: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Option of the method, e.g. swaps=False; repeat."),
    ] = None,
    out: Folder = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
) -> None:
    """Make the weights of your trained network sparse: the same network, with exact zeros."""
    with one_line_errors():
        function = load_function(target)
        folder = out or Path("results") / target.replace(":", "-")
        settings = {"target": target, "source": source_digest(function), "seed": seed}
        options = dict(named_value(text) for text in option or ())
        with loading():
            from cimf.methods.by_name import METHODS
            from cimf.studies.prune_run import run_prune
        if ":" in method:
            METHODS[method], settings["method source"] = load_method(method)
        run_prune(
            folder,
            settings,
            lambda: made(target, function, seed),
            sparsity,
            method,
            options=options,
            overwrite=overwrite,
        )


@app.command()
def verify(
    target: Annotated[
        str,
        typer.Argument(
            metavar="MODULE:FUNCTION",
            help="A solver (design, target, kappa) or (gram, corr, kappa) -> coefficients; modules "
            "of the current folder are found.",
        ),
    ],
    suite: Annotated[
        str, typer.Option(help="default, degenerate, adversarial, states, quick, or one family.")
    ] = "default",
    tol: Annotated[float, typer.Option(help="Relative excess and violation that pass.")] = 1e-6,
    interface: Annotated[
        str | None, typer.Option(help="design or gram, where the parameter names do not say.")
    ] = None,
    exact_zeros: Annotated[bool, typer.Option(help="Fail answers without exact zeros.")] = True,
    out: Annotated[
        Path | None, typer.Option(help="Folder for verify.json, verify.md and verify.csv.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Judge your solver against certified ground truth; exit code 1 where it fails."""
    with one_line_errors():
        solver = load_function(target)
        with loading():
            from cimf.verification import verify
        report = verify(solver, suite, interface=interface, tol=tol, exact_zeros=exact_zeros)
        if out is not None:
            report.save(out)
        if json:
            typer.echo(report.to_json(), nl=False)
        else:
            report.show()
        if not report.passed:
            raise typer.Exit(1)


@app.command()
def report(
    folders: Annotated[
        list[Path],
        typer.Argument(metavar="RUN_FOLDER...", help="Of finished runs, of any age."),
    ],
    output: Annotated[
        Path | None,
        typer.Option(help="The page. Default for one run: report.html in its folder."),
    ] = None,
) -> None:
    """Write one self-contained HTML page of a run, or one that compares several."""
    with one_line_errors():
        with loading():
            from cimf.runs.comparison_page import write_comparison
            from cimf.runs.report_page import write_report
        if len(folders) == 1:
            page = write_report(folders[0], output)
        elif output is None:
            raise InputError("say where the comparison goes: --output PAGE.html")
        else:
            page = write_comparison(folders, output)
        out.print(f"written to {page}", soft_wrap=True, markup=False)


@app.command()
def doctor() -> None:
    """Say what works here; exit code 1 where the main job could not run."""
    with one_line_errors():
        with loading():  # all of it: the checks load what they examine, and catch what fails
            from cimf.doctor import examine

            works = examine()
        if not works:
            raise typer.Exit(1)


if __name__ == "__main__":
    app()
