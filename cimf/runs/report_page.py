"""One self-contained HTML page of a finished run, made from what its folder holds.

Everything that comes from the folder is escaped, and the page forbids the browser to load anything
or to run any script but its own.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from markdown_it import MarkdownIt

from cimf.files import write_text
from cimf.runs.layer_tables import layer_tables, statements
from cimf.runs.run_content import REPORT, UNFINISHED, RunContent, Table, as_number, flat, without

_IMAGES = {".png": "image/png", ".svg": "image/svg+xml"}
# Sections of a manifest that have a place of their own on the page.
_ORIGIN = ("settings", "fingerprint", "command", "written", "versions", "commit", "threads", "data")
_PLACED = (
    *_ORIGIN, "files", "seconds", "wall_seconds", "worst_gap", "all_certified",
    "points_of_other_commits",
)  # fmt: skip
# Sections whose numbers are the result of a run.
_RESULTS = ("sparsity", "evaluation")
# Rows of a table that a page shows; a report of 10,000 rows would be slow to open.
MOST_ROWS = 1000

_MARKDOWN = MarkdownIt("commonmark", {"html": False}).enable("table").disable("image")
_MARKDOWN.add_render_rule("table_open", lambda *_: '<div class="scroll"><table class="sorts">\n')
_MARKDOWN.add_render_rule("table_close", lambda *_: "</table></div>\n")


@dataclass(frozen=True)
class Certificates:
    """The worst certificate of every cell of a table.

    Attributes
    ----------
    name : str
        Of the table.
    key : tuple of str
        The columns that tell the cells apart.
    cells : tuple of (tuple of str, int, int, str)
        Key, rows of convex problems, rows with a certificate, worst gap.
    """

    name: str
    key: tuple[str, ...]
    cells: tuple[tuple[tuple[str, ...], int, int, str], ...]

    @classmethod
    def of(cls, table: Table) -> Certificates | None:
        """Return them where the table has certificates."""
        pair = table.certified
        if pair is None:
            return None
        first = table.heading[: table.heading.index("worst_gap")]
        key = table.key(first) or first
        columns = [table.column(name) for name in (*pair, "worst_gap")]
        keys = zip(*map(table.column, key), strict=True)
        cells = tuple(
            (labels, int(as_number(rows) or 0), int(as_number(passed) or 0), gap)
            for labels, rows, passed, gap in zip(keys, *columns, strict=True)
        )
        return cls(table.name, key, cells)

    @property
    def rows(self) -> int:
        """Rows of all cells."""
        return sum(rows for _, rows, _, _ in self.cells)

    @property
    def passed(self) -> int:
        """Rows with a certificate."""
        return sum(passed for _, _, passed, _ in self.cells)

    @property
    def worst(self) -> float | None:
        """The largest gap; infinite where a cell with rows has none. None without any rows."""
        gaps = [as_number(gap) for _, rows, _, gap in self.cells if rows]
        return max((math.inf if gap is None else gap for gap in gaps), default=None)

    @property
    def lacking(self) -> list[str]:
        """The cells in which a row has no certificate, or that have no gap."""
        return [
            ", ".join(labels)
            for labels, rows, passed, gap in self.cells
            if passed < rows or (rows and as_number(gap) is None)
        ]


def write_report(folder: str | Path, output: str | Path | None = None) -> Path:
    """Write the report of a finished run and return its path.

    Parameters
    ----------
    folder : path
        Of a run, also one of an older version.
    output : path, optional
        Default: report.html in the folder.

    Raises
    ------
    RunError
        The folder holds no finished run, one of its files is damaged, or the page cannot be
        written.
    """
    content = RunContent.read(folder)
    path = Path(output) if output is not None else content.path / REPORT
    write_text(path, report_page(content))
    return path


def report_page(content: RunContent) -> str:
    """Return the page as HTML."""
    tables = content.tables()
    texts = {name: content.text(name) for name in content.named(".txt", ".json")}
    layers = {name: found for name, text in texts.items() if (found := layer_tables(text))}
    titles, documents = [], []
    for name in content.named(".md"):
        title, body = document(content.text(name))
        titles += [title] if title else []
        documents.append(body)
    certificates = [cells for table in tables if (cells := Certificates.of(table))]
    record = content.record
    return page(
        "report.html",
        title=titles[0] if titles else _name(content),
        documents=documents,
        facts=_facts(content, tables, certificates),
        notes=notes(content, certificates),
        figures=figures(content),
        certificates=certificates,
        statements=statements(texts.values()),
        layers=layers,
        tables=tables,
        texts=without(texts, layers),
        measured=[(name, short_number(text)) for name, text in flat(_other(record))],
        settings=list(flat(record["settings"])),
        origin=_origin(content),
        command=record["command"],
        files=[(name, quote(name), _size(content.path / name)) for name in content.files],
    )


def page(template: str, **context: Any) -> str:
    """Fill a template; everything in the context is escaped but what the template calls safe."""
    environment = Environment(
        loader=PackageLoader("cimf.runs"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"number": short_number, "gap": _gap, "is_number": _is_number}
    environment.globals |= {"most_rows": MOST_ROWS, "zip": partial(zip, strict=True)}
    folder = Path(__file__).parent / "templates"
    script = (folder / "report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template(template).render(
        script=script,
        script_digest=digest,
        style=(folder / "report.css").read_text(encoding="utf-8"),
        **context,
    )


def document(text: str) -> tuple[str, str]:
    """Return the title of a Markdown text and the rest of it as HTML, with headings one lower."""
    tokens = _MARKDOWN.parse(text)
    title = ""
    if tokens and tokens[0].type == "heading_open" and tokens[0].tag == "h1":
        title, tokens = tokens[1].content, tokens[3:]
    for token in tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(int(token.tag[1]) + 1, 6)}"
    return title, str(_MARKDOWN.renderer.render(tokens, _MARKDOWN.options, {}))


def figures(content: RunContent) -> list[tuple[str, str]]:
    """Return name and data URI of every figure; script inside an SVG does not run in an image."""
    found = []
    for name in content.named(*_IMAGES):
        data = base64.b64encode(content.data(name)).decode()
        found.append((name, f"data:{_IMAGES[Path(name).suffix]};base64,{data}"))
    return found


def notes(content: RunContent, certificates: list[Certificates]) -> list[str]:
    """Say what a reader must know before believing the page."""
    record = content.record
    found = []
    lacking = [cell for table in certificates for cell in table.lacking]
    if lacking or record.get("all_certified") is False:
        where = f" in {len(lacking)} cell(s): {'; '.join(lacking)}" if lacking else ""
        found.append(f"rows without a certificate{where}")
    if (record.get("commit") or {}).get("modified"):
        found.append("the sources were modified: the commit alone does not give these numbers")
    if other := record.get("points_of_other_commits"):
        found.append(f"{len(other)} point(s) were measured at another commit than the others")
    if content.missing:
        found.append(f"named in the manifest, but not there: {', '.join(content.missing)}")
    if (content.path / UNFINISHED).exists():
        found.append("a newer run in this folder is unfinished: this page shows the one before")
    return found


def short_number(cell: str) -> str:
    """Return a number with five significant digits; integers and other text as they are."""
    value = as_number(cell)
    return cell if value is None or cell.lstrip("-").isdigit() else f"{value:.5g}"


def _gap(cell: str) -> str:
    value = as_number(cell)
    return cell if value is None else f"{value:.1e}"


def _is_number(cell: str) -> bool:
    return as_number(cell) is not None


def _facts(
    content: RunContent, tables: list[Table], certificates: list[Certificates]
) -> list[tuple[str, str]]:
    """Return the headline: name and value of what the run found."""
    scalars = _other_scalars(content.record).items()
    found = [(key.replace("_", " "), _fact(key, value)) for key, value in scalars]
    for table in tables:
        if values := table.numbers("accuracy"):
            least, most = f"{min(values):.2%}", f"{max(values):.2%}"
            between = least if least == most else f"{least} to {most}"
            found.append((f"accuracy in {table.name}", between))
    for cells in certificates:
        if cells.rows:
            found.append(("rows certified", f"{cells.passed:,} of {cells.rows:,}"))
        if cells.worst is not None:
            found.append(("worst gap", f"{cells.worst:.1e}"))
    return [*found, ("time", str(content.spent() or "not measured"))]


def _fact(key: str, value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    share = "accuracy" in key or key.startswith("sparsity")
    return f"{value:.2%}" if share and abs(value) <= 1 else short_number(str(value))


def _other_scalars(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the numbers of a manifest that are its results."""
    values = without(record, _PLACED)
    for name in _RESULTS:
        if isinstance(values.get(name), dict):
            label = "sparsity of " if name == "sparsity" else ""
            values |= {f"{label}{key}": value for key, value in values.pop(name).items()}
    return {key: value for key, value in values.items() if isinstance(value, (bool, int, float))}


