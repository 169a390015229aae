"""Small networks of torch alone, each with inputs: loaded by path, also where cimf is not."""

import torch
from torch import nn
from torch.nn import functional


class Parts(nn.Module):
    """Modules by name; `forward` is given by a subclass."""

    def __init__(self, **parts):
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)


def normal(*shape):
    return torch.randn(*shape)


class Attending(Parts):
    """Cross attention, a causal mask, keys and values of other widths."""

    def forward(self, x):
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        y, weights = self.attention(x, x[..., :5], x[..., :6], attn_mask=mask)
        return self.head(y[:, -1]) + weights[:, -1, :3]


class First(Parts):
    def forward(self, x):
        return self.head(self.body(x)[:, 0])


class Decoding(Parts):
    def forward(self, x, memory):
        return self.head(self.decoder(x, memory).mean(1))


class TwoInputs(Parts):
    def forward(self, x, *, y, scale=None):
        z = self.one(x) + self.two(y)
        return self.head(torch.relu(z if scale is None else z * scale))


class TwoOutputs(Parts):
    def forward(self, x):
        h = torch.relu(self.body(x))
        return {"one": self.one(h), "two": (self.two(h), h.argmax(1))}


class Last(Parts):
    def forward(self, x):
        return self.head(self.recurrent(x)[0][:, -1])


class Cells(Parts):
    def forward(self, x):
        h = c = x.new_zeros(x.shape[0], 6)
        for t in range(x.shape[1]):
            h, c = self.one(x[:, t], (h, c))
        return self.head(self.two(h))


class Repeated(Parts):
    """A layer on two parts of the input, another one that reads its own output."""

    def forward(self, x):
        one, two = (torch.relu(self.side(part)) for part in x.chunk(2, 1))
        y = torch.tanh(self.again(torch.tanh(self.again(one + two)) + one))
        return self.head(y)


class Tied(Parts):
    """The output matrix is the table of the words."""

    def __init__(self, **parts):
        super().__init__(**parts)
        self.head.weight = self.words.weight

    def forward(self, ids):
        return self.head(torch.relu(self.body(self.words(ids))))[:, -2:].flatten(1)


class UNet(nn.Module):
    def __init__(self):
        super().__init__()

        def block(n_in, n_out):
            norm = nn.BatchNorm2d(n_out)
            return nn.Sequential(nn.Conv2d(n_in, n_out, 3, padding=1), norm, nn.ReLU())

        self.down, self.middle, self.last = block(1, 6), block(6, 8), nn.Conv2d(6, 2, 1)
        self.up, self.side = nn.ConvTranspose2d(8, 6, 2, 2), block(12, 6)

    def forward(self, x):
        a = self.down(x)
        b = self.up(self.middle(functional.max_pool2d(a, 2)))
        return self.last(self.side(torch.cat([a, b], 1)))


class Dense(nn.Module):
    def __init__(self, n_in, n_out):
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(n_in), nn.Conv2d(n_in, n_out, 3, padding=1)

    def forward(self, x):
        return torch.cat([x, self.conv(torch.relu(self.norm(x)))], 1)


def mobile(n_in, n_out, stride):
    wide = 2 * n_in
    return nn.Sequential(
        nn.Conv2d(n_in, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.ReLU6(),
        nn.Conv2d(wide, wide, 3, stride, 1, groups=wide, bias=False), nn.BatchNorm2d(wide),
        nn.ReLU6(), nn.Conv2d(wide, n_out, 1, bias=False), nn.BatchNorm2d(n_out),
    )  # fmt: skip


def pooled(*layers, width):
    head = nn.Linear(width, 3)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)


def encoder_layer():
    return nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)


