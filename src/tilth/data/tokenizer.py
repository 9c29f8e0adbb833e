"""Tokenizers: byte-level BPE trained here, any existing `tokenizer.json`, or plain bytes.

Text that spells a special token inside a document stays text: a corpus cannot forge the end of a document.
The `tokenizers` library runs in threads; set TOKENIZERS_PARALLELISM=false to keep it to one.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from pydantic import Field
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers

from tilth.data.encoding import Encoder
from tilth.data.seeding import generator
from tilth.recipe import BadInput, Config, one_of
from tilth.recipe.files import read_json, write_bytes, write_json

END_OF_TEXT = "<|endoftext|>"

# The GPT-4 split (cl100k) without possessive quantifiers: words with one leading mark or space, numbers of at most
# three digits, punctuation, line ends apart from other white space.
SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
         r"|\s*[\r\n]+|\s+(?!\S)|\s+")


class Tokenizer:
    """A `tokenizers.Tokenizer` that knows its end-of-text token and never finds special tokens in text."""

    def __init__(self, inner: tokenizers.Tokenizer, end_of_text: str = END_OF_TEXT):
        found = inner.token_to_id(end_of_text)
        if found is None:
            raise BadInput(f"The tokenizer has no token {end_of_text!r} to end a document with; name one that it has "
                           f"(`end_of_text`).")
        if not any(token.special for token in inner.get_added_tokens_decoder().values()
                   if token.content == end_of_text):
            inner.add_special_tokens([AddedToken(end_of_text, special=True)])  # keeps its id; now text cannot spell it
        inner.no_padding()
        inner.no_truncation()
        inner.encode_special_tokens = True
        self.inner = inner
        self.end_of_text_token = end_of_text
        self.end_of_text = found

    @cached_property
    def vocab_size(self) -> int:
        """One more than the largest id, so that an array of this length can be indexed by any id."""
        return max(self.inner.get_vocab(with_added_tokens=True).values()) + 1

    def encode(self, text: str) -> np.ndarray:
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ids of each text, uint32 (tokens,), without any special token added."""
        if self._fast is not None:
            try:
                return self._fast.encode(texts)
            except UnicodeEncodeError:
                pass  # lone surrogates: the library says what is wrong with them
        encoded = self.inner.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(one.ids, dtype=np.uint32) for one in encoded]

    @cached_property
    def _fast(self) -> Encoder | None:
        """The encoder of whole batches, for a tokenizer of the kind that is trained here; None for others."""
        plain = byte_level(models.BPE(), SPLIT)
        state, ours = json.loads(self.inner.to_str()), json.loads(plain.to_str())
        model = {key: value for key, value in state["model"].items() if key not in ("vocab", "merges")}
        usual = {key: value for key, value in ours["model"].items() if key not in ("vocab", "merges")}
        added = [token for token in state["added_tokens"] if not token["special"]]
        if state["pre_tokenizer"] != ours["pre_tokenizer"] or state["normalizer"] or added or model != usual:
            return None
        return Encoder(self.inner.model, byte_alphabet())

    def offsets(self, text: str, ids: np.ndarray) -> np.ndarray:
        """The characters that each of the `ids` (tokens,) of `text` covers: start and end, int64 (tokens, 2). A token
        of part of a character covers that character."""
        utf8 = np.frombuffer(text.encode(), np.uint8)
        if self.token_bytes is not None:
            ends = np.cumsum(self.token_bytes[ids])
            if len(ids) and ends[-1] == len(utf8):  # not so where a prefix space was added
                return character_offsets(utf8, ends)
        encoded = self.inner.encode(text, add_special_tokens=False)
        return np.array(encoded.offsets, np.int64).reshape(-1, 2)

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        return self.inner.decode([int(token) for token in ids], skip_special_tokens=skip_special_tokens)

    @cached_property
    def token_bytes(self) -> np.ndarray | None:
        """Bytes of text that each id stands for, int64 (V,); special tokens none. None if not byte-level."""
        if self.inner.normalizer is not None or not isinstance(self.inner.decoder, decoders.ByteLevel):
            return None
        lengths = np.zeros(self.vocab_size, np.int64)
        added = self.inner.get_added_tokens_decoder()
        for token, index in self.inner.get_vocab(with_added_tokens=True).items():
            known = added.get(index)
            if known is None:
                lengths[index] = len(token)  # in this alphabet one character stands for one byte
            elif not known.special:
                lengths[index] = len(token.encode())
        return lengths

    def save(self, folder: Path | str) -> None:
        """Write `tokenizer.json` and the `tokenizer_config.json` that names the end-of-text token (and lets
        `transformers` load the folder)."""
        folder = Path(folder)
        write_bytes(folder / "tokenizer.json", self.inner.to_str(pretty=True).encode())
        write_json(folder / "tokenizer_config.json", {
            "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": self.end_of_text_token,
            "eos_token": self.end_of_text_token, "clean_up_tokenization_spaces": False,
        })

    @classmethod
    def load(cls, path: Path | str, end_of_text: str | None = None) -> "Tokenizer":
        """From a `tokenizer.json` or the folder that holds one. The end-of-text token is the one named, else
        `eos_token` of the `tokenizer_config.json` beside it, else a well-known name among the special tokens."""
        path = Path(path)
        file = path / "tokenizer.json" if path.is_dir() else path
        if not file.is_file():
            raise BadInput(f"There is no tokenizer at {file}; give a tokenizer.json or the folder that holds one.")
        try:
            inner = tokenizers.Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises plain Exception for whatever is wrong with the file
            raise BadInput(f"{file} is not a tokenizer that `tokenizers` can read: {error}.") from error
        return cls(inner, end_of_text or find_end_of_text(inner, file))


