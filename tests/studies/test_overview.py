"""One figure of finished runs: every point once, one shot and trained apart, one network only."""

import pandas as pd
import pytest

from cimf.errors import RunError
from cimf.runs.folder import RunFolder
from cimf.studies.overview import overview


def finished(folder, table, dense=0.9, test=100):
    with RunFolder.claim(folder, {"network": str(folder)}) as run:
        run.finish(
            {"table.csv": pd.DataFrame(table).to_csv(index=False)},
            dense_accuracy=dense,
            samples={"test": test},
        )
    return folder


ONE_SHOT = {
    "method": ["layered", "obs"],
    "accuracy": [0.8, 0.7],
    "sparsity_network_weights": [0.5, 0.5],
}
GATES = {
    "constraint": ["model", "layer", "penalty 0.1"],
    "accuracy": [0.85, 0.84, 0.83],
    "sparsity_network_weights": [0.9, 0.9, 0.7],
    "epochs": [3, 3, 3],
}


def test_every_point_stands_once_in_the_part_of_its_kind(tmp_path):
    sources = [finished(tmp_path / "one", ONE_SHOT), finished(tmp_path / "two", GATES)]
    rows = overview("nets", tmp_path / "out", sources)
    assert [(row["kind"], row["method"], row["accuracy"]) for row in rows] == [
        ("one shot", "layered", 0.8),
        ("one shot", "obs", 0.7),
        ("trained", "gates, model-wise", 0.85),
        ("trained", "gates, layer-wise", 0.84),
        ("trained", "gates, penalty", 0.83),
    ]
    one_shot, trained = (tmp_path / "out" / "table.md").read_text().split("## ")[1:]
    assert "gates" not in one_shot
    assert "obs" not in trained
    assert "90.00%" in (tmp_path / "out" / "table.md").read_text()
    assert (tmp_path / "out" / "accuracy.png").stat().st_size > 10_000
    # Made again from the same runs; refused where a run has changed.
    overview("nets", tmp_path / "out", sources)
    with pytest.raises(RunError, match="overwrite"):
        overview("nets", tmp_path / "out", sources[:1])


@pytest.mark.parametrize("other", [{"dense": 0.8}, {"test": 50}, {"dense": None}])
def test_runs_of_different_networks_or_tests_are_refused(tmp_path, other):
    sources = [finished(tmp_path / "one", ONE_SHOT), finished(tmp_path / "two", GATES, **other)]
    with pytest.raises(RunError, match="one dense network"):
        overview("nets", tmp_path / "out", sources)


def test_a_run_without_points_is_named(tmp_path):
    run = finished(tmp_path / "one", {"kappa": [1.0]})
    with pytest.raises(RunError, match="no table with a method"):
        overview("nets", tmp_path / "out", [run])
    with pytest.raises(RunError, match="no folder"):
        overview("nets", tmp_path / "out", [tmp_path / "absent"])
