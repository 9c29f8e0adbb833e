"""Curate: read inputs, measure, apply rules, drop duplicates, hold a part out, and report.

The work goes shard by shard: a first pass over the inputs (document rules), one decision over the whole corpus from
a small index (corpus rules, the held-out part), and a second pass that writes the documents. Every file appears
whole or not at all; finished shards are kept, so the same call goes on where a killed one stopped. The same inputs,
recipe and seed give the same bytes, with any number of workers.
"""

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
from pydantic import Field

from tilth import __version__
from tilth.curate import held_out as held
from tilth.curate import report
from tilth.curate.attributes import ATTRIBUTES, Attribute
from tilth.curate.corpus import decide, write_clusters, write_held_out
from tilth.curate.exact import ExactDuplicates
from tilth.curate.held_out import HeldOut
from tilth.curate.pipeline import Pipeline
from tilth.curate.rules import RULES, CorpusCut, CorpusRule, DocumentRule, Rule, expanded
from tilth.curate.shards import Plan, Shard, first_pass, second_pass, summary_of
from tilth.data import locations
from tilth.data.engines import Engine, Workers
from tilth.data.inputs import INPUTS, Input
from tilth.recipe import BadInput, Config, Progress, one_of, say
from tilth.recipe.files import read_json, write_json, writing

SHARD_BYTES = 128 << 20
OUTPUTS = ("documents-*.parquet", "attributes-*.parquet", "clusters.parquet", "held_out.parquet", "quarantine.jsonl",
           "report.json")
LAYOUT = 2  # raised when the same recipe writes other files


class CurateConfig(Config):
    """What a recipe says about curation; a stage derives from it.

    Rules act in their order. `exact_duplicates` adds that rule after the document rules (put `exact_duplicates` among
    the rules to place it among other corpus rules). Without `held_out` nothing is held out.
    """

    inputs: list[one_of(Input, INPUTS)]  # type: ignore[valid-type]
    attributes: list[one_of(Attribute, ATTRIBUTES)] = Field(default_factory=list)  # type: ignore[valid-type]
    rules: list[one_of(Rule, RULES)] = Field(default_factory=list)  # type: ignore[valid-type]
    exact_duplicates: bool = True
    held_out: HeldOut | None = Field(default_factory=HeldOut)

    def side_files(self) -> list[dict[str, Any]]:
        """`[{path, size, sha256}]` of the files beside the inputs that rules and attributes read."""
        return _fingerprints([*self.attributes, *expanded(self.rules)])

    def curate(self, folder: Path | str, seed: int, workers: int = 1, engine: Engine = "local") -> dict[str, Any]:
        """Curate into a folder; see `curate`."""
        return curate(self.inputs, self.rules, self.attributes, self.exact_duplicates, self.held_out, folder, seed,
                      workers, engine=engine)


def curate(inputs: Sequence[Input], rules: Sequence[Rule] = (), attributes: Sequence[Attribute] = (),
           exact_duplicates: bool = True, held_out: HeldOut | None = None, folder: Path | str = "curate",
           seed: int = 0, workers: int = 1, shard_bytes: int = SHARD_BYTES,
           engine: Engine = "local") -> dict[str, Any]:
    """Write the curated folder and return its report.

    `workers` processes, here or on a cluster (`engine`), share the shards (a shard is whole files of about
    `shard_bytes` stored bytes). What another recipe left in the folder is replaced. BadInput for inputs or rules that
    cannot be used, and for an empty corpus.
    """
    document_rules, corpus_rules = _sorted_rules(expanded(rules), exact_duplicates)
    plan = Plan(Path(folder), seed, tuple(attributes), document_rules, corpus_rules, held_out)
    Pipeline(document_rules, attributes)  # unknown attributes fail now, not after an hour
    shards = _shards(inputs, shard_bytes)
    identity = _identity(plan, inputs, shard_bytes)
    finished = _prepare(plan, identity)
    if finished is not None:
        return finished
    with Workers(workers, engine) as crew:
        _first_passes(plan, shards, crew)
        summaries = [read_json(plan.part(shard.number, "summary")) for shard in shards]
        quarantined = _quarantined(summaries)
        if not summary_of(summaries, "read").documents:
            raise _empty(inputs, quarantined)
        absent = _absent(summaries)
        decisions, clusters = decide(plan, shards)
        _make_room(plan)
        write_clusters(plan, shards, clusters)
        held_part = write_held_out(plan, shards, decisions)
        _second_passes(plan, shards, decisions, crew)
    result = _report(plan, shards, identity, summaries, quarantined, held_part)
    result["absent"] = absent
    _finish(plan, shards, result)
    return result


