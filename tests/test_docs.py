"""The code in the pages that extend cimf runs, and every page links to what exists."""

import re
import sys
import types
from pathlib import Path

import pytest

from cimf.methods.by_name import METHODS

DOCS = Path(__file__).parents[1] / "docs"
EXECUTED = [
    "add_a_loss.md",
    "add_a_method.md",
    "choose_a_formulation.md",
    "robustness.md",
    "structures.md",
    "train.md",
]


@pytest.mark.parametrize("page", EXECUTED)
def test_code_in_docs_runs(page, monkeypatch):
    for name in ("variance", "largest-after-training"):  # what add_a_method.md adds goes again
        monkeypatch.setitem(METHODS, name, None)
    text = (DOCS / page).read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert blocks
    module = types.ModuleType("docs")  # dataclasses look their module up
    monkeypatch.setitem(sys.modules, "docs", module)
    exec("\n".join(blocks), vars(module))


@pytest.mark.parametrize("page", sorted(path.name for path in DOCS.glob("*.md")))
def test_links_exist(page):
    text = re.sub(r"```.*?```", "", (DOCS / page).read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert (DOCS / target).exists(), target
