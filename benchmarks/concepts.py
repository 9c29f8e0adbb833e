"""Counting concepts in text: Tilth's index against the same index built word by word in Python.

    python benchmarks/concepts.py [--rounds N] [--megabytes N]

The text is the Python standard library's, cut into pieces of a paragraph's length; the concepts are 2,000 of its words
and 500 pairs of words. Both sides follow the same rule (runs of letters, marks and digits, plural rules,
all words of a name) and must give the same counts; the Python side remembers the base form of each word it has seen, as
Tilth's does. Each turn begins with an empty vocabulary.
"""

import argparse
import re
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

from tilth.curate.concepts import ConceptIndex, Concepts
from tilth.curate.lemmas import lemma
from tilth.data.records import Quarantine
from tilth.data.stdlib import StdlibInput
from tilth.trial.bench import Claim, measure, run_sections, single_thread, versions

HERE = Path(__file__).parent
WORD, BATCH = re.compile(r"[^\W_]+"), 4096


def pieces(megabytes: float) -> list[str]:
    """ASCII lines and paragraphs of the standard library's text."""
    found: list[str] = []
    size = 0
    with Quarantine() as quarantine:
        for batch in StdlibInput().read(quarantine):
            for text in batch.column("text").to_pylist():
                for piece in text.split("\n\n"):
                    if piece.isascii():
                        found.append(piece)
                        size += len(piece)
                if size > megabytes * 1e6:
                    return found
    return found


def by_hand(names: list[str], texts: list[str]) -> list[int]:
    """Counts by an inverted index of sets, word by word."""
    base: dict[str, str] = {}
    asked = [[lemma(word) for word in WORD.findall(name.lower())] for name in names]
    needed = {word for words in asked for word in words}
    index: defaultdict[str, set[int]] = defaultdict(set)
    for at, text in enumerate(texts):
        for word in WORD.findall(text.lower()):
            found = base.get(word)
            if found is None:
                found = base[word] = lemma(word)
            if found in needed:
                index[found].add(at)
    return [len(set.intersection(*[index.get(word, set()) for word in words])) for words in asked]


def ours(names: list[str], texts: list[str]) -> list[int]:
    index = ConceptIndex(Concepts(names))
    for at in range(0, len(texts), BATCH):
        part = texts[at:at + BATCH]
        index.add([str(at + place) for place in range(len(part))], part)
    return index.counts().tolist()


def speed(arguments: argparse.Namespace) -> list[Claim]:
    texts = pieces(arguments.megabytes)
    common = [word for word, _ in Counter(word for text in texts for word in WORD.findall(text.lower())).most_common(
        4000)]
    names = common[1000:3000] + [f"{a} {b}" for a, b in zip(common[1000:1500], common[3000:3500], strict=True)]
    size = sum(map(len, texts))
    equal = ours(names, texts) == by_hand(names, texts)
    paired = measure(rate(lambda: ours(names, texts), size), rate(lambda: by_hand(names, texts), size),
                     arguments.rounds)
    how = (f"{size / 1e6:.1f} MB in {len(texts)} texts, {len(names)} concepts, identical counts: {equal}; "
           f"{paired.text('MB per CPU-second')}")
    mine = float(sorted(paired.a)[len(paired.a) // 2])
    return [Claim("concepts_vs_python_index", paired.ratio if equal else None, "ratio of bytes per CPU-second", ">= 1",
                  "an inverted index of sets in plain Python", how),
            Claim("concepts_speed", mine if equal else None, "MB per CPU-second", ">= 20", None, how)]


def rate(work: Callable[[], object], size: int) -> Callable[[], float]:
    """Megabytes a CPU-second of one turn."""
    def turn() -> float:
        start = time.process_time()
        work()
        return size / 1e6 / (time.process_time() - start)
    return turn


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="pairs of turns that are counted")
    parser.add_argument("--megabytes", type=float, default=10, help="of text, about")
    single_thread()
    return run_sections("concepts", {"speed": speed}, parser, lambda: versions("polars"), HERE)


if __name__ == "__main__":
    sys.exit(main())
