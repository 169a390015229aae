"""Networks that symbolic tracing cannot follow: attention, unpacked shapes, keyword arguments."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from cimf.data.text import TokenClassifier
from cimf.errors import CaptureError
from cimf.methods.base import Task
from cimf.methods.by_name import prune_task
from cimf.methods.layered.sensitivity import positions_that_count
from cimf.network.layers import LayerGraph

PADDING = 0


class Attention(nn.Module):
    """Written as in the transformers library: shapes are unpacked, the mask may be None."""

    def __init__(self, width, heads):
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        self.heads = heads

    def forward(self, x, mask=None, **options):
        shape = (*x.shape[:-1], self.heads, -1)
        q, k, v = (part(x).view(shape).transpose(1, 2) for part in (self.q, self.k, self.v))
        if mask is not None and mask.ndim == 2:
            mask = mask[:, None, None, :].expand(-1, 1, x.shape[1], -1)
        y = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out(y.transpose(1, 2).reshape(x.shape))


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.attention, self.drop = Attention(width, heads), nn.Dropout(0.5)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.lin1, self.lin2 = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x, mask):
        x = self.norm1(self.drop(self.attention(x, mask=mask)) + x)
        return self.norm2(self.drop(self.lin2(functional.gelu(self.lin1(x)))) + x)


class Classifier(nn.Module):
    """Reads the first token, as DistilBERT does."""

    def __init__(self, vocabulary=30, width=8, tokens=9, classes=3):
        super().__init__()
        self.words, self.places = nn.Embedding(vocabulary, width), nn.Embedding(tokens, width)
        self.blocks = nn.ModuleList(Block(width, 2) for _ in range(2))
        self.head = nn.Linear(width, classes)

    def forward(self, ids):
        places = torch.arange(ids.shape[1], device=ids.device)
        x = self.words(ids) + self.places(places)
        for block in self.blocks:
            x = block(x, ids != PADDING)
        return self.head(x[:, 0])


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Classifier().double()


@pytest.fixture
def ids():
    """Texts of different lengths, the rest is padding."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, 30, (40, 9), generator=generator)
    lengths = torch.randint(3, 10, (40, 1), generator=generator)
    return ids.masked_fill(torch.arange(9) >= lengths, PADDING)


@pytest.mark.parametrize("samples", [1, 5])
def test_an_exported_graph_is_the_network_for_any_number_of_samples(net, ids, samples):
    graph = LayerGraph(net, ids[:samples])
    net.eval()
    for count in (1, 2, 40):
        torch.testing.assert_close(graph.module(ids[:count]), net(ids[:count]))
        torch.testing.assert_close(graph.run(ids[:count]), net(ids[:count]))
    assert len(graph.layers) == 2 * 6 + 1
    assert type(graph.export()) is Classifier
    layer = graph.layers[0]
    rows = {layer.path: (2 * layer.weight, layer.module.bias)}
    assert not torch.allclose(graph.run(ids, rows), net(ids)), "the comparison can fail"
    torch.testing.assert_close(graph.export(rows).eval()(ids), graph.run(ids, rows))


def test_a_layer_before_dropout_and_addition_corrects_its_shortcut(net, ids):
    with_summand = {layer.path for layer in LayerGraph(net, ids).layers if layer.summand}
    assert with_summand == {
        f"blocks.{k}.{name}" for k in (0, 1) for name in ("attention.out", "lin2")
    }


def test_padding_and_unread_tokens_do_not_count(net, ids):
    graph = LayerGraph(net, ids)
    counting = positions_that_count(graph, ids.split(15))
    text, first = ids != PADDING, torch.zeros_like(ids, dtype=torch.bool)
    first[:, 0] = True
    counting = {str(node.target): found for node, found in counting.items()}
    assert set(counting) == {layer.path for layer in graph.layers} - {"head"}
    for path, found in counting.items():
        # The classifier reads the first token: only keys and values of the last block see others.
        read = text if path.startswith("blocks.0") or path[-1] in "kv" else first
        assert torch.equal(torch.cat(found), read), path


def test_what_stands_behind_padding_changes_nothing(net, ids):
    """Other embeddings of the padding token leave every weight of the result as it is."""
    other = Classifier().double()
    other.load_state_dict(net.state_dict())
    with torch.no_grad():
        other.words.weight[PADDING] += 3.0
    first, second = (
        prune_task(Task(one, ids), 0.5, n_jobs=1).network.state_dict() for one in (net, other)
    )
    for name, value in first.items():
        if name != "words.weight":
            torch.testing.assert_close(value, second[name], msg=name)


