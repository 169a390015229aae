"""How long every experiment took, from its results."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from cimf.runs.run_content import MANIFEST, RunContent, Spent

# Options that do not change what is measured, and those that say which part of it.
_FLAGS = {"--full", "--quick", "--overwrite", "--no-overwrite", "--keep-going", "--no-keep-going"}
_PARTS = {"--out", "--network"}


def measured_times(results: Path, command: str = "python -m experiments") -> Mapping[str, Spent]:
    """Return the time of each command, "table1" or "table1 --full", summed over its folders.

    Runs with other options (fewer images, other levels) are left out, and those that say nothing
    of their time.

    Raises
    ------
    RunError
        A manifest or a table is damaged.
    """
    times: dict[str, Spent] = {}
    for path in sorted(results.rglob(MANIFEST)):
        content = RunContent.read(path.parent)
        words = content.record["command"].removeprefix(command).split()
        if not content.record["command"].startswith(f"{command} "):
            continue
        name, *options = words
        while options and options[0] in _FLAGS | _PARTS:
            options = options[1 + (options[0] in _PARTS) :]
        spent = content.spent()
        if not options and spent is not None:
            key = name + (" --full" if "--full" in words else "")
            before = times.get(key, Spent(0.0, True))
            times[key] = Spent(before.seconds + spent.seconds, before.whole and spent.whole)
    return times
