"""Random numbers of documents, for sampling: a pure function of the seed, the source and the id.

Another number of workers, another order or another run gives every document the same number; a sample of 10 % holds
the one of 5 %. (Dolma's `random_number_v1` takes the process's number into its seed, so that no run can be repeated.)
"""

import numpy as np
import polars as pl

from tilth.curate.attributes import Attribute
from tilth.curate.held_out import draw
from tilth.curate.rules import Rule, RuleSet
from tilth.curate.sets.frame import Limit


class RandomNumber(Attribute):
    """A number from 0 up to 1, evenly distributed, by BLAKE2b of (seed, source, id)."""

    kind: str = "random_number"
    seed: int = 0

    def columns(self) -> tuple[str, ...]:
        return ("random_number" if self.seed == 0 else f"random_number_{self.seed}",)

    def measure(self, records: pl.DataFrame) -> pl.DataFrame:
        names = records.select(pl.format("sample\0{}\0{}", pl.col("source").fill_null(""), pl.col("id"))).to_series()
        numbers = (draw(self.seed, names) >> np.uint64(11)) * 2.0**-53
        return pl.DataFrame({self.columns()[0]: pl.Series(numbers, dtype=pl.Float64)})


class Sample(RuleSet):
    """Keeps a share of the documents, at random."""

    kind: str = "sample"
    share: float
    seed: int = 0

    def rules(self) -> list[Rule]:
        measured = RandomNumber(seed=self.seed)
        # Both ends of a limit are kept: the next smaller number makes it "below".
        return [Limit(name=self.title(), attribute=measured.columns()[0], measured_by=measured,
                      maximum=float(np.nextafter(self.share, -1)))]

    def default_title(self) -> str:
        return f"sample {self.share:g}"
