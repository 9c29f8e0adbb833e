"""The stage that turns documents, or tokens made elsewhere, into a pool of units."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from tilth.data import locations
from tilth.data.dolma import index_of, read_tokens
from tilth.data.tokenize import DocumentTexts, TokenizedRecord, pool_from_arrays, tokenize_documents
from tilth.data.tokenized import read_megatron, read_npy
from tilth.data.tokenizer import BpeTokenizer, FileTokenizer, TokenizerChoice
from tilth.recipe.console import quantity, say
from tilth.recipe.errors import BadInput
from tilth.recipe.frame import Config
from tilth.stages.stage import Context, Stage


class TokenFile(Config):
    """Tokens made elsewhere: a .npy array, Dolma's raw .npy with its .csv.gz beside, or the .bin/.idx pair of Megatron
    (give either name, or their stem)."""

    path: str
    source: str | None = None
    license: str | None = None
    dtype: Literal["uint16", "uint32"] = Field("uint16", description="of Dolma's .npy, which does not say it")
    document_end: int | None = Field(None, ge=0, description=".npy: the id that ends a document, if documents differ")

    def stored(self) -> list[str]:
        """The files behind `path`."""
        if self.path.endswith(".npy"):
            return [self.path, *([index_of(self.path)] if self._is_dolma() else [])]
        stem = self.path.removesuffix(".bin").removesuffix(".idx")
        return [f"{stem}.bin", f"{stem}.idx"]

    def records(self) -> Iterator[TokenizedRecord]:
        """One record a document, `{file}:{number}` its id, or that of Dolma's index."""
        first = self.stored()[0]
        if self._is_dolma():
            for record in read_tokens(first, self.dtype):
                yield replace(record, source=self.source or record.source, license=self.license)
            return
        arrays = read_npy(first, self.document_end) if first.endswith(".npy") else read_megatron(first[:-4])
        name = Path(first).stem
        for number, tokens in enumerate(arrays):
            yield TokenizedRecord(f"{name}:{number}", tokens, self.source or name, self.license)

    def _is_dolma(self) -> bool:
        return self.path.endswith(".npy") and Path(index_of(self.path)).is_file()


class TokenizeStage(Stage):
    """`input`: the curate stage to read; or `tokens`: files that hold tokens already, with the tokenizer that made them
    as `tokenizer: {kind: file, path: ...}`. `held_out_share` of the documents of such files is held out."""

    kind: str = "tokenize"
    input: str | None = "curate"
    tokens: list[TokenFile] = Field(default_factory=list)
    tokenizer: TokenizerChoice = BpeTokenizer()
    unit_tokens: int = Field(1024, ge=1, description="a document is cut into units of at most so many tokens")
    held_out_share: float = Field(0.01, ge=0, lt=1)

    def reads(self) -> list[str]:
        return [self.input] if self.input and not self.tokens else []

    def files(self) -> Iterable[dict[str, Any]]:
        paths = [*map(str, self.tokenizer.files()), *[path for item in self.tokens for path in item.stored()]]
        return [locations.fingerprint(path) for path in paths]

    def run(self, context: Context) -> dict[str, Any]:
        report = self._from_tokens(context) if self.tokens else self._from_documents(context)
        say(f"  {quantity(report['tokens'])} tokens in {report['units']} units, vocabulary {report['vocab_size']}")
        return {key: report[key] for key in ("tokens", "units", "vocab_size", "unit_tokens")}

    def _from_documents(self, context: Context) -> dict[str, Any]:
        folder = context.input(self.input or "")
        paths = sorted(folder.glob("documents-*.parquet"))
        tokenizer = self.tokenizer.build(DocumentTexts(paths))
        if (folder / "held_out.parquet").exists():
            tokenize_documents([folder / "held_out.parquet"], tokenizer, context.folder / "held_out", self.unit_tokens)
        return tokenize_documents(paths, tokenizer, context.folder, self.unit_tokens, progress="tokenizing")

    def _from_tokens(self, context: Context) -> dict[str, Any]:
        if not isinstance(self.tokenizer, FileTokenizer):
            raise BadInput("`tokenize.tokens` holds ids that some tokenizer made: name it, with tokenizer: "
                           "{kind: file, path: tokenizer.json}.")
        tokenizer = self.tokenizer.build([])
        shape = (self.unit_tokens, tokenizer.vocab_size, tokenizer.end_of_text, tokenizer)
        if self.held_out_share:
            pool_from_arrays(self._records(held_out=True), context.folder / "held_out", *shape)
        return pool_from_arrays(self._records(held_out=False), context.folder, *shape)

    def _records(self, held_out: bool) -> Iterator[TokenizedRecord]:
        """The documents of the held-out part, or the others, by a hash of their id."""
        limit = int(self.held_out_share * 2**64)
        for item in self.tokens:
            for record in item.records():
                place = int.from_bytes(blake2b(record.id.encode(), digest_size=8).digest(), "little")
                if (place < limit) == held_out:
                    yield record
