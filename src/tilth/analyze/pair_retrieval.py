"""Finding the image of a caption, and the caption of an image, among all pairs of the test."""

from typing import Any

import numpy as np
import torch
from pydantic import Field

from tilth.analyze.zero_shot import ROWS, test_of
from tilth.data.pairs import padded
from tilth.data.pool import Pool
from tilth.data.streams import UnitStream
from tilth.evaluate.measures import Measure


class PairRetrieval(Measure):
    """Recall at k: the share of queries for which one of the k nearest is right, in percent, in both directions.

    A pair with the same caption is as right as the query's own. by_concept: the mean of both directions at the least k,
    over the queries of each concept of the test (columns concept, queries, recall), to be set against counts by
    `tilth analyze concepts` (Udandarao et al. 2024, arXiv 2404.04125, section 3, do so at k = 1, 5, 10).
    """

    kind: str = "pair_retrieval"
    k: list[int] = Field(default_factory=lambda: [1, 5, 10], min_length=1)

    def check(self, stream: UnitStream) -> None:
        test_of(stream, self.kind)

    @torch.no_grad()
    def of(self, model: Any, stream: UnitStream, device: Any) -> dict[str, Any]:
        _, test = test_of(stream, self.kind)
        images, texts = embedded(model, test, device)
        captions = np.unique(test.column("caption").astype(str), return_inverse=True)[1]
        rank = {name: first_right(queries @ others.T, captions) for name, queries, others in (
            ("text_to_image", texts, images), ("image_to_text", images, texts))}
        found: dict[str, Any] = {name: {f"recall@{k}": 100 * float((ranks < k).mean()) for k in self.k}
                                 for name, ranks in rank.items()}
        least, labels = min(self.k), test.column("concept").astype(str)
        both = np.mean([ranks < least for ranks in rank.values()], axis=0)
        found["by_concept"] = [{"concept": name, "queries": int((labels == name).sum()),
                                "recall": 100 * float(both[labels == name].mean())}
                               for name in sorted({*labels} - {""})]
        return found


def embedded(model: Any, test: Pool, device: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The images and the captions of all pairs, both (U, J), on the CPU."""
    length, parts = model.config.caption_length, []
    for first in range(0, len(test), ROWS):
        rows = range(first, min(first + ROWS, len(test)))
        tokens, held = padded([test.get("tokens", row)[:length].astype(np.int64) for row in rows], length)
        pixels = torch.from_numpy(np.array(test.values("pixels")[first:first + ROWS])).to(device)
        parts.append((model.images(pixels).cpu(), model.texts(torch.from_numpy(tokens).to(device),
                                                              torch.from_numpy(held).to(device)).cpu()))
    return torch.cat([one for one, _ in parts]), torch.cat([one for _, one in parts])


def first_right(scores_QU: torch.Tensor, group: np.ndarray) -> np.ndarray:
    """How many candidates score higher than the best right one, for each query; equal `group` is right. (Q,)"""
    ranks = np.empty(len(scores_QU), np.int64)
    for query, scores in enumerate(scores_QU):
        right = torch.from_numpy(group == group[query])
        ranks[query] = int((scores > scores[right].max()).sum())
    return ranks