NETWORKS = {
    "attention": lambda: (
        Attending(
            attention=nn.MultiheadAttention(8, 2, kdim=5, vdim=6, batch_first=True),
            head=nn.Linear(8, 3),
        ),
        normal(80, 4, 8),
    ),
    "encoder": lambda: (
        First(body=nn.TransformerEncoder(encoder_layer(), 2), head=nn.Linear(8, 3)),
        normal(80, 4, 8),
    ),
    "decoder": lambda: (
        Decoding(
            decoder=nn.TransformerDecoderLayer(8, 2, 16, batch_first=True), head=nn.Linear(8, 3)
        ),
        (normal(80, 4, 8), normal(80, 3, 8)),
    ),
    "transposed 1d": lambda: (
        nn.Sequential(
            nn.Conv1d(3, 8, 3, 2, 1), nn.ReLU(),
            nn.ConvTranspose1d(8, 6, 4, 3, 1, output_padding=2, groups=2, dilation=2), nn.ReLU(),
            nn.ConvTranspose1d(6, 2, 2, bias=False),
        ),
        normal(40, 3, 9),
    ),
    "transposed 2d": lambda: (
        nn.Sequential(
            nn.Conv2d(2, 6, 3, 2, 1), nn.ReLU(),
            nn.ConvTranspose2d(6, 4, (3, 2), (2, 1), (2, 0)), nn.Tanh(), nn.Conv2d(4, 2, 1),
        ),
        normal(30, 2, 8, 8),
    ),
    "lstm": lambda: (
        Last(
            recurrent=nn.LSTM(5, 6, 2, batch_first=True, bidirectional=True), head=nn.Linear(12, 3)
        ),
        normal(80, 4, 5),
    ),
    "gru": lambda: (
        Last(recurrent=nn.GRU(5, 8, batch_first=True), head=nn.Linear(8, 3)),
        normal(80, 4, 5),
    ),
    "rnn": lambda: (
        Last(recurrent=nn.RNN(5, 8, batch_first=True, bias=False), head=nn.Linear(8, 3)),
        normal(80, 4, 5),
    ),
    "cells": lambda: (
        Cells(one=nn.LSTMCell(5, 6), two=nn.GRUCell(6, 6), head=nn.Linear(6, 3)),
        normal(80, 3, 5),
    ),
    "called again": lambda: (
        Repeated(side=nn.Linear(5, 8), again=nn.Linear(8, 8), head=nn.Linear(8, 3)),
        normal(80, 10),
    ),
    "tied head": lambda: (
        Tied(words=nn.Embedding(12, 8), body=nn.Linear(8, 8), head=nn.Linear(8, 12)),
        torch.randint(0, 12, (80, 4)),
    ),
    "two inputs": lambda: (
        TwoInputs(one=nn.Linear(6, 12), two=nn.Linear(4, 12), head=nn.Linear(12, 3)),
        {"y": normal(80, 4), "x": normal(80, 6)},
    ),
    "two outputs": lambda: (
        TwoOutputs(body=nn.Linear(6, 12), one=nn.Linear(12, 8), two=nn.Linear(12, 3)),
        normal(80, 6),
    ),
    "u-net": lambda: (UNet(), normal(24, 1, 8, 8)),
    "densenet": lambda: (
        pooled(nn.Conv2d(2, 6, 3), Dense(6, 4), Dense(10, 4), nn.ReLU(), width=14),
        normal(40, 2, 8, 8),
    ),
    "mobilenet": lambda: (
        pooled(nn.Conv2d(2, 6, 3, 2, 1), nn.ReLU6(), mobile(6, 8, 1), mobile(8, 8, 2), width=8),
        normal(40, 2, 12, 12),
    ),
}  # fmt: skip


def made(name):
    """Return a network in eval mode with positional or keyword inputs, always the same."""
    torch.manual_seed(0)
    net, inputs = NETWORKS[name]()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.normal_(module.running_mean, std=0.2)
    return net.eval(), inputs


def outputs(net, inputs):
    """Return all outputs (b, features), without gradients."""
    with torch.no_grad():
        if isinstance(inputs, dict):
            found = net(**inputs)
        else:
            found = net(*inputs) if isinstance(inputs, tuple) else net(inputs)
    if isinstance(found, dict):
        found = torch.cat([found["one"], found["two"][0]], 1)
    return found
