"""The reports in headless Chromium: layout at two widths and on paper, sorting, no errors."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from cimf.runs.comparison_page import write_comparison
from cimf.runs.folder import REPORT, RunFolder
from cimf.runs.report_page import write_report

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs Chromium: apt-get install chromium")

RESULTS = Path(__file__).parents[2] / "results"
HOSTILE = "<script>console.error(1)</script><img src=x onerror=console.error(2)>" + "w" * 300
# What A4 leaves between the margins that Chromium prints with, in pixels.
PAPER = 718
# A page with a frame per report and width; what is measured in each stands in its body at the end.
FRAMES = """<!doctype html><body>%s<script>
window.addEventListener("load", () => {
  const found = {};
  for (const frame of document.querySelectorAll("iframe")) {
    const inner = frame.contentDocument, root = inner.documentElement;
    inner.querySelectorAll("details").forEach((part) => part.open = true);
    const boxes = [...inner.querySelectorAll(".scroll")].filter((box) => box.clientWidth);
    found[frame.id] = {
      wider: root.scrollWidth - root.clientWidth,
      cut: Math.max(0, ...boxes.map((box) => box.scrollWidth - box.clientWidth)),
      pictures: [...inner.images].map((image) => image.naturalWidth > 0),
      scripts: inner.scripts.length,
      colours: [getComputedStyle(inner.body).color, getComputedStyle(inner.body).backgroundColor],
      heads: inner.querySelectorAll("table.sorts th button").length,
    };
    const table = [...inner.querySelectorAll("table.sorts")].at(-1);
    const column = () => [...table.tBodies[0].rows].map((row) => row.cells[1].textContent);
    const head = [...table.tHead.rows].at(-1).cells[1], button = head.querySelector("button");
    button.focus();
    found[frame.id].focus = inner.activeElement === button && button.tabIndex === 0;
    found[frame.id].sorted = [1, 2, 3].map(() => {
      button.click();
      return [head.getAttribute("aria-sort"), column()];
    });
  }
  document.body.textContent = JSON.stringify(found);
});
</script>"""


def chromium(place, *arguments):
    """Run the browser; return what it printed and the lines of its console."""
    done = subprocess.run(
        [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
         f"--user-data-dir={place / 'profile'}", "--allow-file-access-from-files",
         "--enable-logging=stderr", "--v=0", *arguments],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Reports of runs of several kinds, two side by side, and one with hostile text."""
    place = tmp_path_factory.mktemp("pages")
    kinds = {"sweep": "fashion", "pruned": "demo/prune", "gates": "gates/fashion-mlp",
             "benchmark": "benchmark_rows", "ablation": "resnet20-ablation"}  # fmt: skip
    found = {
        kind: write_report(RESULTS / name, place / f"{kind}.html") for kind, name in kinds.items()
    }
    found["several"] = write_comparison(
        [RESULTS / "resnet20", RESULTS / "resnet20-cifar100"], place / "several.html"
    )
    run = RunFolder.claim(place / "hostile", {HOSTILE: HOSTILE})
    numbers = ("3", "1e-3", '"1,200"', "-", "-2", "20%", "")
    rows = "".join(f'"{HOSTILE}",{number}\n' for number in numbers)
    run.finish({"table.csv": f"{HOSTILE},n\n{rows}", "table.md": f"# {HOSTILE}\n\n{HOSTILE}\n"})
    found["hostile"] = place / "hostile" / REPORT
    return found


@pytest.fixture(scope="module")
def measured(pages, tmp_path_factory):
    """Return kind -> width -> what is measured, and the lines of the console."""
    place = tmp_path_factory.mktemp("frames")
    frames = []
    for kind, path in pages.items():
        printed = place / f"{kind}.html"
        printed.write_text(path.read_text().replace("@media print", "@media all"))
        for width, source in ((400, path), (1400, path), (PAPER, printed)):
            frames.append(
                f"<iframe id='{kind} {width}' src='{source}' "
                f"style='border:0;width:{width}px;height:900px'></iframe>"
            )
    (place / "frames.html").write_text(FRAMES % "\n".join(frames))
    shown, console = chromium(
        place, "--dump-dom", "--virtual-time-budget=20000", f"file://{place}/frames.html"
    )
    found = json.loads(shown.partition("<body>")[2].partition("</body>")[0])
    assert set(found) == {f"{kind} {width}" for kind in pages for width in (400, 1400, PAPER)}
    return found, console


def test_no_page_is_wider_than_its_window(measured):
    assert {name: page["wider"] for name, page in measured[0].items() if page["wider"] > 0} == {}


def test_nothing_is_cut_on_paper(measured):
    printed = {name: page["cut"] for name, page in measured[0].items() if str(PAPER) in name}
    assert {name: cut for name, cut in printed.items() if cut > 1} == {}
    assert measured[0]["sweep 400"]["cut"] > 0, "on a screen a wide table scrolls in its box"


def test_nothing_runs_or_fails_but_the_script_of_the_page(measured):
    found, console = measured
    assert console == []
    assert {page["scripts"] for page in found.values()} == {1}
    assert all(all(page["pictures"]) for page in found.values())
    assert len(found["pruned 400"]["pictures"]) == 2
    assert {tuple(page["colours"]) for page in found.values()} == {
        ("rgb(26, 26, 26)", "rgb(255, 255, 255)")
    }


def test_tables_sort_by_value_and_come_back(measured):
    page = measured[0]["hostile 1400"]
    assert page["focus"], "a key reaches it"
    ascending, descending, before = page["sorted"]
    assert ascending == ["ascending", ["-2", "0.001", "3", "20%", "1,200", "-", ""]]
    assert descending == ["descending", ["1,200", "20%", "3", "0.001", "-2", "-", ""]]
    assert before == [None, ["3", "0.001", "1,200", "-", "-2", "20%", ""]]


def test_a_page_prints(pages, tmp_path):
    _, console = chromium(
        tmp_path, f"--print-to-pdf={tmp_path / 'page.pdf'}", f"file://{pages['sweep']}"
    )
    assert console == []
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")
