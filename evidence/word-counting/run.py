"""Does spelling out before answering make counting learnable sooner: `TILTH_DATA=... python run.py [--seeds 0 1]`.

A small character transformer learns "how often is x in this word", answering at once (direct) or after spelling the
word with a running count (trace): same words, same questions, same number of updates, loss on the answer part alone.
Tested on unseen words of the training lengths and on longer ones. One process and thread a run; writes result.json.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from tilth.evaluate.counting.items import Question, questions
from tilth.evaluate.counting.words import LETTERS, split_words, usable
from tilth.evaluate.rows import read_rows
from tilth.evaluate.statistics import wilson
from tilth.models import TransformerConfig
from tilth.recipe.files import read_json, write_json

HERE = Path(__file__).parent
SYMBOLS = "#" + LETTERS + "0123456789?:=."  # the first is padding
SHARES = {0: 0.12, 1: 0.43, 2: 0.33, 3: 0.12}
LENGTH, OFFSETS, BATCH, RATE, HELD_OUT, TESTED = 48, 16, 64, 1e-3, 4000, 300
ARMS = ("direct", "trace")


def encode(text: str) -> list[int]:
    return [SYMBOLS.index(character) for character in text]


def example(question: Question, arm: str) -> tuple[str, str]:
    """(what is given, what is to be written)."""
    so_far, spelt = 0, ""
    for letter in question.word:
        so_far += letter == question.x
        spelt += f"{letter}{so_far}"
    return f"{question.word}?{question.x}:", (spelt if arm == "trace" else "") + f"={question.answer}."


def batch(asked: list[Question], arm: str) -> tuple[torch.Tensor, torch.Tensor]:
    """tokens and targets (B, L); -100 where nothing is to be written."""
    tokens, targets = np.zeros((len(asked), LENGTH), np.int64), np.full((len(asked), LENGTH), -100)
    for row, question in enumerate(asked):
        given, wanted = (encode(part) for part in example(question, arm))
        whole = given + wanted
        tokens[row, : len(whole) - 1] = whole[:-1]
        targets[row, len(given) - 1 : len(whole) - 1] = wanted
    longest = int((targets >= 0).any(0).nonzero()[0].max()) + 1
    return torch.from_numpy(tokens[:, :longest]), torch.from_numpy(targets[:, :longest])


def train(arm: str, seed: int, updates: int, words: list[str]) -> torch.nn.Module:
    torch.manual_seed(seed)
    model = TransformerConfig(layers=3, width=96, heads=4, feed_forward=384, context=LENGTH + OFFSETS,
                              positions="learned", vocab_size=len(SYMBOLS)).build().initialize(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01)
    stream = questions("occurrence", words, updates * BATCH, seed=seed, shares=SHARES)
    for step in range(updates):
        tokens, targets = batch(stream[step * BATCH : (step + 1) * BATCH], arm)
        positions = torch.arange(tokens.shape[1]) + torch.randint(0, OFFSETS, (len(tokens), 1))
        loss = functional.cross_entropy(model(tokens, positions=positions).flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model.eval()


@torch.no_grad()
def accuracy(model: torch.nn.Module, asked: list[Question], arm: str) -> float:
    """The share of questions whose written answer, after the last =, is right."""
    right = 0
    for question in asked:
        new = torch.tensor([encode(example(question, arm)[0])])
        cache, text = model.new_cache(), ""
        while "." not in text and cache.length + new.shape[1] < LENGTH:
            new = model(new, cache=cache)[:, -1:].argmax(-1)
            text += SYMBOLS[int(new)]
        right += text.rpartition("=")[2] == f"{question.answer}."
    return right / len(asked)


def one(arm: str, seed: int, updates: int) -> dict[str, float]:
    torch.set_num_threads(1)
    found = words()
    known, unseen = split_words(found, HELD_OUT, seed=0)
    start = time.process_time()
    model = train(arm, seed, updates, [word for word in known if 4 <= len(word) <= 9])
    seconds = time.process_time() - start
    tests = {name: questions("occurrence", [word for word in unseen if low <= len(word) <= high], TESTED, seed=99,
                             shares=SHARES) for name, low, high in (("in_length", 4, 9), ("longer", 11, 14))}
    constant = {f"{name}_constant": max(SHARES.values()) for name in tests}
    return {name: accuracy(model, asked, arm) for name, asked in tests.items()} | constant | {"cpu_seconds": seconds}


def words() -> list[str]:
    """Lower-case words of open English text, as they stand there (no names, no hyphens)."""
    folder = Path(os.environ["TILTH_DATA"]) / "text"
    text = " ".join(row["text"] for name in ("en_novels", "en_wikitext2", "en_biomed_articles")
                    for row in read_rows(str(folder / f"{name}.jsonl.zst")))
    return usable(re.findall(r"(?<![\w'-])[a-z]+(?![\w'-])", text))


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--updates", type=int, default=1000)
    parser.add_argument("--one", nargs=2, metavar=("ARM", "SEED"), help="one run, its scores on standard output")
    arguments = parser.parse_args()
    if "TILTH_DATA" not in os.environ:
        print("Set TILTH_DATA to the folder that holds text/.", file=sys.stderr)
        return 2
    if arguments.one:
        print(json.dumps(one(arguments.one[0], int(arguments.one[1]), arguments.updates)))
        return 0
    runs: dict[str, list[dict[str, float]]] = {arm: [] for arm in ARMS}
    for seed in arguments.seeds:
        going = {arm: subprocess.Popen(
            [sys.executable, __file__, "--one", arm, str(seed), "--updates", str(arguments.updates)],
            stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}) for arm in ARMS}
        for arm, process in going.items():
            runs[arm].append(json.loads(process.communicate()[0]))
            print(arm, seed, runs[arm][-1], flush=True)
        report(runs, arguments)
    print(read_json(HERE / "result.json")["verdict"])
    return 0


def report(runs: dict[str, list[dict[str, float]]], arguments: argparse.Namespace) -> None:
    """result.json from the seeds so far."""
    trace, direct = (np.array([run["in_length"] for run in runs[arm]]) for arm in ("trace", "direct"))
    gaps = trace - direct
    shows = len(gaps) > 1 and bool((gaps > 0.2).all())
    half = 1.96 * np.sqrt(trace.mean() * (1 - trace.mean()) + direct.mean() * (1 - direct.mean())) / np.sqrt(
        TESTED * len(gaps))
    write_json(HERE / "result.json", {
        "method": "word-counting", "claim": "Spelling with a running count before answering makes counting letters "
        "learnable in fewer updates than answering at once (more than 20 points in every run)",
        "published": "reasoning first is the steadiest remedy for large models (no figure at this scale)",
        "baseline": "direct answer at equal updates", "metric": f"accuracy on {TESTED} unseen words of 4-9 letters",
        "value": float(trace.mean()), "baseline_value": float(direct.mean()), "difference": float(gaps.mean()),
        "interval": [float(gaps.mean() - half), float(gaps.mean() + half)], "seeds": arguments.seeds[: len(gaps)],
        "budget": f"{arguments.updates} updates of {BATCH} words, 3 layers of width 96",
        "constant": max(SHARES.values()), "runs": runs,
        "wilson_of_one_run": [list(wilson(round(share * TESTED), TESTED)) for share in (*trace, *direct)],
        "verdict": "shows" if shows else "mixed" if (gaps > 0).all() else "does not show"})


if __name__ == "__main__":
    sys.exit(main())
