"""Curation rules: Tilth against datatrove and dolma, in megabytes a CPU-second, with equal decisions.

    python benchmarks/curation.py [--text FOLDER] [--megabytes 4] [--rounds 3] [--only c4]

Text is a folder of `.jsonl.zst` files with a field `text` (of which documents are drawn at random), or, without one,
the source of Python's standard library. Each turn is a process of its own with one thread; timed are the CPU-seconds
of deciding, for documents that lie in memory, each tool with its recommended settings (datatrove's filters as its
pipeline runs them, dolma's taggers as its processor calls them, Tilth's rules as a curation runs them). The decisions
of both sides are compared, and the claim says how alike they are. datatrove 0.10.1 (with spacy, its word splitter) and
dolma 1.2.1 are installed in environments of their own below TILTH_BENCH_ENVS.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from tilth.curate.curate import CurateConfig
from tilth.curate.pipeline import Pipeline
from tilth.curate.rules import expanded
from tilth.curate.sets.frame import MeasuredSet
from tilth.data.records import SCHEMA, Quarantine
from tilth.data.stdlib import StdlibInput
from tilth.recipe import parse
from tilth.recipe.errors import RunFailed
from tilth.trial.bench import Claim, Paired, measure, run_sections, versions
from tilth.trial.peers import PeerMissing, environment, unmet

HERE = Path(__file__).resolve().parent
WITH = ", with Numba" if importlib.util.find_spec("numba") else ""  # which makes our side faster
DATATROVE, DOLMA = "datatrove 0.10.1", "dolma 1.2.1"
DATATROVE_NEEDS = ("datatrove==0.10.1", "orjson", "regex", "spacy", "tokenizers", "xxhash")
# The pins of dolma 1.2.1 do not resolve together; it runs with these.
DOLMA_NEEDS = ("anyascii", "blingfire==0.1.8", "boto3", "cached-path", "charset-normalizer", "fasttext-wheel==0.9.2",
               "fsspec", "lxml-html-clean", "msgspec", "necessary", "nltk==3.8.1", "omegaconf==2.3.0",
               "antlr4-python3-runtime==4.9.3", "platformdirs", "pyyaml", "requests", "rich", "s3fs", "smart-open",
               "tokenizers", "tqdm", "uniseg", "zstandard", "detect-secrets==1.4.0", "beautifulsoup4", "pygments",
               "regex", "numpy")
WANTED = {"gopher_quality": ">= 60", "gopher_repetition": ">= 20", "c4": ">= 8", "fineweb": ">= 8"}
TAGGERS = {"gopher_v1": ("gopher_quality", "gopher_repetition"), "gopher_without_ngrams": ("gopher_quality",)}
DOLMAS = {"words": "word_count", "word_length": "median_word_length", "symbols": "symbol_to_word_ratio",
          "bullet_lines": "fraction_of_lines_starting_with_bullet_point",
          "ellipsis_lines": "fraction_of_lines_ending_with_ellipsis",
          "alphabetic_words": "fraction_of_words_with_alpha_character", "stop_words": "required_word_count",
          "duplicate_lines": "fraction_of_duplicate_lines",
          "duplicate_line_characters": "fraction_of_characters_in_duplicate_lines",
          **{f"top_{n}_gram": f"fraction_of_characters_in_most_common_{n}grams" for n in range(2, 5)},
          **{f"duplicated_{n}_grams": f"fraction_of_characters_in_duplicate_{n}grams" for n in range(5, 11)}}


def main() -> int:
    if len(sys.argv) == 5 and sys.argv[1] == "--side":  # one turn of Tilth, in a process of its own
        Path(sys.argv[4]).write_text(json.dumps(one_turn(json.loads(sys.argv[2]), Path(sys.argv[3]))))
        return 0
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--text", type=Path, help="folder of .jsonl.zst files; default: the standard library's source")
    parser.add_argument("--megabytes", type=float, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    sections: dict[str, Any] = {name: (lambda arguments, name=name: against_datatrove(arguments, name))
                                for name in WANTED}
    sections["dolma_gopher"] = against_dolma
    return run_sections("curation", sections, parser, lambda: versions("polars", "pyarrow"), HERE)


def against_datatrove(arguments: argparse.Namespace, name: str) -> list[Claim]:
    """Speed of one filter against the same rules under datatrove's profile, and how alike the decisions are."""
    claim = f"{name}: MB a CPU-second against datatrove"
    unit, wanted = "times", WANTED[name]
    try:
        python = environment("datatrove", DATATROVE_NEEDS)
    except PeerMissing as error:
        return [Claim(claim, None, unit, wanted, DATATROVE, str(error))]
    source, size = corpus(arguments.text, arguments.megabytes)
    rules = [{"kind": name, "profile": "datatrove-0.10.1"}]
    paired, ours, theirs = turns(rules, python, "datatrove_rules", source, size, name, arguments.rounds)
    kept, others = set(ours["kept"]), set(theirs["kept"])
    alike = len(kept & others) / max(len(kept | others), 1)
    reason = f"{told(paired)}; {size:.1f} MB, {ours['documents']} documents; documents kept by both: " \
             f"{len(kept & others)}, by one: {len(kept ^ others)}"
    return [Claim(claim, paired.ratio, unit, wanted, DATATROVE, reason),
            Claim(f"{name}: Jaccard of the documents kept", alike, "", ">= 0.99", DATATROVE,
                  "with a word splitter like the peer's; with the peer's own words every rule agrees (tests)")]


