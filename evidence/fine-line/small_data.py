"""Text and questions of the small run: prose, code and generated strings, the strings in two surface forms each."""

import json
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path

import numpy as np

from tilth.data.records import Quarantine
from tilth.data.stdlib import StdlibInput
from tilth.evaluate.rows import read_rows

LETTERS = "abcdefghijklmnopqrstuvwxyz"
PAIRS = {"(": ")", "[": "]", "{": "}"}
DOMAINS = {"copy": "copying", "recall": "copying", "brackets": "structure", "reverse": "structure",
           "addition": "arithmetic"}
TEXT_BYTES = {"strings": 1_200_000, "prose": 500_000, "code": 500_000}
EXAMPLES, QUESTIONS, CHOICES = 30, 100, 4
Asked = tuple[str, str, list[str]]  # what is given, the answer, wrong answers


def _word(rng: np.random.Generator, length: int) -> str:
    return "".join(LETTERS[at] for at in rng.integers(0, 26, length))


def _near(rng: np.random.Generator, word: str) -> str:
    """The word with one letter changed."""
    at = int(rng.integers(len(word)))
    return word[:at] + LETTERS[int(rng.integers(26))] + word[at + 1:]


def copy(form: int, rng: np.random.Generator) -> Asked:
    word = _word(rng, 4)
    return (f"copy {word}: ", f"again [{word}] [")[form], word, [_near(rng, word) for _ in range(9)]


def recall(form: int, rng: np.random.Generator) -> Asked:
    keys = [LETTERS[at] for at in rng.permutation(26)[:3]]
    values = [str(value) for value in rng.permutation(10)[:3]]
    at = int(rng.integers(3))
    pairs = dict(zip(keys, values, strict=True))
    given = (" ".join(f"{key}={value}" for key, value in pairs.items()) + f"; {keys[at]}? ",
             "{" + ", ".join(f"{key}:{value}" for key, value in pairs.items()) + f"}}[{keys[at]}] -> ")[form]
    others = [value for value in values if value != values[at]]
    return given, values[at], others + [str(value) for value in rng.permutation(10)]


def brackets(form: int, rng: np.random.Generator) -> Asked:
    opened = "".join("([{"[at] for at in rng.integers(0, 3, 4))
    closed = "".join(PAIRS[one] for one in reversed(opened))
    wrong = ["".join(PAIRS[one] for one in opened), *("".join(")]}"[at] for at in rng.integers(0, 3, 4))
                                                      for _ in range(20))]
    return (f"close {opened}: ", f"<< {opened} | ")[form], closed, wrong


def reverse(form: int, rng: np.random.Generator) -> Asked:
    word = _word(rng, 4)
    return (f"reverse {word}: ", f"rev({word}) = ")[form], word[::-1], [word, *(_near(rng, word[::-1])
                                                                               for _ in range(9))]


def addition(form: int, rng: np.random.Generator) -> Asked:
    a, b = (int(one) for one in rng.integers(0, 10, 2))
    return (f"{a}+{b}=", f"add {a} and {b}: ")[form], str(a + b), [str(a + b + d) for d in (1, -1, 2, -2, 3)
                                                                   if a + b + d >= 0]


ABILITIES: dict[str, Callable[[int, np.random.Generator], Asked]] = {
    "copy": copy, "recall": recall, "brackets": brackets, "reverse": reverse, "addition": addition}


def strings(size: int, seed: int) -> list[str]:
    """Documents of generated examples, about `size` bytes together."""
    rng, found = np.random.default_rng(seed), []
    names = list(ABILITIES)
    while sum(map(len, found)) < size:
        lines = [ABILITIES[names[int(rng.integers(5))]](int(rng.integers(2)), rng)[:2] for _ in range(EXAMPLES)]
        found.append("".join(f"{given}{answer}\n" for given, answer in lines))
    return found


def questions(ability: str, form: int, seed: int) -> list[dict[str, object]]:
    """Multiple choice between the answer and three wrong ones that look alike."""
    rng, rows = np.random.default_rng([seed, form, list(ABILITIES).index(ability)]), []
    while len(rows) < QUESTIONS:
        given, answer, wrong = ABILITIES[ability](form, rng)
        wrong = list(dict.fromkeys(one for one in wrong if one != answer))[: CHOICES - 1]
        if len(wrong) == CHOICES - 1:
            gold = int(rng.integers(CHOICES))
            rows.append({"query": given, "choices": [*wrong[:gold], answer, *wrong[gold:]], "gold": gold})
    return rows


def write_data(folder: Path, data: Path, seed: int = 0) -> list[Path]:
    """text.jsonl, and a task file for each ability and form; returns the task files."""
    folder.mkdir(parents=True, exist_ok=True)
    code = (text for batch in StdlibInput().read(Quarantine()) for text in batch.column("text").to_pylist())
    prose = (row["text"] for row in read_rows(str(data / "text" / "en_novels.jsonl.zst")))
    texts = {"strings": strings(TEXT_BYTES["strings"], seed),
             **{name: _some(found, TEXT_BYTES[name], seed) for name, found in (("prose", prose), ("code", code))}}
    with open(folder / "text.jsonl", "w", encoding="utf-8") as file:
        for source, found in texts.items():
            for number, text in enumerate(found):
                file.write(json.dumps({"id": f"{source}-{number}", "text": text, "source": source}) + "\n")
    files = []
    for ability in ABILITIES:
        for form in (0, 1):
            name = f"{ability}-{form}"
            rows = questions(ability, form, seed + 1)
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            (folder / f"{name}.yaml").write_text(json.dumps({
                "kind": "multiple_choice", "name": name, "data": f"{name}.jsonl", "separator": "",
                "normalisation": "sum"}))
            files.append(folder / f"{name}.yaml")
    return files


def _some(texts: Iterable[str], size: int, seed: int) -> list[str]:
    """Pieces of 2,000 characters, drawn from the first ones, up to `size` bytes."""
    pieces = [text[start : start + 2000] for text in islice(texts, 400)
              for start in range(0, len(text) - 500, 2000)]
    found, so_far = [], 0
    for at in np.random.default_rng(seed).permutation(len(pieces)):
        if so_far >= size:
            break
        found.append(pieces[at])
        so_far += len(pieces[at].encode())
    return found
