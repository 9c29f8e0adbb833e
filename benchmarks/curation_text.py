"""Personal data and classifiers in curation: Tilth against dolma's taggers, in megabytes a CPU-second.

    python benchmarks/curation_text.py [--text FOLDER] [--megabytes 8] [--rounds 3] [--only classifier]

Text is a folder of `.jsonl.zst` files with a field `text`, or, without one, the source of Python's standard library.
Each turn is a process of its own with one thread; timed are the CPU-seconds of tagging documents that lie in memory.
Personal data: dolma's tagger `pii_regex_with_counts_fast_v2` against the attribute under dolma's profile; what both
find in every document is compared. Classifier: dolma's fastText tagger (dimension 100, word bigrams, 2,000,000
buckets, as its released models) against `tilth classifier`; both are trained on the same texts and scored on others:
the movie reviews of the folder by their label, or, without a folder, tables of encodings against other modules.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from curation import DOLMA, WITH, _run, corpus, dolma_environment, told

from tilth.curate.classifier import Classifier
from tilth.curate.classifier_rules import ClassifierScore
from tilth.curate.personal_data import PersonalData
from tilth.curate.train_classifier import Training, auc, train
from tilth.data.records import Quarantine
from tilth.data.stdlib import StdlibInput
from tilth.recipe.errors import RunFailed
from tilth.trial.bench import Claim, measure, run_sections, versions
from tilth.trial.peers import PeerMissing

PEERS = Path(__file__).resolve().parent / "peers"
MOST_LABELLED = 800


def main() -> int:
    if len(sys.argv) == 5 and sys.argv[1] in SIDES:  # one turn of Tilth, in a process of its own
        Path(sys.argv[4]).write_text(json.dumps(one_turn(SIDES[sys.argv[1]], sys.argv[2], Path(sys.argv[3]))))
        return 0
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--text", type=Path, help="folder of .jsonl.zst files; default: the standard library's source")
    parser.add_argument("--megabytes", type=float, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    sections: dict[str, Any] = {"personal_data": personal_data, "classifier": classifier}
    return run_sections("curation_text", sections, parser, lambda: versions("polars", "pyarrow"),
                        Path(__file__).resolve().parent)


def personal_data(arguments: argparse.Namespace) -> list[Claim]:
    claim = "personal_data: MB a CPU-second against dolma"
    try:
        python = dolma_environment()
    except PeerMissing as error:
        return [Claim(claim, None, "times", ">= 5", DOLMA, str(error))]
    source, size = corpus(arguments.text, arguments.megabytes)
    sides = Sides(size, lambda: _run([*SELF, "--personal", "dolma-1.2.1", str(source)]),
                  lambda: _run([str(python), str(PEERS / "dolma_rules.py"), "time", str(source)],
                               "pii_regex_with_counts_fast_v2"))
    paired = measure(sides.tilth, sides.peer, arguments.rounds, warmup=0)
    theirs = [one["doc_count"] for one in sides.theirs["values"]]
    differ = sum(a != b for a, b in zip(sides.ours["values"], theirs, strict=True))
    default = _run([*SELF, "--personal", "default", str(source)])
    return [Claim(claim, paired.ratio, "times", ">= 5", DOLMA,
                  f"{told(paired)}; {size:.1f} MB; documents in which the number of spans differs: {differ}; the "
                  f"default profile, which also finds IPv6 and numbers with a country code: "
                  f"{size / default['seconds']:.0f} MB a CPU-second")]


def classifier(arguments: argparse.Namespace) -> list[Claim]:
    """Speed of both on the corpus, and AUC of both on held-out labelled text."""
    source, size = corpus(arguments.text, arguments.megabytes)
    folder = Path(tempfile.mkdtemp(prefix="tilth-classifier-"))
    labelled, told_of = labelled_texts(arguments.text)
    split = len(labelled) * 3 // 4
    write(folder / "train.jsonl", labelled[:split])
    write(folder / "held_out.jsonl", labelled[split:])
    own = train(pl.Series([one["text"] for one in labelled[:split]]),
                pl.Series([one["label"] for one in labelled[:split]]), Training(positive="1", held_out=0.01))
    own.save(folder / "own")
    target = np.array([float(one["label"]) for one in labelled[split:]])
    ours = auc(np.array(one_turn(probabilities, str(folder / "own"), folder / "held_out.jsonl")["values"]), target)
    speed = "classifier: MB a CPU-second"

    def tilth() -> dict[str, Any]:
        return _run([*SELF, "--classifier", str(folder / "own"), str(source)])

    try:
        python = dolma_environment()
    except PeerMissing as error:
        alone = size / tilth()["seconds"]
        return [Claim(speed, alone, "MB/s", "> 20", None, f"words and pairs of words, 2^20 buckets{WITH}"),
                Claim(f"{speed} against dolma", None, "times", ">= 5", DOLMA, str(error))]
    peer = [str(python), str(PEERS / "dolma_classifier.py")]
    model = str(folder / "peer.bin")
    _trained(peer, folder, model)
    sides = Sides(size, tilth, lambda: _run([*peer, "document", str(source)], model))
    paired = measure(sides.tilth, sides.peer, arguments.rounds, warmup=0)
    cut = Sides(size, lambda: _run([*SELF, "--sentences", str(folder / "own"), str(source)]),
                lambda: _run([*peer, "sentence", str(source)], model))
    by_sentence = measure(cut.tilth, cut.peer, arguments.rounds, warmup=0)
    theirs = auc(np.array(_run([*peer, "document", str(folder / "held_out.jsonl")], model)["values"]), target)
    what = f"words and pairs of words, 2^20 buckets{WITH}"
    return [Claim(speed, float(np.median(paired.a)), "MB/s", "> 20", None, what),
            Claim(f"{speed} against dolma", paired.ratio, "times", ">= 5", DOLMA, f"{told(paired)}; {size:.1f} MB"),
            Claim(f"{speed} against dolma, by sentence", by_sentence.ratio, "times", ">= 5", DOLMA,
                  f"{told(by_sentence)}; {size:.1f} MB; each side's own sentences, as Dolma was made"),
            Claim("classifier: AUC on held-out text, less dolma's", ours - theirs, "", ">= -0.01", DOLMA,
                  f"{told_of}: {split} to train on, {len(labelled) - split} held out; AUC {ours:.4f} against "
                  f"{theirs:.4f} (100 epochs, learning rate 0.1, as dolma trains)")]


class Sides:
    """Both sides' turns as rates in MB a CPU-second; `ours` and `theirs` are what the last turns said."""

    def __init__(self, size: float, tilth: Callable[[], dict[str, Any]], peer: Callable[[], dict[str, Any]]):
        self.size, self._tilth, self._peer = size, tilth, peer
        self.ours: dict[str, Any] = {}
        self.theirs: dict[str, Any] = {}

    def tilth(self) -> float:
        self.ours = self._tilth()
        return self.size / self.ours["seconds"]

    def peer(self) -> float:
        self.theirs = self._peer()
        return self.size / self.theirs["seconds"]


