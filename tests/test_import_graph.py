"""Imports run one way: formulations <- cimf <- experiments, and inside cimf by the layers below."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import cimf

ROOT = Path(__file__).parent.parent

# Lowest first; a module may import from its own layer's package and from layers before it.
LAYERS = [
    {"errors"},
    {"files"},
    {"activations", "datasets", "provenance", "statistics"},
    {"blocks", "corpora"},
    {"judge"},
    {"solve"},
    {"capture"},
    {"model"},
    {"designs", "networks", "reference", "text"},
    {"layered", "own_rows"},
    {"outputs", "report"},
    {"baselines", "sparsify"},
    {"figures", "results", "tables", "terminal"},
    {"sweep", "training", "verification"},
    {"demo", "doctor"},
    {"cli"},
    {"__main__"},
]
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}
TORCH = {
    "activations", "baselines", "capture", "cli", "doctor", "layered", "model", "networks", "solve",
    "text", "training",
}  # fmt: skip
NUMPY_ONLY = {"judge", "statistics"}


def imports(path: Path, package: str) -> list[str]:
    """Absolute dotted names imported anywhere in a file, also inside functions."""
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")[: -node.level + 1 or None] if node.level else []
            base = ".".join([*parts, *([node.module] if node.module else [])])
            names += [f"{base}.{alias.name}" for alias in node.names]
    return names


def violations(path: Path, root: Path) -> list[str]:
    parts = path.relative_to(root).with_suffix("").parts
    package, unit = parts[0], parts[1]
    found = []
    for name in imports(path, ".".join(parts[:-1])):
        target, *rest = name.split(".")
        where = f"{'.'.join(parts)} imports {name}"
        if package == "formulations" and target in {"cimf", "experiments", "torch"}:
            found.append(f"{where}: formulations is a leaf: numpy, scipy, cvxpy")
        elif package == "cimf" and target == "experiments":
            found.append(f"{where}: cimf never imports experiments")
        elif package == "cimf" and target == "cimf" and rest and unit != "__init__":
            if rest[0] == "__version__":
                continue
            if unit not in RANK or rest[0] not in RANK:
                found.append(f"{where}: give every module a layer in this test")
            elif rest[0] != unit and RANK[rest[0]] >= RANK[unit]:
                found.append(f"{where}: layer {RANK[unit]} may not use layer {RANK[rest[0]]}")
        elif target == "torch" and package == "cimf" and unit not in TORCH:
            found.append(f"{where}: torch stays in {sorted(TORCH)}")
        elif target in {"cvxpy", "clarabel", "mosek", "sklearn"} and unit in NUMPY_ONLY:
            found.append(f"{where}: {unit} imports no solver")
    return found


def modules() -> list[Path]:
    return [
        path
        for package in ("formulations", "cimf", "experiments")
        for path in sorted((ROOT / package).rglob("*.py"))
    ]


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_one_way(path):
    assert violations(path, ROOT) == []


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("formulations/x.py", "from cimf.errors import InputError"),
        ("formulations/x.py", "import torch"),
        ("cimf/judge/x.py", "def f():\n    import cvxpy"),
        ("cimf/judge/x.py", "from cimf.solve import rows"),
        ("cimf/statistics/x.py", "from ..model import ImplicitModel"),
        ("cimf/report.py", "import torch.nn"),
        ("cimf/report.py", "import experiments.fashion"),
        ("cimf/files.py", "from cimf import datasets"),
    ],
)
def test_a_planted_wrong_import_is_found(tmp_path, file, line):
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(line + "\n")
    assert len(violations(path, tmp_path)) == 1


def test_the_front_door_is_light():
    """`import cimf` loads neither torch nor cvxpy nor numpy; its names load what they need."""
    code = (
        "import sys, cimf\n"
        "print(sorted({'torch', 'cvxpy', 'numpy', 'pandas', 'matplotlib'} & set(sys.modules)))\n"
        "assert callable(cimf.certify)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


def test_every_public_name_loads_and_functions_win_over_modules():
    importlib.import_module("cimf.sparsify")  # would bind the module, were it not for _Package
    for name in cimf.__all__:
        assert getattr(cimf, name) is not None
    assert callable(cimf.sparsify)
    assert set(cimf.__all__) <= set(dir(cimf))
    with pytest.raises(AttributeError, match="no attribute 'sparsfy'"):
        cimf.sparsfy  # noqa: B018
