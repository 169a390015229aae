"""How long every experiment took, from the manifests of its results."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

# Options that do not change what is measured, and those that say which part of it.
_FLAGS = {"--full", "--quick", "--overwrite", "--no-overwrite", "--keep-going", "--no-keep-going"}
_PARTS = {"--out", "--network"}


def measured_times(results: Path, command: str = "python -m experiments") -> Mapping[str, float]:
    """Return the seconds of each command, "table1" or "table1 --full", summed over its folders.

    Runs with other options (fewer images, other levels) are left out, and manifests that say
    nothing of their time.
    """
    seconds: dict[str, float] = defaultdict(float)
    for path in sorted(results.rglob("manifest.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        words = record["command"].removeprefix(command).split()
        if not record["command"].startswith(f"{command} ") or "wall_seconds" not in record:
            continue
        name, *options = words
        while options and options[0] in _FLAGS | _PARTS:
            options = options[1 + (options[0] in _PARTS) :]
        if not options:
            full = " --full" if "--full" in words else ""
            seconds[name + full] += record["wall_seconds"]
    return seconds