def against_dolma(arguments: argparse.Namespace) -> list[Claim]:
    """Speed of all of gopher_v1, and of its part without n-grams, against both Gopher sets under dolma's profile."""
    source, size = corpus(arguments.text, arguments.megabytes)
    claims = []
    try:
        python = dolma_environment()
    except PeerMissing as error:
        return [Claim(f"{tagger}: MB a CPU-second against dolma", None, "times", ">= 20", DOLMA, str(error))
                for tagger in TAGGERS]
    for tagger, kinds in TAGGERS.items():
        rules = [{"kind": kind, "profile": "dolma-1.2.1"} for kind in kinds]
        paired, ours, theirs = turns(rules, python, "dolma_rules", source, size, tagger, arguments.rounds)
        differ = len(set(ours["kept"]) ^ set(dolma_keeps(theirs["values"], rules)))
        claims.append(Claim(f"{tagger}: MB a CPU-second against dolma", paired.ratio, "times", ">= 20", DOLMA,
                            f"{told(paired)}; {size:.1f} MB; decisions differ on {differ} documents"))
    return claims


def turns(rules: list[dict[str, Any]], python: Path, script: str, source: Path, size: float, name: str,
          rounds: int) -> tuple[Paired, dict[str, Any], dict[str, Any]]:
    """Both sides in turn, in MB a CPU-second, and what each decided."""
    ours: dict[str, Any] = {}
    theirs: dict[str, Any] = {}

    def tilth() -> float:
        ours.update(tilths_turn(rules, source))
        return size / ours["seconds"]

    def peer() -> float:
        theirs.update(peers_turn(python, script, source, name))
        return size / theirs["seconds"]

    return measure(tilth, peer, rounds, warmup=0), ours, theirs


def told(paired: Paired) -> str:
    return paired.text("MB a CPU-second") + WITH


def dolma_keeps(values: list[dict[str, float]], rules: list[dict[str, Any]]) -> list[int]:
    """Documents that no rule drops, by the tagger's values and the thresholds of our sets."""
    kept = np.ones(len(values), bool)
    for made in parse(CurateConfig, {"inputs": [], "rules": rules}).rules:
        assert isinstance(made, MeasuredSet)
        for field, (column, edge) in made.LIMITS.items():
            threshold = getattr(made, field)
            if threshold is not None:
                found = np.array([one.get(DOLMAS[column.removeprefix("gopher_")], 0) for one in values])
                kept &= found >= threshold if edge == "minimum" else found <= threshold
    return np.flatnonzero(kept).tolist()