@pytest.mark.parametrize("target", [0.0, 0.6])
def test_student_and_report_agree(net, ids, target):
    result = prune_task(Task(net.float(), ids.split(15)), target, n_jobs=1)
    with torch.no_grad():
        found, expected = result.network.eval()(ids), net.eval()(ids)
    zeros = sum(int((m.weight == 0).sum()) for m in result.network.modules()
                if isinstance(m, nn.Linear))  # fmt: skip
    weights = 2 * 8 * 8 * 8 + 3 * 8
    assert zeros == round(target * weights)
    every = sum(parameter.numel() for parameter in net.parameters())
    assert result.report.nonzeros["network_parameters"] == (every - zeros, every)
    head = result.report.layers[-1]
    spread = (expected - expected.mean(0)).square().sum()
    assert head.mismatch == pytest.approx(
        float((found - expected).square().sum() / spread), rel=1e-3, abs=1e-9
    )
    for name in ("words.weight", "blocks.1.norm2.weight"):
        assert torch.equal(result.network.get_parameter(name), net.get_parameter(name))
    if target == 0.0:
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


SMALL = {"vocab_size": 30, "num_labels": 3, "pad_token_id": PADDING}
CONFIGS = {
    "DistilBert": {"dim": 8, "n_heads": 2, "hidden_dim": 16, "n_layers": 2},
    "Bert": {
        "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 16, "num_hidden_layers": 2,
    },
    "Llama": {
        "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 16, "num_hidden_layers": 2,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_models_of_the_transformers_library(name, ids):
    transformers = pytest.importorskip("transformers", reason="needs cimf[text]")
    if name == "Llama" and not hasattr(torch.export.Dim, "AUTO"):
        pytest.skip("torch 2.4 cannot export slices of module lists")
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**SMALL, **CONFIGS[name])
    model = getattr(transformers, f"{name}ForSequenceClassification")(config).eval()
    net = TokenClassifier(model, PADDING)
    with torch.no_grad():
        expected = net(ids)
        dense = Task(net, ids)
        for found in (dense.graph.module(ids), dense.graph.export()(ids)):
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    result = prune_task(dense, 0.5, n_jobs=1).network
    assert type(result.model) is type(model)
    linear = [m.weight for m in result.modules() if isinstance(m, nn.Linear)]
    zeros = sum(int((weight == 0).sum()) for weight in linear)
    assert abs(zeros - sum(weight.numel() for weight in linear) / 2) <= 0.5


VISION = {
    "ViT": {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 16, "patch_size": 4},
    "DeiT": {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 16, "patch_size": 4},
    "Swin": {"embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 2},
    "ConvNext": {"hidden_sizes": [4, 6], "depths": [1, 1], "num_stages": 2},
}


class Logits(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x).logits


@pytest.mark.parametrize("name", VISION)
def test_vision_models_of_the_transformers_library(name):
    """Class tokens, position embeddings, tables of attention biases and scales stay as they are."""
    transformers = pytest.importorskip("transformers", reason="needs cimf[text]")
    torch.manual_seed(0)
    options = {"image_size": 16, "num_labels": 3, **VISION[name]}
    if name == "Swin":
        options["patch_size"] = 2
    elif name != "ConvNext":
        options["num_hidden_layers"] = 2
    config = getattr(transformers, f"{name}Config")(**options)
    net = Logits(getattr(transformers, f"{name}ForImageClassification")(config)).eval()
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.3)
    u = torch.randn(40, 3, 16, 16)
    graph = LayerGraph(net, u[:4])
    with torch.no_grad():
        expected = net(u)
        for found in (graph.run(u), graph.export()(u)):
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    result = prune_task(Task(net, u), 0.5, n_jobs=1).network
    matched = {f"{layer.path}.{kind}" for layer in graph.layers for kind in ("weight", "bias")}
    state = result.state_dict()
    zeros = sum(int((state[f"{layer.path}.weight"] == 0).sum()) for layer in graph.layers)
    assert zeros == round(graph.n_weights / 2)
    assert graph.uncalled == ()
    for key, value in net.state_dict().items():
        assert key in matched or torch.equal(state[key], value), key


class Choosing(nn.Module):
    """Control flow that depends on values, two modules deep."""

    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(3, 3)

    def forward(self, x):
        return self.lin(x) if x.sum() > 0 else x


def test_dynamic_control_flow_names_the_module():
    net = nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.ReLU(), Choosing()))
    with pytest.raises(CaptureError, match=r"forward pass of '1.1' \(Choosing\).*control flow"):
        LayerGraph(net, torch.ones(4, 3))


class Functional(nn.Module):
    """Uses the weight of a module without calling it."""

    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(3, 3)

    def forward(self, x):
        return functional.linear(x, self.lin.weight.T)


@pytest.mark.parametrize(
    ("net", "width", "words"),
    [
        (Functional(), 3, r"'lin' \(Linear\) has its weight read by"),
    ],
)
def test_what_cannot_be_matched_is_refused_with_advice(net, width, words):
    with pytest.raises(CaptureError, match=words):
        LayerGraph(net, torch.ones(4, width))
