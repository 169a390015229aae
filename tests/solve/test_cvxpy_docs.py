"""The code in the pages about formulations runs."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("page", ["add_a_loss.md", "choose_a_formulation.md"])
def test_code_in_docs_runs(page):
    text = (DOCS / page).read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert blocks
    exec("\n".join(blocks), {"__name__": "docs"})


@pytest.mark.parametrize("page", ["add_a_loss.md", "choose_a_formulation.md"])
def test_links_exist(page):
    text = re.sub(r"```.*?```", "", (DOCS / page).read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert (DOCS / target).exists(), target