# Turns.

def tilths_turn(rules: list[dict[str, Any]], source: Path) -> dict[str, Any]:
    return _run([sys.executable, str(Path(__file__).resolve()), "--side", json.dumps(rules), str(source)])


def peers_turn(python: Path, script: str, source: Path, name: str) -> dict[str, Any]:
    return _run([str(python), str(HERE / "peers" / f"{script}.py"), "time", str(source)], name)


def _run(command: list[str], *last: str) -> dict[str, Any]:
    threads = dict.fromkeys(("OMP_NUM_THREADS", "POLARS_MAX_THREADS", "MKL_NUM_THREADS"), "1")
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "turn.json"
        done = subprocess.run([*command, str(target), *last], capture_output=True, text=True,
                              env={**os.environ, **threads})
        if done.returncode:
            raise RunFailed(f"A turn failed: {' '.join(command[:2])}\n{done.stderr[-2000:]}")
        return json.loads(target.read_text())


def one_turn(rules: list[dict[str, Any]], source: Path) -> dict[str, Any]:
    """CPU-seconds of applying rules to documents in memory, in batches as a curation has them, and what stays."""
    texts = [json.loads(line)["text"] for line in source.read_text(encoding="utf-8").split("\n")[:-1]]
    frame = pl.DataFrame({"id": [str(at) for at in range(len(texts))], "text": texts, "source": "s"}).select(
        pl.col(name) if name in ("id", "text", "source") else pl.lit(None, pl.String).alias(name)
        for name in SCHEMA.names)
    config = parse(CurateConfig, {"inputs": [], "rules": rules})
    Pipeline(expanded(config.rules), []).apply(frame.head(5))  # tables and expressions are made on first use
    pipeline = Pipeline(expanded(config.rules), [])
    batches = list(frame.iter_slices(1024))
    start = time.process_time()
    dropped = [pipeline.apply(batch)[1]["dropped_by"] for batch in batches]
    seconds = time.process_time() - start
    stays = np.flatnonzero(pl.concat(dropped).is_null().to_numpy())
    return {"seconds": seconds, "kept": stays.tolist(), "documents": len(texts)}


# The corpus, and dolma's environment.

@cache
def corpus(folder: Path | None, megabytes: float) -> tuple[Path, float]:
    """A file of JSON lines with documents drawn at random, and its text in MB."""
    texts = list(_texts(folder))
    target = Path(tempfile.mkdtemp(prefix="tilth-curation-")) / "documents.jsonl"
    held = 0
    with open(target, "w", encoding="utf-8") as out:
        for at in np.random.default_rng(1).permutation(len(texts)).tolist():
            out.write(json.dumps({"id": str(at), "text": texts[at]}, ensure_ascii=False) + "\n")
            held += len(texts[at].encode())
            if held > megabytes * 1e6:
                break
    return target, held / 1e6


def _texts(folder: Path | None) -> list[str]:
    if folder is None:
        return [text for batch in StdlibInput(path="").read(Quarantine()) for text in batch.column("text").to_pylist()]
    return [json.loads(line)["text"] for path in sorted(folder.glob("*.jsonl.zst"))
            for line in pa.input_stream(str(path), compression="zstd").read().splitlines()]


@cache
def dolma_environment() -> Path:
    python = environment("dolma", DOLMA_NEEDS)
    if unmet(python, ["dolma==1.2.1"]):
        done = subprocess.run([str(python), "-m", "pip", "install", "-q", "--no-deps", "dolma==1.2.1"],
                              capture_output=True, text=True)
        if done.returncode:
            raise PeerMissing(f"dolma could not be installed: {done.stderr[-300:]}")
    return python


if __name__ == "__main__":
    sys.exit(main())
