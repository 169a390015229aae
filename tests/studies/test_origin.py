"""Points of another network or of other samples are never taken for those of this run."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from cimf.errors import RunError
from cimf.runs.folder import RunFolder
from cimf.studies.case import Case
from cimf.studies.origin import loaded, samples_digest


def case():
    torch.manual_seed(0)
    return Case(nn.Linear(3, 2).eval(), torch.rand(8, 3), torch.rand(6, 3), torch.arange(6) % 2, {},
                torch.arange(8) % 2)  # fmt: skip


def begun(folder, given):
    with RunFolder.claim(folder, {}) as run:
        loaded(run, lambda: given)
        run.once("point", lambda: 1)


def other_network(given):
    net = nn.Linear(3, 2)
    net.load_state_dict(given.network.state_dict())
    net.bias.data[0] += 1e-6
    return replace(given, network=net)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (other_network, "network"),
        (lambda c: replace(c, calibration=c.calibration.flip(0)), "samples"),
        (lambda c: replace(c, train_labels=1 - c.train_labels), "samples"),
        (lambda c: replace(c, train_labels=None), "samples"),
        (lambda c: replace(c, inputs=c.inputs[:4], labels=c.labels[:4]), "test samples"),
        (lambda c: replace(c, labels=1 - c.labels), "test samples"),
    ],
)
def test_what_differs_is_named_and_the_points_stay(tmp_path, change, what):
    begun(tmp_path, case())
    with pytest.raises(RunError, match=f"continues: {what};"):
        begun(tmp_path, change(case()))
    begun(tmp_path, case())


def test_digests_are_of_content_type_and_shape():
    a = torch.arange(6.0).reshape(2, 3)
    same = samples_digest(a)
    assert same == samples_digest(a.numpy()) == samples_digest(a.t().contiguous().t())
    others = [a.t(), a.double(), a.reshape(3, 2), a.bfloat16(), np.zeros(0), None, torch.tensor(1)]
    assert len({same, *map(samples_digest, others)}) == 1 + len(others)
    assert samples_digest(a, None) != same
