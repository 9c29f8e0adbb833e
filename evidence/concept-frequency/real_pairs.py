"""Counts on real image-text pairs: `TILTH_DATA=FOLDER python evidence/concept-frequency/real_pairs.py FOLDER`.

The sentences and images of `images/nlvr`: shapes and colours in the sentences against those that each image's own
objects have; half of the sentences are true of their image. Not part of the verdict. Writes real_pairs.json.
"""

import json
import os
import sys
from pathlib import Path

import polars as pl

from tilth.recipe.files import write_json
from tilth.stages.concepts import study_concepts

HERE = Path(__file__).parent
CALLED = {"#0099ff": "blue"}
NAMES = ("black", "blue", "yellow", "circle", "square", "triangle")


def main() -> int:
    data, folder = Path(os.environ["TILTH_DATA"]) / "images" / "nlvr", Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    tags, found = [], {}
    lines = [json.loads(line) for line in (data / "captions.jsonl").read_text().splitlines()]
    for line in lines:
        objects = [one for box in line["objects"] for one in box]
        tags += [{"id": line["id"], "concept": name} for name in sorted(
            {CALLED.get(one[key].lower(), one[key].lower()) for one in objects for key in ("type", "color")})]
    pl.DataFrame(tags).write_parquet(folder / "tags.parquet")
    (folder / "names.txt").write_text("\n".join(NAMES))
    for kind in (True, False):
        part = folder / f"{str(kind).lower()}.jsonl"
        part.write_text("".join(json.dumps({"id": line["id"], "text": line["sentence"]}) + "\n" for line in lines
                                if line["label"] is kind))
        study_concepts({"captions": [str(part)], "names": str(folder / "names.txt"),
                        "images": str(folder / "tags.parquet")}, folder / str(kind))
        summary = json.loads((folder / str(kind) / "result.json").read_text())
        found[f"sentences that are {str(kind).lower()}"] = {
            "counts": pl.read_csv(folder / str(kind) / "counts.csv").to_dicts(), "alignment": summary["alignment"]}
    write_json(HERE / "real_pairs.json", found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
