"""Curation at scale: memory and cost of gigabytes of text through all web rules, and two cores against one.

    python benchmarks/curation_scale.py [--text FOLDER] [--gigabytes 0.1 1 4] [--only memory] [--keep FOLDER]
    python benchmarks/curation_scale.py --only cores [--rounds 3]        # wants a quiet machine

The text is made: documents of 1 to 12 paragraphs of 2 to 6 real sentences (of the `.jsonl.zst` files of the folder, or
of the standard library's documentation strings), drawn anew by a seed; of a hundred documents ten are copies of an
earlier one, and five are such copies with a tenth of their sentences drawn again. It is written in files of 32 MB of
text and curated by a process of its own, one thread a worker, while the resident memory of that process and all its
children is added up ten times a second. What is written is removed afterwards.
"""

import argparse
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from curation import _texts

from tilth.curate.curate import CurateConfig, curate
from tilth.curate.held_out import HeldOut
from tilth.recipe import parse
from tilth.recipe.console import say
from tilth.recipe.errors import RunFailed
from tilth.trial.bench import Claim, Paired, run_sections, versions

HERE = Path(__file__).resolve().parent
FILE_BYTES, COPIES, NEAR_COPIES, REDRAWN = 32_000_000, 0.10, 0.05, 0.1
LARGEST = 4  # GB
QUIET = 0.6  # load of the machine at most, before two workers are timed
# Of text for two workers, and in each of its files: shards of two files, of which each worker gets some 15.
CORES_BYTES, CORES_FILE_BYTES, SHARD_BYTES = 480_000_000, 8_000_000, 10_000_000
RULES = [{"kind": "keep_languages", "languages": ["en"]}, "gopher_quality", "gopher_repetition", "c4", "fineweb",
         "token_repetition", "personal_data", "near_duplicates", "paragraph_duplicates"]


