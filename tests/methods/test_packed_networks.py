"""Networks with attention, recurrences, tied matrices or several inputs, beside `prune` itself."""

import importlib.util
from pathlib import Path

import pytest
import torch
from torch import nn

import cimf
from cimf.errors import CaptureError, InputError
from cimf.network.export import csr_layers, with_sparse_linear

SPEC = importlib.util.spec_from_file_location(
    "architectures", Path(__file__).parent / "architectures.py"
)
architectures = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(architectures)
made, outputs = architectures.made, architectures.outputs


@pytest.mark.parametrize(
    ("name", "layer"), [("encoder", "MultiheadAttention"), ("gru", "GRU"), ("tied head", "'head'")]
)
@pytest.mark.parametrize("method", ["gates", "sss", "spr", "mla"])
def test_methods_that_train_refuse_what_they_would_leave_out(name, layer, method):
    net, inputs = made(name)
    labels = torch.arange(len(inputs)) % 3
    with pytest.raises(InputError, match=f"methods that train take .*{layer}.*cimf.finetune"):
        cimf.prune(net, [(inputs, labels)], 0.5, method=method)


@pytest.mark.parametrize(
    ("name", "why"),
    [("tied head", "shares its matrix with an embedding"), ("two outputs", "argmax")],
)
def test_channels_that_cannot_go_are_named(name, why):
    net, inputs = made(name)
    with pytest.raises(InputError, match=f"no whole channel can be taken out.*{why}"):
        cimf.prune(net, inputs, 0.2, structure="channels")


@pytest.mark.parametrize("name", ["encoder", "transposed 2d", "lstm", "cells"])
def test_csr_rows_are_those_of_the_report(name):
    net, inputs = made(name)
    result = cimf.prune(net, inputs, 0.5, method="magnitude-layer")
    rows = csr_layers(result.network)
    kept, total = result.report.matched
    assert sum(r.nnz for r in rows.values()) == kept
    assert sum(r.shape[0] * r.shape[1] for r in rows.values()) == total
    if name == "encoder":
        assert list(csr_layers(cimf.keep_zeros(result.network))) == list(rows)


def test_sparse_linear_layers_beside_attention():
    net, inputs = made("encoder")
    sparse = with_sparse_linear(net, 1.0)
    torch.testing.assert_close(outputs(sparse, inputs), outputs(net, inputs))
    assert type(sparse.head) is not nn.Linear


class Optional(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two, self.head = nn.Linear(6, 12), nn.Linear(4, 12), nn.Linear(12, 3)

    def forward(self, x, y=None, scale=1.0):
        z = self.one(x) if y is None else self.one(x) + self.two(y)
        return self.head(torch.relu(scale * z))


def test_a_bare_pair_is_no_pair_of_inputs():
    torch.manual_seed(0)
    net, x, y = Optional().eval(), torch.randn(80, 6), torch.randn(80, 4)
    labels = torch.arange(80) % 3
    for wrong, words in (
        ([(x, y)], r"of shape \(4,\) .*are no labels.*'y'.*\[\(\(x, y\), None\), \.\.\.\]"),
        ([(x, torch.ones(80, 4, dtype=torch.bool))], "are no labels"),
        ([(x, y, labels)], "have 3 entries.*'y'"),
    ):
        with pytest.raises(InputError, match=words):
            cimf.prune(net, wrong, 0.5, method="magnitude-layer")
    with pytest.raises(InputError, match="are no labels"):
        cimf.finetune(net, [(x, y)], teacher=net, loss="outputs", epochs=1)

    def notes(batches):
        return [
            note
            for note in cimf.prune(net, batches, 0.5, method="magnitude-layer").report.notes
            if "taken as labels" in note
        ]

    for labelled in (labels, labels.numpy(), torch.randn(80, 3), labels[:, None]):
        (note,) = notes([(x, labelled)])
        assert "'y'" in note
        assert "scale" not in note
    for plain in ([x], [(x, None)], [((x, y), None)], [{"x": x, "y": y}]):
        assert not notes(plain)


class Padded(nn.Module):
    """The encoder layers of torch, fused in eval mode; left-aligned masks make tensors nested."""

    def __init__(self, **options):
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, **options)
        self.first = options.get("batch_first", False)
        self.body, self.head = nn.TransformerEncoder(layer, 1), nn.Linear(8, 3)

    def forward(self, x, pad):
        y = self.body(x if self.first else x.transpose(0, 1), src_key_padding_mask=pad)
        y = y if self.first else y.transpose(0, 1)
        return self.head(y.masked_fill(pad[..., None], 0.0).sum(1))


@pytest.mark.filterwarnings("ignore:enable_nested_tensor", "ignore:The PyTorch API of nested")
@pytest.mark.parametrize("first", [True, False])
def test_padded_sequences_of_an_encoder(first):
    torch.manual_seed(0)
    net, x = Padded(batch_first=first).eval(), torch.randn(60, 5, 8)
    pad = torch.arange(5) >= torch.randint(2, 6, (60, 1))
    result = cimf.prune(net, [((x, pad), None)], 0.0, n_jobs=1, swaps=False)
    torch.testing.assert_close(outputs(result.network, (x, pad)), outputs(net, (x, pad)))
    assert result.report.matched[1] == sum(p.numel() for p in net.parameters() if p.ndim > 1)
    assert torch.backends.mha.get_fastpath_enabled()


class Starting(nn.Module):
    """States that are given, of layers without batch_first."""

    def __init__(self, kind):
        super().__init__()
        self.recurrent, self.head = kind(5, 6), nn.Linear(6, 3)
        self.start = nn.Parameter(torch.randn(2, 1, 1, 6))
        self.pair = kind is nn.LSTM

    def forward(self, x):
        h, c = self.start.expand(-1, -1, x.shape[0], -1).contiguous()
        x = x.transpose(0, 1)
        return self.head(self.recurrent(x, (h, c) if self.pair else h)[0][-1])


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_recurrent_layers_with_states_that_are_given(kind):
    torch.manual_seed(0)
    net, x = Starting(kind).eval(), torch.randn(60, 3, 5)
    result = cimf.prune(net, x, 0.0, n_jobs=1, swaps=False)
    torch.testing.assert_close(outputs(result.network, x), outputs(net, x))


def test_packed_sequences_are_refused():
    class Packed(Starting):
        def forward(self, x, lengths):
            x = nn.utils.rnn.pack_padded_sequence(
                x, lengths, batch_first=True, enforce_sorted=False
            )
            return self.head(self.recurrent(x)[1][-1])

    x, lengths = torch.randn(60, 3, 5), torch.randint(1, 4, (60,))
    with pytest.raises(CaptureError, match="no packed sequences"):
        cimf.prune(Packed(nn.GRU).eval(), [((x, lengths), None)], 0.5)
