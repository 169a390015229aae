"""Text classifiers: words to token ids, and transformers as maps from token ids to logits.

The network is built by the transformers library (``pip install "cimf[text]"``): DistilBERT of Sanh
et al. (2019), "DistilBERT, a distilled version of BERT", from a configuration or from a checkpoint.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cimf.errors import DataError, InputError

PADDING, START = 0, 1
_WORD = re.compile(r"[a-z]+|[0-9]+")

Ids = NDArray[np.int64]


class TokenClassifier(nn.Module):
    """A sequence classifier of the transformers library with one input and one output.

    Parameters
    ----------
    model : nn.Module
        Called with `input_ids` and `attention_mask`; its result has `logits`.
    padding : int
        Tokens with this id are masked.
    """

    model: Any

    def __init__(self, model: nn.Module, padding: int = PADDING) -> None:
        super().__init__()
        self.model, self.padding = model, padding

    def forward(self, ids: Tensor) -> Tensor:
        """Map token ids (b, tokens) to logits (b, classes)."""
        return self.model(input_ids=ids, attention_mask=(ids != self.padding).long()).logits


@dataclass(frozen=True)
class Vocabulary:
    """The most frequent words of a collection, and the ids they get.

    A word is a run of letters or of digits in lower case. Id 0 is padding, 1 starts every text;
    other words are left out.

    Attributes
    ----------
    words : tuple of str
        Word k has id k + 2.
    """

    words: tuple[str, ...]

    @classmethod
    def of(cls, texts: Iterable[str], size: int) -> Vocabulary:
        """Return the `size` - 2 words that occur in most texts, ties in alphabetical order.

        Raises
        ------
        InputError
            `size` below 3.
        """
        if size < 3:
            raise InputError(f"a vocabulary of {size} ids has no room for a word")
        counts = Counter(word for text in texts for word in set(_WORD.findall(text.lower())))
        ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        return cls(tuple(word for word, _ in ranked[: size - 2]))

    def encode(self, texts: Sequence[str], length: int) -> Ids:
        """Return the first `length` token ids of every text, padded at the end, (m, length)."""
        known = {word: k for k, word in enumerate(self.words, start=2)}
        out = np.full((len(texts), length), PADDING, dtype=np.int64)
        for row, text in zip(out, texts, strict=True):
            found = [known[word] for word in _WORD.findall(text.lower()) if word in known]
            ids = [START, *found][:length]
            row[: len(ids)] = ids
        return out


def subject_and_body(message: str) -> str:
    """Return a message of a newsgroup without its headers other than the subject."""
    head, blank, body = message.partition("\n\n")
    if not blank:
        return message
    subjects = [line[8:] for line in head.split("\n") if line.lower().startswith("subject:")]
    return "\n".join([*subjects, body])


def bag_of_words(vocabulary: int, width: int, classes: int, seed: int) -> nn.Sequential:
    """Return an untrained linear classifier of the mean word embedding, seeded.

    It is trained in seconds, and its embeddings are a start for those of `distilbert`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        words = nn.EmbeddingBag(vocabulary, width, padding_idx=PADDING)
        # The default, 1, is not forgotten in a few epochs.
        nn.init.normal_(words.weight, std=0.1)
        return nn.Sequential(words, nn.Dropout(0.3), nn.Linear(width, classes))


def distilbert(
    *,
    vocabulary: int,
    length: int,
    classes: int,
    width: int,
    hidden: int,
    heads: int,
    layers: int,
    dropout: float,
    words: Tensor | None = None,
    seed: int = 0,
) -> TokenClassifier:
    """Return an untrained DistilBERT classifier, seeded.

    Parameters
    ----------
    vocabulary, length, classes : int
        Number of token ids, tokens of a text at most, outputs.
    width, hidden, heads, layers : int
        Of a token's state, of the feed-forward layers, attention heads, blocks.
    dropout : float
        Everywhere, in training.
    words : (vocabulary, width), optional
        Word embeddings to start from.

    Raises
    ------
    DataError
        The transformers library is not installed.
    """
    library = _transformers()
    config = library.DistilBertConfig(
        vocab_size=vocabulary,
        max_position_embeddings=length,
        num_labels=classes,
        dim=width,
        hidden_dim=hidden,
        n_heads=heads,
        n_layers=layers,
        dropout=dropout,
        attention_dropout=dropout,
        seq_classif_dropout=dropout,
        # 0.02 is made for long pre-training; after one short epoch it has learnt nothing.
        initializer_range=0.1,
        pad_token_id=PADDING,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = library.DistilBertForSequenceClassification(config)
    if words is not None:
        with torch.no_grad():
            model.get_input_embeddings().weight.copy_(words)
    return TokenClassifier(model)


def checkpoint(name: str) -> tuple[TokenClassifier, Callable[[Sequence[str], int], Ids]]:
    """Return a trained classifier by its name on the Hugging Face hub, or from a folder.

    Returns
    -------
    network : TokenClassifier
        In eval mode.
    encode : (texts, length) -> (m, length) token ids

    Raises
    ------
    DataError
        The library is not installed; or the checkpoint is neither on this machine nor reachable.
    """
    library = _transformers()
    retries = logging.getLogger("huggingface_hub")
    level = retries.level
    retries.setLevel(logging.ERROR)
    try:
        model = library.AutoModelForSequenceClassification.from_pretrained(name)
        tokenizer = library.AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise DataError(
            f"the checkpoint {name!r} cannot be loaded ({reason}). Run once where huggingface.co "
            "can be reached, or give a folder with config.json, model.safetensors and the tokenizer"
        ) from error
    finally:
        retries.setLevel(level)

    def encode(texts: Sequence[str], length: int) -> Ids:
        found = tokenizer(
            list(texts), padding="max_length", truncation=True, max_length=length
        ).input_ids
        return np.asarray(found, dtype=np.int64)

    return TokenClassifier(model, tokenizer.pad_token_id).eval(), encode


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise DataError(f"transformers is needed, pip install 'cimf[text]': {error}") from error
    return transformers
