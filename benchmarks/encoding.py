"""Encoding text with a byte-level BPE: Tilth's encoder of whole batches against the `tokenizers` library.

    python benchmarks/encoding.py [--rounds N]

The tokenizer is the quickstart's (4,096 tokens, trained here on the standard library's text), the texts are its
documents; both sides have the same merges, run on one thread, take turns, and must give the same ids. Each turn of
Tilth's begins with what it remembers of the turns before; the first turn of both is not counted. `cold` is a turn of an
encoder that remembers nothing yet.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tilth.data.encoding import Encoder
from tilth.data.tokenize import DocumentTexts
from tilth.data.tokenizer import Tokenizer, byte_alphabet
from tilth.stages.load import load_recipe
from tilth.stages.runner import run_recipe
from tilth.stages.stage import Recipe
from tilth.trial.bench import Claim, measure, run_sections, single_thread, versions

HERE = Path(__file__).parent


def speed(arguments: argparse.Namespace) -> list[Claim]:
    with tempfile.TemporaryDirectory() as name:
        folder, whole = Path(name), load_recipe("quickstart")
        run_recipe(Recipe(name="data", stages={one: whole.stages[one] for one in ("curate", "tokenize")}), folder)
        texts = list(DocumentTexts(sorted((folder / "curate").glob("documents-*.parquet"))))
        tokenizer = Tokenizer.load(folder / "tokenize")
    size = sum(len(text.encode()) for text in texts)
    warm = Encoder(tokenizer.inner.model, byte_alphabet())

    def library() -> list[np.ndarray]:
        encoded = tokenizer.inner.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(one.ids, dtype=np.uint32) for one in encoded]

    equal = all(np.array_equal(a, b) for a, b in zip(warm.encode(texts), library(), strict=True))
    how = f"{size / 1e6:.1f} MB in {len(texts)} documents, identical ids: {equal}"
    claims = []
    for kind, ours in (("", lambda: warm.encode(texts)),
                       ("_cold", lambda: Encoder(tokenizer.inner.model, byte_alphabet()).encode(texts))):
        paired = measure(rate(ours, size), rate(library, size), arguments.rounds)
        claims.append(Claim(f"encoding_vs_tokenizers{kind}", paired.ratio if equal else None,
                            "ratio of bytes per CPU-second", ">= 3", "tokenizers, encode_batch_fast",
                            f"{how}; {paired.text('MB per CPU-second')}"))
    return claims


def rate(work: Callable[[], object], size: int) -> Callable[[], float]:
    """Megabytes a CPU-second of one turn."""
    def turn() -> float:
        start = time.process_time()
        work()
        return size / 1e6 / (time.process_time() - start)
    return turn


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="pairs of turns that are counted")
    single_thread()
    return run_sections("encoding", {"speed": speed}, parser, lambda: versions("tokenizers"), HERE)


if __name__ == "__main__":
    sys.exit(main())