def _sorted_rules(rules: Sequence[Rule], exact: bool) -> tuple[tuple[DocumentRule, ...], tuple[CorpusRule, ...]]:
    document = tuple(rule for rule in rules if isinstance(rule, DocumentRule))
    corpus = [rule for rule in rules if isinstance(rule, CorpusRule)]
    if exact and not any(isinstance(rule, ExactDuplicates) for rule in corpus):
        corpus.insert(0, ExactDuplicates())
    cutting = [isinstance(rule, CorpusCut) for rule in corpus]
    if cutting != sorted(cutting):
        late = corpus[max(at for at, cuts in enumerate(cutting) if not cuts)]
        raise BadInput(f"The rule '{late.title()}' drops whole documents, but stands after one that cuts parts out of "
                       f"them, which would have no effect on it. Put '{corpus[cutting.index(True)].title()}' last.")
    odd = [rule for rule in rules if not isinstance(rule, (DocumentRule, CorpusRule))]
    if odd:
        raise BadInput(f"The rule '{odd[0].title()}' is neither a DocumentRule nor a CorpusRule; derive its class from "
                       f"one of them.")
    names = Counter(rule.title() for rule in [*document, *corpus])
    names.update([held.NAME, held.NEAR_COPIES])
    for name, count in names.items():
        if count > 1:
            raise BadInput(f"Two rules are called '{name}'; the report could not tell them apart. Give one a `name`.")
    return document, tuple(corpus)


def _shards(inputs: Sequence[Input], shard_bytes: int) -> list[Shard]:
    """Whole files of one input, in order, until a shard has `shard_bytes`."""
    shards: list[Shard] = []
    if not inputs:
        raise BadInput("`inputs` is empty: name at least one input, such as {kind: stdlib} or a path.")
    for item in inputs:
        held_paths: list[str] = []
        stored = 0
        paths = item.paths()
        for path, size in zip(paths, item.sizes(), strict=True):
            if held_paths and stored + size > shard_bytes:
                shards.append(Shard(len(shards), item, tuple(held_paths), stored))
                held_paths, stored = [], 0
            held_paths.append(path)
            stored += size
        shards.append(Shard(len(shards), item, tuple(held_paths), stored))
    return shards


