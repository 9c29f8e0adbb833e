"""A made-up run folder for the report's tests: every number here is invented, nothing was trained."""

import json
import math
import random
import sys
from pathlib import Path
from typing import Any

STEPS, TOKENS_A_STEP, PARAMETERS = 1500, 8192, 4_214_784
SOURCES = {"stdlib code": ("PSF-2.0", 0.62), "stdlib docstrings": ("PSF-2.0", 0.21), "pydoc topics": ("PSF-2.0", 0.09),
           "man pages": ("GPL-2.0-or-later", 0.08)}


def make_run(folder: Path, *, steps: int = STEPS, text: str = "", seed: int = 7) -> Path:
    """Write a complete synthetic run; `text` is put into every place that corpus or recipe text can reach."""
    rng = random.Random(seed)
    dump(folder / "manifest.json", {
        "recipe": "quickstart" + text, "tilth": "0.1.0", "python": "3.11.7", "platform": "Linux-6.1-x86_64 (synthetic)",
        "torch": "2.13.0+cpu", "machine": {"cpu": "Synthetic CPU @ 2.7 GHz", "cores": 2, "memory": "8 GiB"},
        "stages": dict.fromkeys(("curate", "tokenize", "pretrain", "evaluate", "export"), "finished")})
    (folder / "recipe.yaml").write_text(
        f"name: quickstart\nseed: {seed}\nnote: {json.dumps('synthetic' + text)}\nstages:\n  curate:\n"
        f"    kind: curate\n    held_out_bytes: 1100000\n  pretrain:\n    kind: pretrain\n    steps: {steps}\n"
        f"    learning_rate: 0.003\n    model: {{width: 256, layers: 6, heads: 4}}\n", encoding="utf-8")
    _curate(folder / "curate", text)
    _tokenize(folder / "tokenize")
    _pretrain(folder / "pretrain", steps, rng, text)
    _evaluate(folder / "evaluate", text, rng)
    _stage(folder / "export", "export", 1.4, {"folder": "export"})
    return folder


def dump(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1), encoding="utf-8")


def _stage(folder: Path, kind: str, seconds: float, summary: dict[str, Any]) -> None:
    dump(folder / "manifest.json", {"kind": kind, "version": 1, "fields": {}, "inputs": [], "tilth": "0.1.0",
                                    "started": "2026-01-01T10:00:00Z", "seconds": seconds, "summary": summary})


def _curate(folder: Path, text: str) -> None:
    rules, documents, size = [], 6120, 13_900_000
    example = {"id": "stdlib/this.py" + text, "why": "less than 200 characters" + text,
               "text": "# written by tim@example.org, 192.168.7.12\nimport this\n" + text}
    for name, documents_lost, bytes_lost in (("exact copies", 412, 1_310_000), ("too short", 803, 96_000),
                                             ("mostly numbers", 57, 610_000), ("repeated lines", 38, 212_000),
                                             ("generated tables" + text, 21, 840_000), ("line endings", 0, 0)):
        rules.append({"name": name, "seen": {"documents": documents, "bytes": size},
                      "dropped": {"documents": documents_lost, "bytes": bytes_lost},
                      "rewritten": {"documents": 44 if name == "line endings" else 0, "bytes": 18_200},
                      "examples": [example] if documents_lost else []})
        documents, size = documents - documents_lost, size - bytes_lost
    held_out = {"documents": 402, "bytes": 1_101_004, "sha256": "5f" * 32,
                "near_copies_removed": {"documents": 12, "bytes": 74_112}}
    dump(folder / "report.json", {
        "read": {"documents": 6127, "bytes": 13_960_000}, "rules": rules,
        "kept": {"documents": 4375, "bytes": 9_657_884},
        "quarantined": {"documents": 7, "by_reason": {"invalid UTF-8" + text: 5, "lone surrogate": 2}},
        "absent": ["metadata.skore" + text],
        "held_out": held_out, "sources": [
            {"source": name + text, "license": license, "documents": round(4375 * share),
             "bytes": round(9_657_884 * share)} for name, (license, share) in SOURCES.items()]})
    _stage(folder, "curate", 6.2, {"cpu_seconds": 9.8})


