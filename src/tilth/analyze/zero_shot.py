"""Zero-shot accuracy of a two-tower model by concept, beside how often training named the concept."""

from typing import Any

import numpy as np
import polars as pl
import torch
from pydantic import Field

from tilth.analyze.concepts import ConceptFit
from tilth.curate.concepts import Concepts
from tilth.curate.lemmas import Lemmas
from tilth.data.pairs import padded, tokens_of
from tilth.data.pool import Pool
from tilth.data.streams import UnitStream
from tilth.evaluate.measures import Measure
from tilth.recipe import BadInput

ROWS = 256  # images of one forward pass


class ZeroShot(Measure):
    """The share of test images whose concept has the nearest text, a row for each concept.

    templates: prompts with {} for the concept's name, whose embeddings are averaged; rarest: how many concepts make up
    the long-tail test; fit: accuracy (in points, of 100) against log10 of the count. A concept's count is the number of
    training captions that name it (`lemmas`), of all pairs of the pool, whatever a policy draws of them.
    """

    kind: str = "zero_shot"
    templates: list[str] = Field(default_factory=lambda: ["{}"], min_length=1)
    rarest: int = Field(10, ge=1)
    lemmas: Lemmas = Lemmas()
    fit: ConceptFit = ConceptFit()

    def check(self, stream: UnitStream) -> None:
        test_of(stream, self.kind)

    def of(self, model: Any, stream: UnitStream, device: Any) -> dict[str, Any]:
        pool, test = test_of(stream, self.kind)
        labels = test.column("concept").astype(str)
        names = sorted({*labels} - {""})
        if len(names) < 2:
            raise BadInput("The test images carry fewer than two concepts; name the column of their labels with "
                           "`pairs.test.concept`.")
        said = self.predicted(model, test, names, pool, device)
        tested = labels != ""
        counts = self._counts(pool, names)
        rows = [{"concept": name, "count": int(count), "tested": int((labels == name).sum()),
                 "accuracy": 100 * float(np.mean(said[labels == name] == at))}
                for at, (name, count) in enumerate(zip(names, counts, strict=True))]
        order = sorted(rows, key=lambda row: (row["count"], row["concept"]))
        table = pl.DataFrame(rows).rename({"accuracy": "performance"})
        return {"accuracy": 100 * float(np.mean(np.array(names)[said[tested]] == labels[tested])),
                "balanced_accuracy": float(np.mean([row["accuracy"] for row in rows])),
                "long_tail": {"concepts": [row["concept"] for row in order[:self.rarest]],
                              "most_frequent": order[:self.rarest][-1]["count"],
                              "balanced_accuracy": float(np.mean([row["accuracy"] for row in order[:self.rarest]]))},
                "fit": self.fit.run(table) if len({row["count"] for row in rows} - {0}) > 1 else None,
                "concepts": rows}

    @torch.no_grad()
    def predicted(self, model: Any, test: Pool, names: list[str], pool: Pool, device: Any) -> np.ndarray:
        """The place in `names` of the text nearest to each test image, int64."""
        texts = torch.stack([self._texts(model, name, pool, device) for name in names])
        found = []
        for first in range(0, len(test), ROWS):
            pixels = torch.from_numpy(np.array(test.values("pixels")[first:first + ROWS])).to(device)
            found.append((model.images(pixels) @ texts.T).argmax(1).cpu().numpy())
        return np.concatenate(found)

    def _texts(self, model: Any, name: str, pool: Pool, device: Any) -> torch.Tensor:
        """The mean embedding of the prompts of a concept, of length one, (J,)."""
        prompts = [template.replace("{}", name.replace("_", " ")) for template in self.templates]
        tokens, held = padded(tokens_of(prompts, pool.tokenizer(), model.config.caption_length),
                              model.config.caption_length)
        texts = model.texts(torch.from_numpy(tokens).to(device), torch.from_numpy(held).to(device))
        return torch.nn.functional.normalize(texts.mean(0), dim=0)

    def _counts(self, pool: Pool, names: list[str]) -> np.ndarray:
        _, which = Concepts(names, self.lemmas).find(pool.column("caption").astype(str).tolist())
        return np.bincount(which, minlength=len(names))


def test_of(stream: UnitStream, measure: str) -> tuple[Pool, Pool]:
    """The pool that a stream of pairs draws from, and that of its test."""
    pool = getattr(stream, "pool", None)
    if pool is None or not (pool.folder / "test").is_dir():
        raise BadInput(f"The measure {measure} needs pairs with a test of their own: set `test` of the stage of kind "
                       f"pairs.")
    return pool, Pool.open(pool.folder / "test")
