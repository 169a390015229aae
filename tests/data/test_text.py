import sys

import numpy as np
import pytest
import torch
from torch import nn

from cimf.data import text
from cimf.errors import DataError, InputError

SIZES = {
    "vocabulary": 12, "length": 6, "classes": 3, "width": 8, "hidden": 16, "heads": 2, "layers": 2,
    "dropout": 0.1,
}  # fmt: skip


@pytest.mark.parametrize("size", [0, 2])
def test_a_vocabulary_without_words_is_refused(size):
    with pytest.raises(InputError, match="no room"):
        text.Vocabulary.of(["a b"], size)


def test_ids_are_the_most_frequent_words_then_padding():
    vocabulary = text.Vocabulary.of(["B c. B?", "b, A 12", "a-12 b", ""], 5)
    assert vocabulary.words == ("b", "12", "a")
    ids = vocabulary.encode(["A b unknown 12", "", "b b b b b b"], 4)
    assert ids.tolist() == [[1, 4, 2, 3], [1, 0, 0, 0], [1, 2, 2, 2]]
    assert ids.dtype == np.int64


@pytest.mark.parametrize(
    ("message", "kept"),
    [
        ("", "\n"),
        ("From: me\nSubject: Re: a b\nLines: 2\n\nbody\n\nmore", " Re: a b\nbody\n\nmore"),
        ("no headers at all", "no headers at all"),
    ],
)
def test_headers_other_than_the_subject_are_left_out(message, kept):
    assert text.subject_and_body(message).strip() == kept.strip()


class Recorder(nn.Module):
    def forward(self, input_ids, attention_mask):
        self.mask = attention_mask
        return type("Output", (), {"logits": input_ids.float()})


def test_the_mask_comes_from_the_padding_id():
    net = text.TokenClassifier(Recorder(), padding=7)
    assert net(torch.tensor([[1, 7, 2]])).tolist() == [[1.0, 7.0, 2.0]]
    assert net.model.mask.tolist() == [[1, 0, 1]]


def test_distilbert_is_seeded_and_ignores_padding():
    pytest.importorskip("transformers", reason="needs cimf[text]")
    first, again, other = (text.distilbert(**SIZES, seed=seed).eval() for seed in (0, 0, 1))
    ids = torch.tensor([[1, 5, 6, 0, 0, 0], [1, 3, 4, 5, 6, 7]])
    with torch.no_grad():
        assert torch.equal(first(ids), again(ids))
        assert not torch.allclose(first(ids), other(ids))
        first.model.distilbert.embeddings.word_embeddings.weight[0] += 5.0
        torch.testing.assert_close(first(ids), again(ids))
    words = torch.randn(12, 8)
    start = text.distilbert(**SIZES, words=words)
    assert torch.equal(start.model.get_input_embeddings().weight, words)


def test_a_checkpoint_that_cannot_be_loaded_is_one_line():
    pytest.importorskip("transformers", reason="needs cimf[text]")
    with pytest.raises(DataError, match="give a folder with") as caught:
        text.checkpoint("a/folder/that/is/not/there")
    assert "\n" not in str(caught.value)


def test_without_the_library_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(DataError, match=r"cimf\[text\]"):
        text.distilbert(**SIZES)
