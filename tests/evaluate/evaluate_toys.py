"""Stand-ins: models whose probabilities are known, a pool in memory, a tokenizer of bytes."""

import numpy as np
import torch
from torch import nn

END = 256


class Uniform(nn.Module):
    """The same logit for each of `vocabulary` tokens."""

    def __init__(self, vocabulary: int):
        super().__init__()
        self.vocabulary = vocabulary

    def forward(self, tokens, segments=None, positions=None):
        return torch.zeros(*tokens.shape, self.vocabulary)


class Bigram(nn.Module):
    """Logits of the next token are a row of a table: a bigram model with known probabilities."""

    def __init__(self, logits):
        super().__init__()
        self.table = nn.Parameter(torch.as_tensor(logits, dtype=torch.float32))
        self.seen: list[tuple[int, int]] = []

    def forward(self, tokens, segments=None, positions=None):
        self.seen.append(tuple(tokens.shape))
        return self.table[tokens]


class Recurrent(nn.Module):
    """A causal model with a long memory, and the `hidden` and `head` of a real one; dropout tells training mode."""

    def __init__(self, vocabulary: int, seed: int = 0):
        super().__init__()
        torch.manual_seed(seed)
        self.embed, self.head = nn.Embedding(vocabulary, 16), nn.Linear(16, vocabulary)
        self.mix, self.drop = nn.GRU(16, 16, batch_first=True), nn.Dropout(0.5)

    def hidden(self, tokens, segments=None, positions=None):
        return self.drop(self.mix(self.embed(tokens))[0])

    def forward(self, tokens, segments=None, positions=None):
        return self.head(self.hidden(tokens, segments, positions))


class MemoryPool:
    """Units given as (record_id, source, tokens, bytes)."""

    def __init__(self, units):
        self.units = units
        self.sources = sorted({unit[1] for unit in units})
        self.source = np.array([self.sources.index(unit[1]) for unit in units], np.int32)

    def __len__(self):
        return len(self.units)

    def get(self, field, index):
        assert field == "tokens"
        return np.array(self.units[index][2], np.uint16)

    def column(self, name):
        return [unit[{"record_id": 0, "bytes": 3}[name]] for unit in self.units]


def byte_pool(texts, source="text"):
    return MemoryPool([(f"r{i}", source, [*text, END], len(text)) for i, text in enumerate(texts)])


class ByteTokenizer:
    """Token = byte; with `merges` (pairs of bytes to ids from 257) applied greedily from the left, as a tiny BPE."""

    end_of_text = END

    def __init__(self, *merges: bytes):
        self.merges = {pair: 257 + number for number, pair in enumerate(merges)}

    def encode(self, text: str) -> np.ndarray:
        data, tokens, at = text.encode(), [], 0
        while at < len(data):
            pair = self.merges.get(data[at : at + 2])
            tokens.append(data[at] if pair is None else pair)
            at += 1 if pair is None else 2
        return np.array(tokens, np.int64)

    def encode_batch(self, texts) -> list[np.ndarray]:
        return [self.encode(text) for text in texts]
