"""The parts of the page: each function turns what a run recorded into plain values and charts for the template.

A function returns None (or leaves a key empty) where nothing was recorded, and the template leaves the part out.
"""

from typing import Any

from markupsafe import Markup

from tilth.report.bars import interval_mark
from tilth.report.charts import (
    held_out_chart,
    licence_share,
    loss_chart,
    metric_chart,
    rival_chart,
    rule_funnel,
    source_share,
    stage_seconds,
)
from tilth.report.formats import (
    UNKNOWN,
    count,
    decimals,
    finite,
    percent,
    seconds,
    short,
    significant,
    size,
    visible,
)
from tilth.report.masking import mask_personal
from tilth.report.reading import Run, listing, mapping
from tilth.report.scores import Score, Scores
from tilth.report.sources import UNSTATED, Source, measure

EXAMPLES, EXAMPLE_CHARACTERS, SAMPLE_CHARACTERS = 3, 600, 4000


def last(lines: list[dict[str, Any]], key: str) -> float | None:
    """The last finite value of a metric."""
    return next((value for line in reversed(lines) if (value := finite(line.get(key))) is not None), None)


def headline(run: Run, scores: Scores, train: list[dict[str, Any]]) -> dict[str, Any]:
    """The one sentence and the key figures."""
    summary = run.summary("pretrain")
    tokens = finite(summary.get("tokens")) or last(train, "tokens")
    spent = finite(summary.get("seconds")) or last(train, "seconds")
    done = [text for text in (
        f"{short(summary['parameters'])} parameters" if finite(summary.get("parameters")) else "",
        f"{short(tokens)} tokens" if tokens else "", seconds(spent) if spent else "") if text]
    return {"did": ", ".join(done), "own": decimals(scores.own.value) if scores.own else "",
            "held_out": size(scores.bytes) if scores.bytes else "",
            "rivals": _rivals_named(scores), "verdict": _verdict(scores), "tiles": _tiles(run, scores, train)}


def _rivals_named(scores: Scores) -> str:
    """The rivals that come closest: naming all of them would bury the sentence."""
    own = scores.own.value if scores.own else 0.0
    close = sorted(scores.rivals, key=lambda rival: abs(rival.value - own))[:3]
    return ", ".join(f"{rival.name} {decimals(rival.value)}" for rival in sorted(close, key=lambda r: r.value))


def _verdict(scores: Scores) -> str:
    if not (scores.own and scores.rivals):
        return ""
    beaten, all_of_them = len(scores.beaten), len(scores.rivals)
    if beaten == all_of_them:
        return f"Better than {'its only rival' if all_of_them == 1 else f'all {all_of_them} rivals'}."
    ahead = ", ".join(score.name for score in scores.ranking if not score.own and score not in scores.beaten)
    return f"Better than {beaten} of {all_of_them} rivals; behind {ahead}."