def _trained(peer: list[str], folder: Path, model: str) -> None:
    done = subprocess.run([*peer, "train", str(folder / "train.jsonl"), model], capture_output=True, text=True)
    if done.returncode:
        raise RunFailed(f"dolma's classifier could not be trained:\n{done.stderr[-2000:]}")


# Turns of Tilth.

def personal(profile: str) -> Callable[[pl.DataFrame], list[float]]:
    attribute = PersonalData(profile=profile)  # type: ignore[arg-type]
    return lambda frame: attribute.measure(frame).to_series(3).to_list()


def probabilities(folder: str) -> Callable[[pl.DataFrame], list[float]]:
    made = Classifier.load(folder)
    return lambda frame: made.probabilities(frame["text"]).tolist()


def sentences(folder: str) -> Callable[[pl.DataFrame], list[float]]:
    attribute = ClassifierScore(path=folder, unit="sentence")
    return lambda frame: attribute.measure(frame).to_series(0).to_list()


SELF = [sys.executable, str(Path(__file__).resolve())]
SIDES: dict[str, Callable[[str], Callable[[pl.DataFrame], list[float]]]] = {
    "--personal": personal, "--classifier": probabilities, "--sentences": sentences}


def one_turn(side: Callable[[str], Callable[[pl.DataFrame], list[float]]], given: str, source: Path) -> dict[str, Any]:
    """CPU-seconds for documents in memory, in batches as a curation has them, and a value for each."""
    texts = [json.loads(line)["text"] for line in source.read_text(encoding="utf-8").split("\n")[:-1]]
    tag, frame = side(given), pl.DataFrame({"text": texts})
    tag(frame.head(5))  # tables and expressions are made on first use
    start = time.process_time()
    values = [value for batch in frame.iter_slices(1024) for value in tag(batch)]
    return {"seconds": time.process_time() - start, "values": values}


# Labelled text.

@cache
def labelled_texts(folder: Path | None) -> tuple[list[dict[str, str]], str]:
    """At most MOST_LABELLED texts with the label 0 or 1, in random order, and what they are."""
    if folder is not None:
        content = pa.input_stream(str(folder / "en_movie_reviews.jsonl.zst"), compression="zstd").read()
        rows = [json.loads(line) for line in content.splitlines()]
        pairs = [(row["text"], str(int(row["meta"]["label"] == "pos"))) for row in rows]
        what = "movie reviews by their label"
    else:
        rows = [row for batch in StdlibInput(path="").read(Quarantine()) for row in batch.to_pylist()]
        pairs = [(row["text"], str(int(row["id"].startswith("encodings")))) for row in rows]
        what = "tables of encodings of the standard library, against its other modules"
    order = np.random.default_rng(2).permutation(len(pairs))[:MOST_LABELLED].tolist()
    return [{"id": str(at), "text": pairs[at][0], "label": pairs[at][1]} for at in order], what


def write(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