def character_offsets(utf8: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Start and end character, int64 (tokens, 2), of tokens that end before the bytes `ends` (tokens,) of `utf8`."""
    begins_character = np.append((utf8 & 0xC0) != 0x80, True)  # continuation bytes are 10xxxxxx
    before = np.concatenate([[0], np.cumsum(begins_character)])  # characters that begin before each byte
    begins = np.concatenate([[0], ends[:-1]])
    return np.stack([before[begins] - ~begins_character[begins], before[ends]], axis=1)


WELL_KNOWN = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "[EOS]", "<|eot_id|>")


def find_end_of_text(inner: tokenizers.Tokenizer, file: Path) -> str:
    """The token that ends a document, from the settings beside `file` or from the special tokens; else BadInput."""
    settings = file.with_name("tokenizer_config.json")
    named: Any = read_json(settings).get("eos_token") if settings.is_file() else None
    named = named.get("content") if isinstance(named, dict) else named
    if named:
        return named
    special = {token.content for token in inner.get_added_tokens_decoder().values() if token.special}
    for token in WELL_KNOWN:
        if token in special:
            return token
    raise BadInput(f"{file} does not say which token ends a document; set `end_of_text` to one of its tokens"
                   + (f" (its special tokens: {', '.join(sorted(special)[:10])})." if special else "."))


def byte_alphabet() -> list[str]:
    """The character that stands for each byte 0-255 in byte-level vocabularies (the GPT-2 table)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) if byte in printable else chr(256 + others.index(byte)) for byte in range(256)]


def byte_level(model: models.BPE, split: str | None) -> tokenizers.Tokenizer:
    """A tokenizer over bytes, lossless for any text: no normaliser, no prefix space."""
    inner = tokenizers.Tokenizer(model)
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.pre_tokenizer = to_bytes if split is None else pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(split), "isolated"), to_bytes])
    inner.decoder = decoders.ByteLevel()
    return inner


class TokenizerConfig(Config):
    """Which tokenizer a recipe uses; `build` makes or loads it."""

    kind: str = "bpe"

    def build(self, texts: Iterable[str]) -> Tokenizer:
        """The tokenizer; `texts` are the training documents, which may be iterated more than once, or not at all."""
        raise NotImplementedError(f"{type(self).__name__} must say how its tokenizer is built.")

    def files(self) -> list[Path]:
        """Local files that decide what the tokenizer is."""
        return []


class BpeTokenizer(TokenizerConfig):
    """Byte-level BPE (Sennrich et al. 2016; bytes as in GPT-2) trained on the run's own documents."""

    kind: str = "bpe"
    vocab_size: int = Field(8192, ge=257, description="tokens in all: end of text, 256 bytes, merges")
    min_frequency: int = Field(2, ge=1, description="a pair rarer than this is never merged")
    sample_bytes: int | None = Field(None, ge=1, description="train on a random sample of about this many bytes")

    def build(self, texts: Iterable[str]) -> Tokenizer:
        inner = byte_level(models.BPE(), SPLIT)
        trainer = trainers.BpeTrainer(
            vocab_size=self.vocab_size, min_frequency=self.min_frequency, special_tokens=[END_OF_TEXT],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
        inner.train_from_iterator(self._sample(texts), trainer)
        made = inner.get_vocab_size()
        if made < self.vocab_size:
            raise BadInput(f"A vocabulary larger than the data supports: got {made} tokens, not {self.vocab_size}; "
                           f"set vocab_size <= {made} (or give more text).")
        return Tokenizer(inner)

    def _sample(self, texts: Iterable[str]) -> Iterator[str]:
        """All texts, or each with the probability that makes about `sample_bytes` in all."""
        if self.sample_bytes is None:
            yield from texts
            return
        total = sum(len(text.encode()) for text in texts)
        chance = generator(0, "tokenizer sample")
        for text in texts:
            if chance.random() * total < self.sample_bytes:
                yield text


class FileTokenizer(TokenizerConfig):
    """An existing tokenizer: a `tokenizer.json`, or a folder that holds one."""

    kind: str = "file"
    path: Path = Field(description="tokenizer.json, or a Hugging Face folder with one")
    end_of_text: str | None = Field(None, description="the token that ends a document, if the files don't say")

    def build(self, texts: Iterable[str]) -> Tokenizer:
        return Tokenizer.load(self.path, self.end_of_text)

    def files(self) -> list[Path]:
        folder = self.path if self.path.is_dir() else self.path.parent
        named = folder / "tokenizer.json" if self.path.is_dir() else self.path
        return [file for file in (named, folder / "tokenizer_config.json") if file.is_file()]


class BytesTokenizer(TokenizerConfig):
    """One token a byte: id = byte value, and 256 ends a document."""

    kind: str = "bytes"

    def build(self, texts: Iterable[str]) -> Tokenizer:
        vocabulary = {character: byte for byte, character in enumerate(byte_alphabet())}
        inner = byte_level(models.BPE(vocab=vocabulary, merges=[]), None)
        inner.add_special_tokens([AddedToken(END_OF_TEXT, special=True)])
        return Tokenizer(inner)


TOKENIZERS: dict[str, type[Config] | str] = {"bpe": BpeTokenizer, "file": FileTokenizer, "bytes": BytesTokenizer}
TokenizerChoice = one_of(TokenizerConfig, TOKENIZERS)