def _other(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sections of a manifest that have no place of their own."""
    values = without(record, (*_PLACED, *_RESULTS))
    return {
        key: value for key, value in values.items() if not isinstance(value, (bool, int, float))
    } | {key: record[key] for key in ("seconds", "points_of_other_commits") if key in record}


def _origin(content: RunContent) -> list[tuple[str, str]]:
    """Return where the numbers come from."""
    record = content.record
    commit = record.get("commit") or {}
    text = f"{commit.get('id')}{', modified' if commit.get('modified') else ''}"
    machine = record.get("threads") or {}
    libraries = {
        f"{entry.get('internal_api')} {entry.get('version') or 'of unknown version'}, "
        f"{entry.get('num_threads')} thread(s)"
        for entry in machine.get("libraries", ())
    }
    return [
        ("written", str(record.get("written", "not known"))),
        ("took", str(content.spent() or "not measured")),
        ("commit", text if commit else "not known: an installed copy"),
        ("processors", str(machine.get("cpus", "not known"))),
        *flat(machine.get("environment") or {}),
        ("libraries", "; ".join(sorted(libraries)) or "not known"),
        *((name, version or "not installed") for name, version in record["versions"].items()),
        *flat({"data": record.get("data") or {}}),
        ("fingerprint of the settings", str(record.get("fingerprint", "not known"))),
    ]


def _name(content: RunContent) -> str:
    """Return what a run without a text of its own is called."""
    settings = content.record["settings"]
    names = [settings.get(key) for key in ("target", "network", "method")]
    return ", ".join(name for name in names if isinstance(name, str)) or content.path.resolve().name


def _size(path: Path) -> str:
    size = path.stat().st_size
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{max(size / 1e3, 0.1):.1f} kB"
