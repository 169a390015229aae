"""Results folders: one run each, written at the end and in one go, the manifest last."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cimf.errors import RunError
from cimf.files import write_text
from cimf.provenance import fingerprint, manifest, to_json

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class RunFolder:
    """A folder that this run may write to; made by `claim`, before any work is done.

    Attributes
    ----------
    path : Path
    settings : Mapping
        What decides the result; see `cimf.provenance.fingerprint`.
    stale : tuple[str, ...]
        Files of the run that stood here before; those not written again are removed at the end.
    """

    path: Path
    settings: Mapping[str, Any]
    stale: tuple[str, ...] = ()

    @classmethod
    def claim(
        cls, path: str | Path, settings: Mapping[str, Any], overwrite: bool = False
    ) -> RunFolder:
        """Return the folder if it is empty, absent, or holds the same run (which is refreshed).

        Raises
        ------
        RunError
            If it holds another run, or files of unknown origin, unless `overwrite`; or it cannot
            be written.
        """
        folder = Path(path)
        advice = "; choose another folder with --out, or replace it with --overwrite"
        if folder.exists() and not folder.is_dir():
            raise RunError(f"{folder} is a file; choose another folder with --out")
        try:
            old = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            known, files = old["fingerprint"], [str(name) for name in old["files"]]
        except (FileNotFoundError, NotADirectoryError):
            if not overwrite and folder.is_dir() and any(folder.iterdir()):
                raise RunError(f"{folder} holds files but no {MANIFEST}{advice}") from None
            known, files = None, []
        except (OSError, ValueError, KeyError, TypeError) as error:
            if not overwrite:
                raise RunError(f"{folder / MANIFEST} cannot be read ({error}){advice}") from error
            known, files = None, []
        if known is not None and known != fingerprint(settings) and not overwrite:
            raise RunError(
                f"{folder} holds another run ({_difference(old['settings'], settings)}){advice}"
            )
        _check_writable(folder)
        return cls(folder, dict(settings), tuple(Path(name).name for name in files))

    def finish(
        self, files: Mapping[str, str], binary: tuple[str, ...] = (), **sections: Any
    ) -> None:
        """Write text files, then the manifest that names them all, then remove stale files.

        Parameters
        ----------
        files
            Name -> content.
        binary
            Names of files that were already written to the folder.
        **sections
            What was measured, for the manifest.
        """
        for name, text in files.items():
            write_text(self.path / name, text)
        names = sorted({*files, *binary})
        record = manifest(self.settings, files=names, **sections)
        write_text(self.path / MANIFEST, to_json(record) + "\n")
        for name in set(self.stale) - set(names):
            (self.path / name).unlink(missing_ok=True)


def _check_writable(folder: Path) -> None:
    """Try to make a folder in `folder`, or in the first one above it that exists."""
    place = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryDirectory(dir=place):
            pass
    except OSError as error:
        raise RunError(
            f"{folder} cannot be written ({error.strerror}); choose another folder with --out"
        ) from error


def _difference(old: Any, new: Mapping[str, Any]) -> str:
    """Return in a few words which settings differ."""
    old = old if isinstance(old, dict) else {}
    new = json.loads(to_json(new))
    keys = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
    return "other " + ", ".join(keys) if keys else "other settings"
