"""What the benchmarks share: claims, paired measurements, facts of the machine, peers in environments of their own.

A speed is measured as a ratio: both sides take turns in one run (A B A B ...), each turn in CPU-seconds of its own
process with one thread, and the median of the ratios of neighbouring turns is the result. What else the machine does
meanwhile slows both sides of a pair, and cancels.
"""

import argparse
import importlib.metadata
import math
import os
import platform
import resource
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

import tilth
from tilth.recipe.console import say
from tilth.recipe.files import read_json, write_json

COMPARE: dict[str, Callable[[float, float], bool]] = {
    ">=": float.__ge__, "<=": float.__le__, "==": float.__eq__, ">": float.__gt__, "<": float.__lt__}


@dataclass(frozen=True)
class Claim:
    """One figure that the project promises, beside what was measured.

    wanted: a comparison such as ">= 0.97"; peer: what it is measured against; reason: how it was measured, or why
    `value` is None. Raises ValueError for a value without a number, or a null without a reason.
    """

    name: str
    value: float | None
    unit: str
    wanted: str
    peer: str | None = None
    reason: str = ""

    def __post_init__(self) -> None:
        self._wanted()
        if self.value is None and not self.reason:
            raise ValueError(f"The claim {self.name} has no value: say why, in `reason`.")
        if self.value is not None and not math.isfinite(self.value):
            raise ValueError(f"The claim {self.name} has the value {self.value}, which is no measurement.")

    @property
    def met(self) -> bool | None:
        """Whether the value is as wanted; None where nothing was measured."""
        compare, limit = self._wanted()
        return None if self.value is None else compare(float(self.value), limit)

    def _wanted(self) -> tuple[Callable[[float, float], bool], float]:
        sign, _, limit = self.wanted.partition(" ")
        if sign not in COMPARE:
            raise ValueError(f"The claim {self.name} wants {self.wanted!r}; write a comparison such as '>= 0.97'.")
        return COMPARE[sign], float(limit)


@dataclass
class Paired:
    """Turns of two sides, in pairs; the rates are in one unit, more is better."""

    a: list[float] = field(default_factory=list)
    b: list[float] = field(default_factory=list)

    def add(self, a: float, b: float) -> None:
        self.a.append(a)
        self.b.append(b)

    @property
    def ratios(self) -> np.ndarray:
        """(pairs,) a over b."""
        return np.array(self.a) / np.array(self.b)

    @property
    def ratio(self) -> float:
        """The median of the ratios."""
        return float(np.median(self.ratios))

    def interval(self, share: float = 0.95, draws: int = 2000) -> tuple[float, float]:
        """The bootstrap interval of the median of the ratios."""
        drawn = np.random.default_rng(0).choice(self.ratios, (draws, len(self.a)))
        low, high = np.quantile(np.median(drawn, axis=1), [(1 - share) / 2, (1 + share) / 2])
        return float(low), float(high)

    def text(self, unit: str) -> str:
        """`A against B UNIT (medians); 95 % interval of the ratio LOW..HIGH over N pairs`."""
        low, high = self.interval()
        return (f"{np.median(self.a):.4g} against {np.median(self.b):.4g} {unit} (medians); 95 % interval of the ratio "
                f"{low:.3f}..{high:.3f} over {len(self.a)} pairs")


def measure(a: Callable[[], float], b: Callable[[], float], rounds: int, warmup: int = 1) -> Paired:
    """Take turns: each call does one turn and returns its rate. The first `warmup` pairs are not counted."""
    paired = Paired()
    for turn in range(warmup + rounds):
        rates = a(), b()
        if turn >= warmup:
            paired.add(*rates)
    return paired


def single_thread() -> None:
    """One thread in this process, and in those it starts. Call before the first heavy operation."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "POLARS_MAX_THREADS"):
        os.environ[name] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(1)


def machine() -> dict[str, Any]:
    """What the figures were measured on; no names of hosts or people."""
    return {"cpu": _cpu_name(), "cores": os.cpu_count(), "platform": platform.platform(),
            "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
            "amx": bool(torch.cpu._is_amx_tile_supported()), "threads": torch.get_num_threads()}


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), "unknown")
    except OSError:  # not Linux
        return platform.processor() or platform.machine()


def versions(*packages: str) -> dict[str, str]:
    """Versions of Tilth, Python, and the packages that decide its speed."""
    names = ("torch", "numpy", *packages)
    return {"tilth": tilth.__version__, "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in names}}


def peak_memory_gib() -> float:
    """The most memory that was resident in this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def write_results(path: Path, claims: Sequence[Claim], used: dict[str, str]) -> None:
    """Write `claims` as the results file at `path`; `used`: versions of everything measured.

    Claims of an earlier run on the same machine that this one did not repeat (`--only`) stay as they were, and so
    does a measured value that this run has nothing to put in place of.
    """
    earlier = read_json(path) if path.exists() else {}
    facts = machine()
    kept: dict[str, dict[str, Any]] = {}
    if earlier.get("machine") == facts:
        kept = {claim["name"]: claim for claim in earlier["claims"]}
        used = {**earlier["versions"], **used}
    for claim in claims:
        if claim.value is not None or kept.get(claim.name, {}).get("value") is None:
            kept[claim.name] = asdict(claim)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"machine": facts, "versions": used, "claims": list(kept.values())})


def show(claims: Sequence[Claim]) -> None:
    """A line a claim: its value, what was wanted, and whether it holds."""
    for claim in claims:
        value = "not measured" if claim.value is None else f"{claim.value:.4g} {claim.unit}"
        verdict = {True: "holds", False: "DOES NOT HOLD", None: "open"}[claim.met]
        say(f"{claim.name}: {value} (wanted {claim.wanted}): {verdict}\n    {claim.reason}")


def run_sections(name: str, sections: dict[str, Callable[[argparse.Namespace], list[Claim]]],
                 parser: argparse.ArgumentParser, used: Callable[[], dict[str, str]], folder: Path) -> int:
    """The command of a benchmark: measure its sections (or those of `--only`), print and write the claims."""
    parser.add_argument("--only", action="append", choices=list(sections), help="measure this section only")
    parser.add_argument("--results", type=Path, default=folder / "results", help="folder of the results file")
    arguments = parser.parse_args()
    single_thread()
    path = arguments.results / f"{name}.json"
    for section in arguments.only or sections:
        say(f"{section}: measuring")
        claims = sections[section](arguments)
        show(claims)
        write_results(path, claims, used())
    say(f"Results: {path}")
    return 0
