"""Imports run one way: formulations <- cimf <- experiments, inside cimf by the layers below.

No two modules import each other, directly or around a circle, not even inside a function.
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import cimf

ROOT = Path(__file__).parent.parent
PACKAGES = ("formulations", "cimf", "experiments", "benchmarks")

# Lowest first; a module may import from its own folder and from layers before it.
LAYERS = [
    {"errors"},
    {"files"},
    {"data", "runs", "statistics"},
    {"judge"},
    {"solve"},
    {"network", "verification"},
    {"model"},
    {"train"},
    {"methods"},
    {"evaluate"},
    {"studies"},
    {"doctor"},
    {"cli"},
    {"__main__"},
]
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}
TORCH = {
    "cli", "data", "doctor", "evaluate", "methods", "model", "network", "solve", "studies", "train",
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
        if package == "formulations" and target in {"cimf", "experiments", "torch", "benchmarks"}:
            found.append(f"{where}: formulations is a leaf: numpy, scipy, cvxpy")
        elif package == "cimf" and target in {"experiments", "benchmarks"}:
            found.append(f"{where}: cimf never imports {target}")
        elif package == "experiments" and target == "benchmarks":
            found.append(f"{where}: experiments never import benchmarks")
        elif package == "cimf" and target == "cimf" and rest and unit != "__init__":
            if rest[0] == "__version__":
                continue
            if unit not in RANK or rest[0] not in RANK:
                found.append(f"{where}: give every folder a layer in this test")
            elif rest[0] != unit and RANK[rest[0]] >= RANK[unit]:
                found.append(f"{where}: layer {RANK[unit]} may not use layer {RANK[rest[0]]}")
        elif target == "torch" and package == "cimf" and unit not in TORCH:
            found.append(f"{where}: torch stays in {sorted(TORCH)}")
        elif target in {"cvxpy", "clarabel", "mosek", "sklearn"} and unit in NUMPY_ONLY:
            found.append(f"{where}: {unit} imports no solver")
    return found


def modules(root: Path = ROOT) -> list[Path]:
    return [path for package in PACKAGES for path in sorted((root / package).rglob("*.py"))]


def circles(root: Path) -> list[set[str]]:
    """Groups of modules that import each other; packages' own `__init__` tables are left out."""
    files = {
        ".".join(path.relative_to(root).with_suffix("").parts): path
        for path in modules(root)
        if path.name != "__init__.py"
    }
    graph = {}
    for name, path in files.items():
        targets = imports(path, name.rpartition(".")[0])
        hits = {t if t in files else t.rpartition(".")[0] for t in targets}
        graph[name] = (hits & set(files)) - {name}
    # Whoever has no import left, or is imported by nobody, is on no circle.
    while True:
        loose = {n for n, out in graph.items() if not out & set(graph)}
        loose |= set(graph) - {t for out in graph.values() for t in out}
        if not loose:
            return [{name} | (out & set(graph)) for name, out in graph.items()]
        graph = {n: out - loose for n, out in graph.items() if n not in loose}


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_one_way(path):
    assert violations(path, ROOT) == []


def test_no_modules_import_each_other():
    assert circles(ROOT) == []


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("formulations/x.py", "from cimf.errors import InputError"),
        ("formulations/x.py", "import torch"),
        ("cimf/judge/x.py", "def f():\n    import cvxpy"),
        ("cimf/judge/x.py", "from cimf.solve import rows"),
        ("cimf/statistics/x.py", "from ..model import ImplicitModel"),
        ("cimf/runs/folder.py", "import torch.nn"),
        ("cimf/runs/folder.py", "from cimf.methods.base import Task"),
        ("cimf/evaluate/x.py", "import experiments.fashion"),
        ("cimf/evaluate/x.py", "import benchmarks.problems"),
        ("cimf/methods/x.py", "from cimf.evaluate import held_out"),
        ("cimf/files.py", "from cimf import data"),
        ("cimf/report.py", "from cimf import errors"),
        ("experiments/x.py", "from benchmarks import problems"),
    ],
)
def test_a_planted_wrong_import_is_found(tmp_path, file, line):
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(line + "\n")
    assert len(violations(path, tmp_path)) == 1


def test_a_planted_circle_is_found(tmp_path):
    folder = tmp_path / "cimf" / "model"
    folder.mkdir(parents=True)
    (folder / "implicit.py").write_text("def save():\n    from cimf.model.storage import write\n")
    (folder / "storage.py").write_text("import cimf.model.module\n")
    (folder / "module.py").write_text("from cimf.model import implicit\n")
    (folder / "aside.py").write_text("from cimf.model import implicit\n")
    found = set().union(*circles(tmp_path))
    assert found == {f"cimf.model.{name}" for name in ("implicit", "storage", "module")}
    (folder / "module.py").write_text("import numpy\n")
    assert circles(tmp_path) == []


def test_no_two_modules_have_the_same_name():
    """A name says what is inside; `errors` of the two packages are one tree."""
    names = [path.stem for path in modules() if not path.stem.startswith("__")]
    twice = {name for name in names if names.count(name) > 1}
    assert twice == {"errors"}


def test_the_front_door_is_light():
    """`import cimf` loads neither torch nor cvxpy nor numpy; its names load what they need."""
    code = (
        "import sys, cimf\n"
        "print(sorted({'torch', 'cvxpy', 'numpy', 'pandas', 'matplotlib'} & set(sys.modules)))\n"
        "assert callable(cimf.certify)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


def test_every_public_name_loads():
    for name in cimf.__all__:
        assert getattr(cimf, name) is not None
    assert set(cimf.__all__) <= set(dir(cimf))
    with pytest.raises(AttributeError, match="no attribute 'sparsfy'"):
        cimf.sparsfy  # noqa: B018