def _identity(plan: Plan, inputs: Sequence[Input], shard_bytes: int) -> str:
    """A digest of all that the written bytes depend on."""
    parts = {
        "versions": [__version__, LAYOUT, pl.__version__],
        "inputs": [[item.model_dump(mode="json"), item.fingerprint()] for item in inputs],
        "attributes": [item.model_dump(mode="json") for item in plan.attributes],
        "rules": [rule.model_dump(mode="json") for rule in (*plan.rules, *plan.corpus_rules)],
        "held_out": plan.held_out.model_dump(mode="json") if plan.held_out else None,
        "files": _fingerprints([*plan.attributes, *plan.rules, *plan.corpus_rules]),
        "seed": plan.seed, "shard_bytes": shard_bytes,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _fingerprints(items: Sequence[Attribute | Rule]) -> list[dict[str, Any]]:
    return [locations.fingerprint(path) for item in items for path in item.reads()]


def _prepare(plan: Plan, identity: str) -> dict[str, Any] | None:
    """The report if this very work is done; else a folder in which only parts of this very work are left."""
    finished, begun = plan.folder / "report.json", plan.work / "identity.json"
    if finished.exists():
        result = read_json(finished)
        if result.get("identity") == identity:
            return dict(result)
    old = _outputs(plan)
    if old and not (finished.exists() or begun.exists()):
        raise BadInput(f"{plan.folder} holds {old[0].name}, which was not written by an earlier run of curate here; "
                       f"it would be overwritten. Choose another folder.")
    if not begun.exists() or read_json(begun) != identity:
        if old:
            say(f"  {plan.folder}: the inputs or the recipe changed; curating again")
        shutil.rmtree(plan.work, ignore_errors=True)
        write_json(begun, identity)
    return None


def _outputs(plan: Plan) -> list[Path]:
    return sorted(path for pattern in OUTPUTS for path in plan.folder.glob(pattern))


def _make_room(plan: Plan) -> None:
    """Take away, once, what other inputs or another recipe left here: only now is the new result certain enough."""
    done = plan.work / "made-room.json"
    if not done.exists():
        for path in _outputs(plan):
            path.unlink()
        write_json(done, True)


def _first_passes(plan: Plan, shards: list[Shard], crew: Workers) -> None:
    todo = [shard for shard in shards if not plan.part(shard.number, "summary").exists()]
    _run("read and apply rules", first_pass, plan, [(plan, shard) for shard in todo], shards, crew)


def _second_passes(plan: Plan, shards: list[Shard], decisions: list[pl.DataFrame], crew: Workers) -> None:
    todo = [(plan, shard, decided) for shard, decided in zip(shards, decisions, strict=True)
            if not plan.part(shard.number, "second-summary").exists()]
    _run("write documents", second_pass, plan, todo, shards, crew)


def _run(what: str, work: Any, plan: Plan, todo: list[Any], shards: list[Shard], crew: Workers) -> None:
    total = sum(shard.stored_bytes for shard in shards)
    done = total - sum(task[1].stored_bytes for task in todo)
    if done and todo:
        say(f"  {what}: {len(shards) - len(todo)} of {len(shards)} shards were finished before")
    progress = Progress(what, total, "B", done)
    if crew.count <= 1 and crew.engine == "local":  # in this process a shard can tell how far it is
        todo = [(*task, lambda within: progress.update(done + within)) for task in todo]
    for task in crew.map(work, todo):
        done += task[1].stored_bytes
        progress.update(done)


def _quarantined(summaries: list[dict[str, Any]]) -> Counter[str]:
    total: Counter[str] = Counter()
    for summary in summaries:
        total.update(summary["quarantined"])
    return total


def _absent(summaries: list[dict[str, Any]]) -> list[str]:
    """What rules read of records (keys of metadata, attributes of others) and no record has, said aloud: such a rule
    never acts, which a slip of the pen looks like too."""
    total: Counter[str] = Counter()
    for summary in summaries:
        total.update(summary.get("present", {}))
    found = sorted(name for name, count in total.items() if not count)
    for name in found:
        say(f"  no record has '{name}', which a rule reads, so that the rule never acts: check how it is spelt")
    return found


def _empty(inputs: Sequence[Input], quarantined: Counter[str]) -> BadInput:
    names = ", ".join(item.path or item.kind for item in inputs)
    if not quarantined:
        return BadInput(f"The inputs ({names}) hold no record at all: an empty corpus. Check their paths.")
    reason, count = quarantined.most_common(1)[0]
    return BadInput(f"None of the {quarantined.total()} records of the inputs ({names}) can be used; most often "
                    f"({count}): {reason}. Set `on_bad: error` to see the first one's place.")


def _report(plan: Plan, shards: list[Shard], identity: str, summaries: list[dict[str, Any]],
            quarantined: Counter[str], held_part: dict[str, Any]) -> dict[str, Any]:
    second = [read_json(plan.part(shard.number, "second-summary")) for shard in shards]
    kept = summary_of(second, "kept")
    names = [rule.title() for rule in plan.corpus_rules] + ([held.NEAR_COPIES] if plan.held_out else [])
    tallies = report.merged((summary["rules"] for summary in summaries), [rule.title() for rule in plan.rules])
    tallies += report.merged((summary["rules"] for summary in second), names)
    if not kept.documents:
        worst = max(tallies, key=lambda tally: tally.dropped.documents)
        raise BadInput(f"The rules left no document: '{worst.name}' alone dropped {worst.dropped.documents} of "
                       f"{worst.seen.documents}. Loosen it.")
    about = {rule.title(): rule.about() for rule in (*plan.rules, *plan.corpus_rules)}
    removed = tallies[-1].dropped if plan.held_out else report.Amount()
    return report.build(identity=identity, read=summary_of(summaries, "read"), quarantined=quarantined, rules=tallies,
                        about=about, kept=kept, held_out={**held_part, "near_copies_removed": removed.as_json()},
                        sources=report.merge_sources(summary["sources"] for summary in second))


def _finish(plan: Plan, shards: list[Shard], result: dict[str, Any]) -> None:
    """Write what covers all shards, the report last; then the work folder has served."""
    with writing(plan.folder / "quarantine.jsonl") as file:
        for shard in shards:
            with open(plan.quarantine(shard.number), "rb") as part:
                shutil.copyfileobj(part, file)
    write_json(plan.folder / "report.json", result)
    shutil.rmtree(plan.work)
