"""Hooks go again when a forward pass fails."""

import pytest
import torch
from torch import nn

from cimf.methods.gates.gated_layers import Gated
from cimf.methods.structured.channels import clear_unread
from cimf.train.norms import align_norms
from cimf.train.objectives import Recorder


def record(net, u):
    with Recorder(net, ["0"]).recording():
        net(u)


@pytest.mark.parametrize(
    "use", [Gated, clear_unread, record, lambda net, u: align_norms(net, [u])]
)  # fmt: skip
def test_a_failing_forward_pass_leaves_no_hook(use):
    net = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    with pytest.raises(RuntimeError):
        use(net, torch.ones(2, 5))
    for module in net.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