def _tokenize(folder: Path) -> None:
    dump(folder / "report.json", {"units": 9120, "tokens": 2_960_114, "sources": [
        {"source": name, "tokens": round(2_960_114 * share)} for name, (_, share) in SOURCES.items()]})
    _stage(folder, "tokenize", 4.7, {"cpu_seconds": 8.1})


def _pretrain(folder: Path, steps: int, rng: random.Random, text: str) -> None:
    lines = []
    for step in range(1, steps + 1):
        tokens, share = step * TOKENS_A_STEP, step / steps
        loss = 2.02 + 6.2 * math.exp(-step / 60) + 1.9 * (1 - share) ** 2 * math.exp(-step / 500)
        base = {"step": step, "tokens": tokens, "flops": 6 * PARAMETERS * tokens, "seconds": 400 * share}
        lines.append({**base, "loss": loss + rng.gauss(0, 0.09),
                      "gradient_norm": 0.4 * math.exp(rng.gauss(0, 0.2)) + 9 / step,
                      "lr": 0.003 * min(step / 80, 1) * (0.5 + 0.5 * math.cos(math.pi * share)), "epoch": share * 4.15,
                      "tokens_per_second": 30_800 + rng.gauss(0, 450) - (9000 if step < 4 else 0), "padded": 0.004})
        if step % max(1, steps // 20) == 0 or step == 1:
            bits = 1.412 + (loss - 2.02) * 0.42
            lines.append({**base, "held_out": {"loss": loss + 0.05, "bits_per_byte": bits,
                                               "by_source": dict.fromkeys(SOURCES, bits + 0.1)}})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    tokens = steps * TOKENS_A_STEP
    _stage(folder, "pretrain", 408.0, {
        "parameters": PARAMETERS, "parameters_non_embedding": 3_166_208, "tokens": tokens, "steps": steps,
        "epochs": 4.15, "flops": 6 * PARAMETERS * tokens, "seconds": 400.1, "cpu_seconds": 781.0,
        "tokens_per_second": 30_712.0,
        "peak_memory_bytes": 1_610_612_736, "matmul_flops_per_second": 1.31e12, "utilisation": 0.593,
        "final_loss": 2.031, "held_out_bits_per_byte": 1.412, "sources": {
            name + text: {"tokens": round(tokens * share), "license": license}
            for name, (license, share) in SOURCES.items()}})


def _evaluate(folder: Path, text: str, rng: random.Random) -> None:
    held_out: dict[str, Any] = {"bits_per_byte": {"value": 1.412, "stderr": 0.0121, "n": 402, "bytes": 1_101_004}}
    for name, value in {"xz": 1.370, "xz_256k": 1.512, "zstd": 1.468, "unigram": 4.871, "byte_5gram": 1.482}.items():
        held_out[name] = {"value": value, "n": 402, "bytes": 1_101_004}
    by_source = {f"held_out/{name}{text}": {"bits_per_byte": {"value": 1.30 + 0.14 * i, "stderr": 0.02, "n": 100 + i}}
                 for i, name in enumerate(SOURCES)}
    dump(folder / "results.json", {
        "held_out": held_out, **by_source,
        "cloze_identifiers": {"accuracy": {"value": 0.371, "stderr": 0.0153, "n": 1000}, "chance": 0.25},
        "choice_docstrings" + text: {"accuracy": {"value": 0.482, "stderr": 0.0223, "n": 500, "chance": 0.25},
                                     "accuracy_per_byte": {"value": 0.506, "stderr": 0.0224, "n": 500,
                                                           "chance": 0.25}}})
    code = "(self, path, mode='r'):\n        if not os.path.exists(path):\n            raise OSError(path)\n" \
           "        return self._open(path, mode)\n"
    dump(folder / "samples.json", [
        {"prompt": "    def open", "text": code + text}, {"prompt": "The module " + text, "text":
         "provides a number of functions for the same name as the file object. If the argument is omitted, the default "
         "encoding is used; see also mail to someone@example.com for the list of names."}])
    _stage(folder, "evaluate", 31.5, {"cpu_seconds": 55.0, "seed": rng.random()})


if __name__ == "__main__":
    print(make_run(Path(sys.argv[1])))
