"""The stage that turns raw inputs into documents, attributes and a held-out part."""

from collections.abc import Iterable
from typing import Any

from pydantic import Field

from tilth.curate.curate import CurateConfig
from tilth.recipe.console import quantity, say
from tilth.stages.stage import Context, Stage


class CurateStage(CurateConfig, Stage):
    """See `tilth.curate`. `seed` draws the held-out documents; it is apart from the recipe's seed, so that runs over
    several seeds are scored on the same text."""

    kind: str = "curate"
    seed: int = Field(0, ge=0)

    def files(self) -> Iterable[dict[str, Any]]:
        return [*(one for item in self.inputs for one in item.fingerprint()), *self.side_files()]

    def run(self, context: Context) -> dict[str, Any]:
        report = self.curate(context.folder, self.seed, context.hardware.workers, context.hardware.engine)
        held_out = report.get("held_out") or {}
        say(f"  kept {report['kept']['documents']} of {report['read']['documents']} documents "
            f"({quantity(report['kept']['bytes'], 'B')}), held out {held_out.get('documents', 0)} "
            f"({quantity(held_out.get('bytes', 0), 'B')})")
        return {"read": report["read"], "kept": report["kept"], "held_out": held_out, "sources": report["sources"]}
