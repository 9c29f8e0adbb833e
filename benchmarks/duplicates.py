"""Duplicates: Tilth against datatrove on MinHash end to end, and what paragraphs and decontamination cost.

    python benchmarks/duplicates.py [--text FOLDER] [--megabytes 6] [--rounds 3] [--only near_duplicates]

Text is a folder of `.jsonl.zst` files with a field `text` (files named `en_*`), or, without one, the source of
Python's standard library. It is cut to pieces of 100 to 900 words, of which a third get two planted near copies, edited
at several rates. Real near duplicates stand among them: the licence texts of the installed packages, whole. What counts
as a near duplicate is decided by the exact Jaccard similarity of word 5-grams, computed here by neither side.

Both sides use word 5-grams, 14 bands of 8 rows, one thread, and the same file; timed are the CPU-seconds of a process
from reading the file to having written what stays, imports left out. datatrove 0.10.1 is installed in an environment
of its own below TILTH_BENCH_ENVS (with spacy, its word splitter).
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from functools import cache
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from tilth.curate.bloom import Bloom
from tilth.curate.curate import CurateConfig
from tilth.curate.decontaminate import Contamination
from tilth.curate.minhash import recall
from tilth.curate.paragraphs import ParagraphDuplicates
from tilth.data.records import Quarantine
from tilth.data.stdlib import StdlibInput
from tilth.recipe import parse
from tilth.recipe.errors import RunFailed
from tilth.trial.bench import Claim, Paired, run_sections, versions
from tilth.trial.peers import PeerMissing, environment

HERE = Path(__file__).resolve().parent
PEER = "datatrove 0.10.1"
REQUIREMENTS = ("datatrove==0.10.1", "orjson", "regex", "spacy", "tokenizers", "xxhash==3.8.2")
SCRIPT = "datatrove_minhash"
BANDS, ROWS = 14, 8
SURE, UNSURE = 0.85, 0.5  # Jaccard: what should be found, and what should not


def main() -> int:
    if len(sys.argv) == 4 and sys.argv[1] == "--side":  # one turn of Tilth, in a process of its own
        print(json.dumps(one_turn(*sys.argv[2:])))
        return 0
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--text", type=Path, help="folder of .jsonl.zst files; default: the standard library's source")
    parser.add_argument("--megabytes", type=float, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    sections = {"near_duplicates": near_duplicates, "paragraphs": paragraphs, "decontamination": decontamination}
    return run_sections("duplicates", sections, parser, lambda: versions("polars", "pyarrow"), HERE)


# The corpus.

@cache
def corpus(folder: Path | None, size: int) -> tuple[list[str], int]:
    """All documents, and how many of the first are real licence texts; the rest are pieces with their near copies."""
    random = np.random.default_rng(1)
    pieces = [piece for text in texts(folder) for piece in cut(text, random)]
    documents = licences()
    real, held = len(documents), 0
    for at in random.permutation(len(pieces)).tolist():
        documents.append(pieces[at])
        if random.random() < 1 / 3:
            documents += [edited(pieces[at], rate, random) for rate in random.choice([0, .002, .01, .03, .1], 2)]
        held += len(pieces[at])
        if held > size * 3 / 5:
            break
    return documents, real


def texts(folder: Path | None) -> list[str]:
    if folder is None:
        return [text for batch in StdlibInput(path="").read(Quarantine()) for text in batch.column("text").to_pylist()]
    return [json.loads(line)["text"] for path in sorted(folder.glob("en_*.jsonl.zst"))
            for line in pa.input_stream(str(path), compression="zstd").read().splitlines()]


def licences() -> list[str]:
    """Licence texts of the installed packages, each text once."""
    found = set()
    for distribution in distributions():
        for file in distribution.files or ():
            if re.search(r"(?i)licen[cs]e|copying", file.name) and file.suffix in ("", ".txt", ".md", ".rst"):
                path = Path(str(file.locate()))
                if path.is_file():
                    found.add(path.read_text(errors="replace"))
    return sorted(text for text in found if len(text.split()) > 50)


def cut(text: str, random: np.random.Generator) -> list[str]:
    """Pieces of 100 to 900 words, with their white space."""
    words, pieces = re.findall(r"\S+\s*", text), []
    while len(words) >= 100:
        size = int(random.integers(100, 900))
        pieces.append("".join(words[:size]))
        words = words[size:]
    return pieces


def edited(text: str, rate: float, random: np.random.Generator) -> str:
    """Words replaced by others of the text, at this rate."""
    words = re.findall(r"\S+\s*", text)
    for place in np.flatnonzero(random.random(len(words)) < rate).tolist():
        words[place] = words[int(random.integers(len(words)))]
    return "".join(words)


# Near duplicates: two sides in turns.

def near_duplicates(arguments: argparse.Namespace) -> list[Claim]:
    documents, real = corpus(arguments.text, int(arguments.megabytes * 1e6))
    size = sum(len(text.encode()) for text in documents) / 1e6
    order = np.random.default_rng(2).permutation(len(documents)).tolist()
    try:
        python = environment("datatrove", REQUIREMENTS)
    except PeerMissing as error:
        return [Claim("MinHash end to end, ratio to datatrove per CPU-second", None, "x", ">= 20", PEER, str(error))]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "in" / "documents.jsonl"
        path.parent.mkdir()
        path.write_text("".join(json.dumps({"id": f"d{at}", "text": documents[at]}) + "\n" for at in order))
        paired, kept = Paired(), {}
        for turn in range(arguments.rounds):
            mine = run([sys.executable, __file__, "--side", str(path), f"{folder}/tilth-{turn}"])
            theirs = run([str(python), str(HERE / "peers" / f"{SCRIPT}.py"), str(path), f"{folder}/peer-{turn}"])
            paired.add(size / mine["cpu_seconds"], size / theirs["cpu_seconds"])
            kept = {"tilth": mine["kept"], "datatrove": theirs["kept"]}
    described = f"{len(documents)} documents, {size:.1f} MB; {paired.text('MB per CPU-second')}"
    return [Claim("MinHash end to end, ratio to datatrove per CPU-second", paired.ratio, "x", ">= 20", PEER, described),
            *qualities(documents, real, order, kept)]


def run(command: list[str]) -> dict[str, Any]:
    threads = dict.fromkeys(("OMP_NUM_THREADS", "POLARS_MAX_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **threads})
    if done.returncode:
        raise RunFailed(f"{command[1]} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def one_turn(source: str, folder: str) -> dict[str, Any]:
    config = parse(CurateConfig, {
        "inputs": [{"path": source}], "exact_duplicates": False, "held_out": None,
        "rules": [{"kind": "near_duplicates", "bands": BANDS, "rows": ROWS}]})
    start = time.process_time()
    config.curate(folder, seed=0)
    seconds = time.process_time() - start
    return {"cpu_seconds": seconds, "kept": pl.read_parquet(f"{folder}/documents-*.parquet")["id"].to_list()}


def similar_pairs(documents: list[str]) -> dict[tuple[int, int], float]:
    """Exact Jaccard similarity of word 5-grams of all pairs that are at least a twentieth alike."""
    sets = []
    for text in documents:
        words = re.findall(r"\w+", text.lower())
        sets.append({hash(tuple(words[at:at + 5])) for at in range(len(words) - 4)})
    holders: dict[int, list[int]] = defaultdict(list)
    for at, grams in enumerate(sets):
        for gram in grams:
            holders[gram].append(at)
    shared: dict[tuple[int, int], int] = defaultdict(int)
    for among in holders.values():
        for i, right in enumerate(among):
            for left in among[:i]:
                shared[left, right] += 1
    jaccard = {pair: count / (len(sets[pair[0]]) + len(sets[pair[1]]) - count) for pair, count in shared.items()}
    return {pair: value for pair, value in jaccard.items() if value > 0.05}


def qualities(documents: list[str], real: int, order: list[int], kept: dict[str, list[str]]) -> list[Claim]:
    """Recall and precision of both sides, over all documents and over the real licence texts alone."""
    pairs = similar_pairs(documents)
    claims = []
    for name, low, high in (("planted", real, len(documents)), ("real", 0, real)):
        inside = {pair: value for pair, value in pairs.items() if low <= pair[0] and pair[1] < high}
        found = {side: quality(ids, range(low, high), inside) for side, ids in kept.items()}
        for at, measure in enumerate(("recall", "precision")):
            mine, theirs = found["tilth"][at], found["datatrove"][at]
            claims.append(Claim(f"{measure} on {name} near duplicates, minus datatrove's", mine - theirs, "share",
                                ">= -0.01", PEER, f"{mine:.4f} against {theirs:.4f}; {found['tilth'][2]}"))
    both = [set(ids) for ids in kept.values()]
    agree = len(both[0] & both[1]) / len(both[0] | both[1])
    claims.append(Claim("near duplicates: documents that stay on both sides", agree, "share", ">= 0.8", PEER,
                        "Jaccard of the two sets; which member of a cluster stays differs: Tilth keeps the first"))
    return claims


def quality(ids: list[str], members: range, pairs: dict[tuple[int, int], float]) -> tuple[float, float, str]:
    """Recall: of the pairs at least `SURE` alike, the share of which at most one stays. Precision: of the documents
    that are gone, the share with a partner at least `UNSURE` alike. And what was counted, in words."""
    stays = {int(name[1:]) for name in ids}
    sure = [pair for pair, value in pairs.items() if value >= SURE]
    expected = float(np.mean([recall(pairs[pair], BANDS, ROWS) for pair in sure])) if sure else 1.0
    found = sum(not (left in stays and right in stays) for left, right in sure) / max(len(sure), 1)
    gone = [at for at in members if at not in stays]
    best: dict[int, float] = defaultdict(float)
    for (left, right), value in pairs.items():
        best[left], best[right] = max(best[left], value), max(best[right], value)
    right_ones = sum(best[at] >= UNSURE for at in gone) / max(len(gone), 1)
    return found, right_ones, (f"{len(sure)} pairs with Jaccard >= {SURE}, formula {expected:.4f}; "
                               f"{len(gone)} documents gone")


# What the other rules cost.

def paragraphs(arguments: argparse.Namespace) -> list[Claim]:
    documents, _ = corpus(arguments.text, int(arguments.megabytes * 1e6))
    frame = pl.DataFrame({"text": [f"{text}\n\nAll of these pages carry this very footer." for text in documents]})
    size = frame["text"].str.len_bytes().sum() / 1e6
    claims = []
    for name, rate in (("exact", None), ("Bloom filter, 1e-6", 1e-6)):
        rule = ParagraphDuplicates(unit="line", false_positives=rate)
        start = time.process_time()
        index = Index(rule.signature(frame))
        found = rule.cut(index).list.len().sum()
        seconds = time.process_time() - start
        claims.append(Claim(f"repeated lines found, {name}", size / seconds, "MB per CPU-second", ">= 20", None,
                            f"{size:.1f} MB, {found} spans; hashing and looking up, without reading and writing"))
    random, number, rate = np.random.default_rng(0), 1_000_000, 1e-3
    bloom = Bloom(number, rate)
    bloom.add(random.integers(0, 1 << 63, number, np.uint64))
    wrong = float(bloom.add(random.integers(0, 1 << 63, 100_000, np.uint64)).mean())
    claims.append(Claim("Bloom filter, false positives over the stated rate", wrong / rate, "x", "<= 1.15", None,
                        f"stated {rate}, {number} keys, 100000 new ones asked while they are added"))
    return claims


class Index:
    """One batch as the index of a corpus rule."""

    def __init__(self, frame: pl.DataFrame):
        self.frame, self.height = frame, frame.height

    def select(self, *columns: str) -> pl.DataFrame:
        return self.frame.select(columns)

    def parts(self, *columns: str):
        yield self.select(*columns)


def decontamination(arguments: argparse.Namespace) -> list[Claim]:
    """Questions are made of the corpus itself: 2,000 passages of 8 to 60 words, quoted whole in one document each."""
    documents, _ = corpus(arguments.text, int(arguments.megabytes * 1e6))
    random = np.random.default_rng(3)
    hidden = random.choice(len(documents), 2000)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "questions.jsonl"
        with open(path, "w") as file:
            for at in hidden.tolist():
                words = documents[at].split()
                start, length = int(random.integers(0, len(words) - 8)), int(random.integers(8, 60))
                file.write(json.dumps({"question": " ".join(words[start:start + length])}) + "\n")
        attribute = Contamination(evaluation=[{"path": str(path), "fields": ["question"]}])
        attribute.items()
        frame = pl.DataFrame({"text": documents})
        start = time.process_time()
        measured = attribute.measure(frame)
        seconds = time.process_time() - start
    size = frame["text"].str.len_bytes().sum() / 1e6
    caught = measured[attribute.columns()[0]].is_not_null()[sorted(set(hidden.tolist()))].mean()
    return [Claim("decontamination, 13-grams and short items", size / seconds, "MB per CPU-second", ">= 20", None,
                  f"{size:.1f} MB against 2000 questions of 8 to 60 words"),
            Claim("fully quoted questions caught", float(caught), "share", ">= 1", None,
                  "questions shorter than an n-gram among them; those of fewer than 5 words are not looked for")]


if __name__ == "__main__":
    sys.exit(main())
