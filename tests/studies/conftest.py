"""A small network with made-up samples, for studies."""

import pytest
import torch
from torch import nn

from cimf.studies.case import Case


@pytest.fixture(scope="module")
def case(request):
    """A case of 120 calibration and 130 test samples, or of the module's SIZES."""
    calibration, tests = getattr(request.module, "SIZES", (120, 130))
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 7), nn.ReLU(), nn.Linear(7, 4))
    u = torch.randn(tests, 6)
    return Case(net.eval(), torch.randn(calibration, 6), u, net(u).argmax(1), {"name": "made up"})
