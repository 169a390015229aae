"""The compiled kernels are never run from a stale cache."""

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
