"""Networks that people have: what is promised of every one of them, and what is left dense."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import cimf
from cimf.errors import InputError
from cimf.methods.layered.propagate import propagate
from cimf.methods.layered.statistics_options import Statistics
from cimf.network.expansion import expand, kind_of
from cimf.network.layers import LayerGraph

FILE = Path(__file__).parent / "architectures.py"
RELOAD = """
import importlib.util, sys, torch
from pathlib import Path
from safetensors.torch import load_file
spec = importlib.util.spec_from_file_location("architectures", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
for path in sorted(Path(sys.argv[2]).glob("*.safetensors")):
    net, inputs = module.made(path.stem)
    net.load_state_dict(load_file(path))
    torch.testing.assert_close(module.outputs(net, inputs), torch.load(path.with_suffix(".pt")))
    print(path.stem)
assert not any(name.startswith("cimf") for name in sys.modules)
"""


def load(path):
    spec = importlib.util.spec_from_file_location("architectures", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


architectures = load(FILE)
made, outputs = architectures.made, architectures.outputs


def part(inputs, samples):
    if isinstance(inputs, dict):
        return {name: u[samples] for name, u in inputs.items()}
    return tuple(u[samples] for u in inputs) if isinstance(inputs, tuple) else inputs[samples]


def pruned(net, inputs, sparsity, **options):
    batches = inputs if isinstance(inputs, torch.Tensor) else [(inputs, None)]
    return cimf.prune(net, batches, sparsity, **options)


def matrices(net):
    """Weights of everything that multiplies a matrix, as they stand in the network."""
    kinds = (
        nn.Linear, nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d, nn.ConvTranspose2d,
        nn.MultiheadAttention, nn.RNNBase, nn.RNNCellBase,
    )  # fmt: skip
    return {
        id(p): p
        for module in net.modules() if isinstance(module, kinds)
        for p in module.parameters(recurse=False) if p.ndim > 1
    }.values()  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("networks")


@pytest.mark.filterwarnings("ignore:fewer calibration")
@pytest.mark.parametrize("name", architectures.NETWORKS)
def test_what_is_promised_of_every_network(name, folder):
    net, inputs = made(name)
    count = len(outputs(net, inputs))
    seen, held_out = (
        part(inputs, slice(0, count * 3 // 4)),
        part(inputs, slice(count * 3 // 4, None)),
    )
    expected = outputs(net, held_out)

    dense = pruned(net, seen, 0.0, n_jobs=1)
    torch.testing.assert_close(outputs(dense.network, held_out), expected, atol=1e-4, rtol=1e-4)

    error = {}
    for method in ("layered", "magnitude-layer"):
        result = pruned(
            net, seen, 0.5, method=method, **{"n_jobs": 1} if method == "layered" else {}
        )
        zeros = sum(int((p == 0).sum()) for p in matrices(result.network))
        total = sum(p.numel() for p in matrices(net))
        kept, matched = result.report.matched
        assert (zeros, total) == (matched - kept, matched)
        assert abs(zeros - total / 2) <= 0.5 + 0.01 * total * (method != "layered")
        error[method] = float((outputs(result.network, held_out) - expected).square().sum())
        if method == "layered":
            assert type(result.network) is type(net)
            assert [n for n, _ in result.network.named_parameters()] == [
                n for n, _ in net.named_parameters()
            ]
            result.save(folder / f"{name}.safetensors")
            torch.save(outputs(result.network, inputs), folder / f"{name}.pt")
    assert error["layered"] < error["magnitude-layer"]


def test_results_reload_where_the_library_is_not(folder):
    done = subprocess.run(
        [sys.executable, "-c", RELOAD, FILE, folder],
        capture_output=True, text=True, cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    saved = {path.stem for path in folder.glob("*.pt")}
    assert set(done.stdout.splitlines()) == saved


@pytest.mark.parametrize(
    "module",
    [
        nn.MultiheadAttention(8, 2, bias=False),
        nn.MultiheadAttention(8, 4, kdim=5, vdim=3),
        nn.ConvTranspose1d(4, 6, 5, 3, 2, output_padding=1, groups=2, dilation=2),
        nn.ConvTranspose1d(4, 6, 2, 3, bias=False),
        nn.ConvTranspose2d(4, 2, (3, 4), (2, 3), (3, 0), (1, 2), dilation=(1, 2)),
    ],
    ids=str,
)
def test_an_equivalent_computes_the_same_and_is_written_back(module):
    module = module.double().eval()
    equivalent, _ = expand(module)
    assert isinstance(equivalent, kind_of(module))
    if isinstance(module, nn.MultiheadAttention):
        x = [torch.randn(3, 5, n).double() for n in (8, module.kdim, module.vdim)]
        masks = {
            "key_padding_mask": torch.arange(15).reshape(5, 3) % 4 == 2,
            "attn_mask": torch.zeros(3, 3, dtype=torch.bool),
        }  # fmt: skip
        for options in ({}, masks, {"average_attn_weights": False}, {"need_weights": False}):
            for one, two in zip(equivalent(*x, **options), module(*x, **options), strict=True):
                assert one is two is None or torch.allclose(one, two, atol=1e-12), options
    else:
        x = [torch.randn(3, *(4, 7, 6)[: module.weight.ndim - 1]).double()]
        torch.testing.assert_close(equivalent(*x), module(*x))
    with torch.no_grad():
        for parameter in equivalent.parameters():
            parameter.mul_(0.5)
        equivalent.write(module)
    one, two = equivalent(*x), module(*x)
    torch.testing.assert_close(*(y[0] if isinstance(y, tuple) else y for y in (one, two)))


RECURRENT = [
    nn.LSTM(3, 4, 2, bidirectional=True),
    nn.GRU(3, 4, 2, batch_first=True, bias=False),
    nn.RNN(3, 4, nonlinearity="relu", bidirectional=True),
    nn.RNN(3, 4),
]


@pytest.mark.parametrize("module", RECURRENT, ids=str)
@pytest.mark.parametrize("started", [False, True])
def test_recurrent_layers_step_by_step(module, started):
    module = module.double().eval()
    x = torch.randn(5, 5, 3).double()
    start = torch.randn((1 + module.bidirectional) * module.num_layers, 5, 4).double()
    start = (start, start / 2) if isinstance(module, nn.LSTM) else start
    arguments = (x, start) if started else (x,)
    equivalent, _ = expand(module)
    torch.testing.assert_close(equivalent(*arguments), module(*arguments))
    with torch.no_grad():
        for parameter in equivalent.parameters():
            parameter.mul_(0.5)
        equivalent.write(module)
    torch.testing.assert_close(equivalent(*arguments), module(*arguments))


@pytest.mark.parametrize("module", [nn.LSTMCell(3, 4), nn.GRUCell(3, 4), nn.RNNCell(3, 4)], ids=str)
def test_recurrent_cells(module):
    equivalent, _ = expand(module.double())
    x = torch.randn(5, 3).double()
    torch.testing.assert_close(equivalent(x), module(x))
    torch.testing.assert_close(equivalent(x, module(x)), module(x, module(x)))


def test_statistics_of_repeated_calls_are_summed():
    """Solved by hand: both calls' inputs below each other, against both calls' outputs."""
    net, x = made("called again")
    found, rows = {}, {}

    def solve(layer, statistics):
        found[layer.path] = statistics.group(0)
        if layer.path == "side":
            rows["side"] = layer.weight.where(layer.weight.abs() > 0.2, 0.0), layer.module.bias
            return rows["side"]
        return None

    propagate(LayerGraph(net, x[:8]), [x], solve, Statistics(positions=None))
    with torch.no_grad():
        inputs, wanted, states = list(x.chunk(2, 1)), [], []
        for weight in (net.side.weight, rows["side"][0].float()):
            one, two = (torch.relu(part @ weight.T + net.side.bias) for part in inputs)
            first = one + two
            states.append([first, torch.tanh(net.again(first)) + one])
        wanted = [net.again(state) for state in states[0]]
        # The layer itself is still as it was, those before it are the student's.
        for path, M, Z in (
            ("side", torch.cat(inputs), torch.cat([net.side(part) for part in inputs])),
            ("again", torch.cat(states[1]), torch.cat(wanted)),
        ):
            M = torch.cat([M, torch.ones(len(M), 1)], 1).double()
            gram = found[path]
            assert gram.n_samples == 2 * len(x)
            torch.testing.assert_close(torch.from_numpy(gram.gram), M.T @ M, rtol=1e-5, atol=1e-4)
            torch.testing.assert_close(
                torch.from_numpy(gram.corr), Z.double().T @ M, rtol=1e-5, atol=1e-4
            )


def test_channels_of_a_module_that_is_called_twice_stay_tied():
    net, x = made("called again")
    result = cimf.prune(net, x, 0.344, structure="channels", n_jobs=1)
    small = result.shrink()
    torch.testing.assert_close(outputs(small, x), outputs(result.network, x))
    before, after = (sum(p.numel() for p in one.parameters()) for one in (net, small))
    assert after < before


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_entries_of_a_transposed_convolution_are_counted_once(stride):
    """`admissible` is the number of pairs of an input and an output place that a weight joins."""
    module = nn.ConvTranspose1d(2, 3, 4, stride, 1, dilation=2).eval()
    net = nn.Sequential(module, nn.Flatten())
    u = torch.randn(4, 2, 5)
    layer = LayerGraph(net, u).layers[0]
    jacobian = torch.autograd.functional.jacobian(lambda x: module(x[None])[0], u[0])
    assert layer.n_rows * int(layer.repeats.sum()) == int((jacobian != 0).sum())


def test_every_phase_of_a_stride_enters_the_statistics():
    net = nn.Sequential(nn.ConvTranspose2d(2, 2, 4, 4), nn.Flatten()).eval()
    result = cimf.prune(net, torch.randn(40, 2, 16, 16), 0.25, positions=64, n_jobs=1)
    u = torch.randn(10, 2, 16, 16)
    with torch.no_grad():
        assert float((result.network(u) - net(u)).square().mean() / net(u).square().mean()) < 0.2


def test_bad_inputs_are_refused_with_words():
    net, inputs = made("two inputs")
    with pytest.raises(InputError, match=r"does not take the calibration inputs: missing.*'y'"):
        cimf.prune(net, inputs["x"], 0.5)
    with pytest.raises(InputError, match="inputs of 80, 79 samples"):
        cimf.prune(net, [{**inputs, "x": inputs["x"][1:]}], 0.5)
    with pytest.raises(InputError, match="NaN"):
        cimf.prune(net, [{**inputs, "x": inputs["x"] * torch.nan}], 0.5)
    with pytest.raises(InputError, match="batch 1 has samples of shape"):
        cimf.prune(net, [inputs, {**inputs, "x": inputs["y"]}], 0.5)
    with pytest.raises(InputError, match="shrink takes networks of one input"):
        cimf.prune(net, [inputs], 0.5, n_jobs=1).shrink()
    net, inputs = made("two outputs")
    with pytest.raises(InputError, match="returns several"):
        cimf.prune(net, inputs, 0.5, metric="softmax")