def main() -> int:
    if len(sys.argv) == 5 and sys.argv[1] == "--side":
        side(Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
        return 0
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--text", type=Path, help="folder of .jsonl.zst files; default: the standard library's source")
    parser.add_argument("--gigabytes", type=float, nargs="+", default=[0.1, 1, 4])
    parser.add_argument("--rounds", type=int, default=3)
    return run_sections("curation_scale", {"cores": cores, "memory": memory}, parser,
                        lambda: versions("polars", "pyarrow"), HERE)


def memory(arguments: argparse.Namespace) -> list[Claim]:
    """Peak memory of the process tree and CPU-seconds a GB, for each size."""
    turns = {size: one_size(arguments.text, size * 1e9, 1) for size in sorted(arguments.gigabytes)}
    each = "; ".join(f"{size:g} GB: {one['cpu_seconds'] / size:.0f} CPU-seconds a GB, {one['peak_gib']:.2f} GiB, "
                     f"{one['kept_documents']:,} of {one['documents']:,} documents stay" for size, one in turns.items())
    small, large = turns[min(turns)], turns[max(turns)]
    flat = (large["cpu_seconds"] / max(turns)) / (small["cpu_seconds"] / min(turns))
    told = f"{each}; one worker; {COPIES:.0%} copies and {NEAR_COPIES:.0%} near copies"
    what = f"{LARGEST} GB through all web rules"
    claims = [Claim(f"{what}: peak resident memory", large["peak_gib"], "GiB", "<= 2", None, told),
              Claim(f"{what}: CPU-seconds a GB over those of the smallest size", flat, "times", "<= 1.1", None, told),
              Claim(f"{what}: copies that went", large["copies_gone"], "", ">= 0.99", None,
                    "documents that repeat an earlier one word for word")]
    if max(turns) < LARGEST:
        return [replace(claim, value=None, reason=f"not run at this size; {told}; copies that went "
                                                  f"{large['copies_gone']:.4g}") for claim in claims]
    return claims


def cores(arguments: argparse.Namespace) -> list[Claim]:
    """Seconds of one worker over those of two, taking turns."""
    load = os.getloadavg()[0]
    if load > QUIET:
        return [Claim("two workers against one", None, "times", ">= 1.8", None,
                      f"not run: it wants both cores, and the machine was busy (load {load:.1f})")]
    paired = Paired()
    with made(arguments.text, CORES_BYTES, CORES_FILE_BYTES) as folder:
        for _ in range(arguments.rounds):
            two, one = (turn(folder, workers)["seconds"] for workers in (2, 1))
            paired.add(CORES_BYTES / 1e6 / two, CORES_BYTES / 1e6 / one)
    return [Claim("two workers against one", paired.ratio, "times", ">= 1.8", None,
                  f"{paired.text('MB a second')}; {os.cpu_count()} cores, load before {load:.1f}")]


# A turn, and what runs in a process of its own.

def one_size(text: Path | None, size: float, workers: int) -> dict[str, Any]:
    with made(text, size) as folder:
        found = turn(folder, workers)
    say(f"  {size / 1e9:g} GB: {found}")
    return found


def turn(folder: Path, workers: int) -> dict[str, Any]:
    """Curate the made text; what it took, and what became of it."""
    out = folder / "curated"
    shutil.rmtree(out, ignore_errors=True)
    threads = dict.fromkeys(("OMP_NUM_THREADS", "POLARS_MAX_THREADS", "MKL_NUM_THREADS"), "1")
    before, start, peak = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter(), 0
    child = subprocess.Popen([sys.executable, str(Path(__file__).resolve()), "--side", str(folder), str(out),
                              str(workers)], env={**os.environ, **threads}, stderr=subprocess.DEVNULL)
    while child.poll() is None:
        peak = max(peak, resident_bytes(child.pid))
        time.sleep(0.1)
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if child.returncode:
        raise RunFailed(f"The curation of {folder} ended with {child.returncode}.")
    return {"seconds": seconds, "peak_gib": peak / 2**30,
            "cpu_seconds": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
            **json.loads((out / "told.json").read_text())}


def side(folder: Path, out: Path, workers: int) -> None:
    rules = parse(CurateConfig, {"inputs": [{"kind": "jsonl", "path": str(folder / "text-*.jsonl.zst")}],
                                 "rules": RULES})
    report = curate(rules.inputs, rules.rules, folder=out, workers=workers, held_out=HeldOut(share=0.05),
                    shard_bytes=SHARD_BYTES)
    (out / "told.json").write_text(json.dumps({
        "documents": report["read"]["documents"], "kept_documents": report["kept"]["documents"],
        "copies_gone": copies_gone(out)}))


def copies_gone(out: Path) -> float:
    """The share of planted copies that are not among the documents that stayed."""
    copies = pl.scan_parquet(out / "attributes-*.parquet").filter(pl.col("id").str.starts_with("copy"))
    gone = copies.select(pl.col("dropped_by").is_not_null().mean()).collect().item()
    return float(gone)


def resident_bytes(pid: int) -> int:
    """Of a process and all its descendants."""
    total, todo = 0, [pid]
    while todo:
        one = todo.pop()
        try:
            total += int(Path(f"/proc/{one}/statm").read_text().split()[1]) * resource.getpagesize()
            for task in os.listdir(f"/proc/{one}/task"):
                todo += map(int, Path(f"/proc/{one}/task/{task}/children").read_text().split())
        except (OSError, IndexError):  # it ended meanwhile
            continue
    return total


# The text.

class made:
    """A folder with `size` bytes of text in files; removed at the end."""

    def __init__(self, text: Path | None, size: float, file_bytes: int = FILE_BYTES):
        self.text, self.size, self.file_bytes = text, size, file_bytes

    def __enter__(self) -> Path:
        self.folder = Path(tempfile.mkdtemp(prefix="tilth-curation-"))
        written = 0
        lines: list[bytes] = []
        held = number = 0
        for line, size in documents(self.text, seed=0):
            lines.append(line)
            held += size
            if held >= min(self.file_bytes, self.size - written):
                with pa.CompressedOutputStream(str(self.folder / f"text-{number:05d}.jsonl.zst"), "zstd") as file:
                    file.write(b"".join(lines))
                written, number, held, lines = written + held, number + 1, 0, []
                if written >= self.size:
                    break
        return self.folder

    def __exit__(self, *error: object) -> None:
        shutil.rmtree(self.folder)


def documents(text: Path | None, seed: int) -> Iterator[tuple[bytes, int]]:
    """JSON lines without end, and the bytes of text in each."""
    rng, known = np.random.default_rng(seed), sentences(text)
    earlier: list[np.ndarray] = []  # the sentences of some documents so far, paragraph by paragraph (-1: its end)
    number = 0
    while True:
        kinds, sizes = rng.random(1000), rng.integers(1, 13, 1000)
        for kind, paragraphs in zip(kinds.tolist(), sizes.tolist(), strict=True):
            name = "new"
            if kind < COPIES + NEAR_COPIES and earlier:
                chosen = earlier[int(rng.integers(len(earlier)))]
                name = "copy"
                if kind >= COPIES:
                    chosen, name = redrawn(rng, chosen, len(known)), "near"
            else:
                chosen = drawn(rng, paragraphs, len(known))
                if rng.random() < 0.25:
                    earlier.append(chosen)
            body = "\n".join(" ".join(known[at] for at in part) for part in paragraphs_of(chosen))
            yield (json.dumps({"id": f"{name}-{number}", "text": body, "source": "made"}) + "\n").encode(), len(
                body.encode())
            number += 1


def drawn(rng: np.random.Generator, paragraphs: int, of: int) -> np.ndarray:
    lengths = rng.integers(2, 7, paragraphs)
    found = rng.integers(0, of, int(lengths.sum()) + paragraphs).astype(np.int32)
    found[np.cumsum(lengths + 1) - 1] = -1
    return found


def redrawn(rng: np.random.Generator, chosen: np.ndarray, of: int) -> np.ndarray:
    out = chosen.copy()
    change = (rng.random(len(out)) < REDRAWN) & (out >= 0)
    out[change] = rng.integers(0, of, int(change.sum()))
    return out


def paragraphs_of(chosen: np.ndarray) -> list[list[int]]:
    return [part[part >= 0].tolist() for part in np.split(chosen, np.flatnonzero(chosen < 0) + 1)[:-1]]


@cache
def sentences(text: Path | None) -> list[str]:
    """Sentences of 30 to 400 characters that begin with a capital letter and end with a mark, each once."""
    pattern = re.compile(r"(?<=[.!?] )[A-Z][^.!?{}<>]{28,398}[.!?](?= )")
    found = dict.fromkeys(one.group().replace("\n", " ") for body in _texts(text) for one in pattern.finditer(body))
    if not found:
        raise RunFailed("The text holds no sentence.")
    return list(found)


if __name__ == "__main__":
    sys.exit(main())