def _tiles(run: Run, scores: Scores, train: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    """(label, value, small print) of the figures that matter most; unknown ones are left out."""
    summary = run.summary("pretrain")
    own = scores.own
    tokens = finite(summary.get("tokens")) or last(train, "tokens")
    parameters, epochs = finite(summary.get("parameters")), finite(summary.get("epochs"))
    loss = finite(summary.get("final_loss"))
    flops = finite(summary.get("flops")) or last(train, "flops")
    spent = finite(summary.get("seconds")) or last(train, "seconds")
    rate = finite(summary.get("tokens_per_second")) or last(train, "tokens_per_second")
    per = f"{short(tokens / parameters)} per parameter" if tokens and parameters else ""
    tiles = [
        ("bits per byte", decimals(own.value) if own else "", _plus_minus(own)),
        ("parameters", short(parameters), _parts_of(summary)),
        ("tokens trained on", short(tokens), ", ".join(filter(None, (f"{epochs:.2f} epochs" if epochs else "", per)))),
        ("training loss", decimals(loss if loss is not None else last(train, "loss")), "nats a token, at the end"),
        ("compute", short(flops, "FLOP"), ""),
        ("training time", seconds(spent), f"{short(rate)} tokens a second" if rate else ""),
    ]
    return [(label, value, "" if small.startswith(UNKNOWN) else small) for label, value, small in tiles
            if value not in ("", UNKNOWN)]


def _parts_of(summary: dict[str, Any]) -> str:
    """The small print of the parameters: those outside embeddings, and those of a mixture of experts that one token
    uses."""
    active = finite(summary.get("parameters_active"))
    used = f", {short(active)} active for a token" if active and active != summary.get("parameters") else ""
    return f"{short(summary.get('parameters_non_embedding'))} outside embeddings{used}"


def _plus_minus(score: Score | None) -> str:
    return f"± {decimals(score.stderr)} standard error" if score and score.stderr else ""


def scores_section(scores: Scores) -> dict[str, Any] | None:
    if not (scores.own or scores.rivals or scores.tasks or scores.by_source):
        return None
    own = scores.own
    table = [(s, f"{s.value - own.value:+.3f}".replace("-", "−") if own and not s.own else "") for s in scores.ranking]
    tasks = [(t, interval_mark(t.score.value, t.score.stderr, t.chance)) for t in scores.tasks]
    return {"chart": rival_chart(scores) if scores.rivals else None, "table": table, "by_source": scores.by_source,
            "tasks": tasks, "bytes": scores.bytes, "chance_known": any(t.chance is not None for t in scores.tasks)}


def curves(train: list[dict[str, Any]], held_out: list[dict[str, Any]], scores: Scores) -> dict[str, Any] | None:
    if not train and not held_out:
        return None
    large = [loss_chart(train, held_out), held_out_chart(held_out, scores)]
    padded = [value for line in train if (value := finite(line.get("padded"))) is not None]
    same = bool(padded) and max(padded) == min(padded)
    small = [("lr", "Learning rate", ""), ("gradient_norm", "Gradient norm", "before clipping"),
             ("tokens_per_second", "Throughput", "tokens a second"), ("padded", "Padding", "share of positions")]
    small = [(key, title, unit) for key, title, unit in small
             if any(key in line for line in train) and not (same and key == "padded")]
    drawn = [metric_chart(train, key, title, unit, log=key == "gradient_norm", narrow=len(small) == 3)
             for key, title, unit in small]
    flops, tokens = last(train, "flops"), last(train, "tokens")
    note = f"{short(tokens)} tokens took {short(flops, 'FLOP')}" if flops and tokens else ""
    broken = sum(1 for line in train if "loss" in line and finite(line["loss"]) is None)
    return {"large": [chart for chart in large if chart],
            "small": [chart for chart in drawn if chart], "flops": note, "broken": broken,
            "padding": f"{percent(padded[0])} of all positions were padding." if same else ""}


def training_data(sources: list[Source]) -> dict[str, Any] | None:
    if not sources:
        return None
    found = measure(sources)
    figures = ("documents", "bytes", "pool_tokens", "drawn")
    whole = {key: sum(getattr(one, key) or 0 for one in sources) for key in figures}
    columns = {key: any(getattr(one, key) is not None for one in sources) for key in whole}
    charts: list[Markup] = []
    if found:
        charts = [source_share(sources, *found), licence_share(sources, *found)]
    return {"sources": sources, "whole": whole, "columns": columns, "charts": charts,
            "unstated": any(UNSTATED in one.license for one in sources)}


def data(run: Run) -> dict[str, Any] | None:
    """Where documents were dropped, quarantined and held out."""
    report = mapping(run.json("curate", "report.json"))
    if not report:
        return None
    rules = [_rule(rule) for rule in listing(report.get("rules"))]
    quarantined = mapping(report.get("quarantined"))
    reasons = sorted(mapping(quarantined.get("by_reason")).items(), key=lambda pair: -(finite(pair[1]) or 0))
    held_out = mapping(report.get("held_out"))
    return {"read": mapping(report.get("read")), "kept": mapping(report.get("kept")), "rules": rules,
            "funnel": rule_funnel(rules), "quarantined": quarantined.get("documents"), "reasons": reasons,
            "absent": [name for name in report.get("absent") or [] if isinstance(name, str)],
            "held_out": held_out, "near_copies": mapping(held_out.get("near_copies_removed"))}


def _rule(rule: dict[str, Any]) -> dict[str, Any]:
    limits = {"id": 120, "why": 200, "text": EXAMPLE_CHARACTERS}
    examples = [{key: visible(mask_personal(str(example.get(key) or "")), limit) for key, limit in limits.items()}
                for example in listing(rule.get("examples"))[:EXAMPLES]]
    return {"name": str(rule.get("name", "?")), "examples": examples,
            **{key: mapping(rule.get(key)) for key in ("seen", "dropped", "rewritten")}}


def samples(run: Run) -> list[dict[str, str]]:
    found = listing(run.json("evaluate", "samples.json"))
    return [{key: visible(mask_personal(str(sample.get(key) or "")), SAMPLE_CHARACTERS) for key in ("prompt", "text")}
            for sample in found]


def cost(run: Run, train: list[dict[str, Any]]) -> dict[str, Any] | None:
    summary = run.summary("pretrain")
    spent = [(stage.name, wall) for stage in run.stages if (wall := finite(stage.manifest.get("seconds"))) is not None]
    if not (summary or spent or train):
        return None
    cpu = [value for stage in run.stages if (value := finite(stage.summary.get("cpu_seconds"))) is not None]
    tokens, flops = finite(summary.get("tokens")) or last(train, "tokens"), finite(summary.get("flops"))
    flops = flops or last(train, "flops")
    rate = finite(summary.get("tokens_per_second")) or last(train, "tokens_per_second")
    rows = [
        ("Tokens trained on", count(tokens), ""),
        ("Steps", count(finite(summary.get("steps")) or last(train, "step")), ""),
        ("Compute of the training", short(flops, "FLOP"), ""),
        ("Wall time, all stages", seconds(sum(wall for _, wall in spent)) if spent else UNKNOWN, ""),
        ("CPU time", seconds(sum(cpu)) if cpu else UNKNOWN, "" if len(cpu) == len(run.stages) else
         "of the stages that recorded it" if cpu else ""),
        ("Scores inside the run", *_evaluated(run.evaluated())),
        ("Throughput", f"{short(rate)} tokens a second" if rate else UNKNOWN, ""),
        ("Peak memory of the training", size(summary.get("peak_memory_bytes")), ""),
        ("FLOP utilisation", *_utilisation(summary, flops)),
        ("Energy", "not measured", ""),
    ]
    return {"rows": [row for row in rows if row[1] != UNKNOWN], "chart": stage_seconds(spent) if spent else None}


def _evaluated(found: dict[str, Any]) -> tuple[str, str]:
    """Time of the evaluations inside the training run, and its share."""
    spent, share, flops = (finite(found.get(key)) for key in ("seconds", "share_of_time", "share_of_flops"))
    if spent is None or share is None or flops is None:
        return UNKNOWN, ""
    return seconds(spent), f"{share:.1%} of the training's time, {flops:.1%} of its FLOPs"


def _utilisation(summary: dict[str, Any], flops: float | None) -> tuple[str, str]:
    """Only against a peak that was measured on this machine; a data sheet's peak would be a guess."""
    peak = finite(summary.get("matmul_flops_per_second", summary.get("peak_flops")))
    share = finite(summary.get("utilisation"))
    spent = finite(summary.get("seconds"))
    if peak and share is None and flops and spent:
        share = flops / spent / peak
    if not peak or share is None:
        return "not measured", "no matrix-product peak was measured here"
    return percent(share), f"of a measured matrix-product peak of {short(peak, 'FLOP/s')}"


def facts(run: Run) -> list[tuple[str, str]]:
    """Versions and machine facts: whatever the run's manifest says about itself, flattened."""
    found: list[tuple[str, str]] = []

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, item in value.items():
                walk(f"{prefix} {key}".strip().replace("_", " "), item)
        elif isinstance(value, list):
            found.append((prefix, visible(", ".join(map(str, value)), 200)))
        elif value is not None:
            found.append((prefix, visible(significant(value) if isinstance(value, float) else value, 200)))

    walk("", {key: value for key, value in run.manifest.items() if key not in ("stages", "recipe")})
    return found
