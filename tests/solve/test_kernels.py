"""The compiled kernels are never run from a stale cache."""

import os

from cimf.solve import compiled


def test_the_cache_follows_the_sources(monkeypatch, tmp_path):
    """Another source means another folder, also for kernels whose own file did not change."""
    (tmp_path / "package").mkdir()
    source = tmp_path / "package" / "compiled.py"
    monkeypatch.setattr(compiled, "__file__", str(source))
    source.write_text("a = 1\n")
    first = compiled._folder()
    assert compiled._folder() == first
    (tmp_path / "package" / "other.py").write_text("b = 2\n")
    assert compiled._folder() != first


def test_kernels_of_old_sources_are_removed(tmp_path):
    month = 31 * 86_400
    for name, age in (("kernels-now", month), ("kernels-old", month), ("kernels-new", 0)):
        (tmp_path / name).mkdir()
        before = (tmp_path / name).stat().st_mtime - age
        os.utime(tmp_path / name, (before, before))
    compiled._forget_old(tmp_path, "kernels-now")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kernels-new", "kernels-now"]
