"""Languages of documents and of their lines, by a detector whose model comes with its package, or by fastText.

A detector gives a text the code of a language (ISO 639, with a script where there are several: `zh-hant`) and a
confidence from 0 to 1; no code where it cannot tell.

- `cld2`: the Compact Language Detector 2 of Chromium (83 languages, a naive Bayes model of letters' quadgrams; Sites
  2013), some 20 MB a CPU-second. The confidence is the share of the text that is in the language; 0 where it calls its
  own answer unreliable.
- `fasttext`: fastText's lid.176 (Joulin et al. 2017, https://arxiv.org/abs/1607.01759), given its file. The confidence
  is the probability. The text is put in lower case and its newlines become spaces, as dolma does.
- `package.module:Class`: an outside class that derives from `Detector` and defines `detect`.
"""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from pydantic import Field

from tilth.curate.attributes import Attribute
from tilth.curate.pieces import pieces
from tilth.recipe import BadInput, Config, one_of

# What CLD2 refuses: control characters, and code points that are no characters.
UNFIT = r"[\p{Cc}\p{Cn}--[\t\n\r]]+"
DOCUMENT_COLUMNS = ("language", "language_confidence")
LINE_COLUMNS = ("language_lines", "line_language", "line_language_confidence")


class Detector(Config):
    """Base of all detectors."""

    kind: str = "cld2"

    def reads(self) -> list[str]:
        return []

    def detect(self, texts: pl.Series) -> tuple[list[str | None], np.ndarray]:
        """The code of each text's language (lower case, None if unknown) and its confidence, float64 (texts,)."""
        raise NotImplementedError(f"{type(self).__name__} must define detect(texts).")

    def of(self, texts: pl.Series) -> pl.DataFrame:
        """`language` and `language_confidence` of each text."""
        codes, confidence = self.detect(texts)
        return pl.DataFrame([pl.Series(DOCUMENT_COLUMNS[0], codes, dtype=pl.String),
                             pl.Series(DOCUMENT_COLUMNS[1], confidence, dtype=pl.Float64)])


class Cld2(Detector):
    """CLD2, whose tables are part of its package. `html`: tags and entities are not read as text."""

    kind: str = "cld2"
    html: bool = False

    def model_post_init(self, context: Any) -> None:
        _cld2()

    def detect(self, texts: pl.Series) -> tuple[list[str | None], np.ndarray]:
        # A loop over texts, for CLD2 has no batch form; it takes the time itself.
        detect, plain = _cld2().detect, not self.html
        codes: list[str | None] = []
        confidence = np.zeros(len(texts))
        for at, text in enumerate(texts.str.replace_all(UNFIT, " ")):
            reliable, _, ((_, code, percent, _), *_) = detect(text.encode(), isPlainText=plain)
            known = code != "un" and percent > 0
            codes.append(code.lower() if known else None)
            confidence[at] = percent / 100 if known and reliable else 0.0
        return codes, confidence


class FastText(Detector):
    """fastText's language identification (`lid.176.bin` or `lid.176.ftz`), `path` its file."""

    kind: str = "fasttext"
    path: str

    def reads(self) -> list[str]:
        return [self.path]

    def detect(self, texts: pl.Series) -> tuple[list[str | None], np.ndarray]:
        model = _fasttext(self.path)
        codes: list[str | None] = []
        confidence = np.zeros(len(texts))
        for at, text in enumerate(texts.str.to_lowercase().str.replace_all("\n", " ", literal=True)):
            # The inner call: the outer one of release 0.9.2 fails with NumPy 2.
            found = model.f.predict(text, 1, 0.0, "strict")
            codes.append(found[0][1].removeprefix("__label__").lower() if found else None)
            confidence[at] = min(float(found[0][0]), 1.0) if found else 0.0  # it gives up to 1.00001
        return codes, confidence


@cache
def _cld2() -> Any:
    try:
        import pycld2
    except ImportError as error:
        raise BadInput("The language detector `cld2` needs a package: pip install 'tilth[language]' (or pip install "
                       "pycld2).") from error
    return pycld2


@cache
def _fasttext(path: str) -> Any:
    try:
        import fasttext
    except ImportError as error:
        raise BadInput("The language detector `fasttext` needs a package: pip install fasttext-wheel") from error
    if not Path(path).is_file():
        raise BadInput(f"The language detector `fasttext` reads its model from {path}, which is no file. Download "
                       f"lid.176.bin from fasttext.cc and give its path.")
    try:
        return fasttext.load_model(path)
    except ValueError as error:
        raise BadInput(f"{path} is not a model of fastText: {error}.") from error


DETECTORS: dict[str, type[Detector] | str] = {"cld2": Cld2, "fasttext": FastText}


class Language(Attribute):
    """`language` (null where it cannot be told) and `language_confidence` of each document."""

    kind: str = "language"
    prefix: str = ""
    detector: one_of(Detector, DETECTORS) = Field(default_factory=Cld2)  # type: ignore[valid-type]

    def columns(self) -> tuple[str, ...]:
        return tuple(f"{self.prefix}{name}" for name in DOCUMENT_COLUMNS)

    def reads(self) -> list[str]:
        return self.detector.reads()

    def measure(self, records: pl.DataFrame) -> pl.DataFrame:
        found = self.detector.of(records["text"])
        return found.rename(dict(zip(found.columns, self.columns(), strict=True)))


class LineLanguages(Language):
    """`language_lines`, a list of {start, end, language, confidence} of the lines that are not blank; and the language
    that most of the document is in by its lines: `line_language`, with `line_language_confidence` the sum of
    confidence times characters of its lines over the characters of all of them (dolma's document score)."""

    kind: str = "line_languages"

    def columns(self) -> tuple[str, ...]:
        return tuple(f"{self.prefix}{name}" for name in LINE_COLUMNS)

    def measure(self, records: pl.DataFrame) -> pl.DataFrame:
        lines = pieces(records["text"], "line")
        found = self.detector.of(lines.texts)
        frame = pl.DataFrame({"row": lines.row, "start": lines.starts, "end": lines.ends}).with_columns(
            pl.col("row").cast(pl.Int64), pl.col("start", "end").cast(pl.UInt32),
            found["language"], confidence=found["language_confidence"])
        listed = frame.group_by("row", maintain_order=True).agg(
            pl.struct("start", "end", "language", "confidence").alias("lines"),
            (pl.col("end") - pl.col("start")).sum().alias("characters"))
        best = (frame.filter(pl.col("language").is_not_null())
                .group_by("row", "language", maintain_order=True)
                .agg((pl.col("confidence") * (pl.col("end") - pl.col("start"))).sum().alias("weight"))
                .sort("row", "weight", descending=[False, True], maintain_order=True)
                .unique("row", keep="first", maintain_order=True))
        rows = pl.DataFrame({"row": np.arange(records.height)}, schema={"row": pl.Int64})
        joined = (rows.join(listed, on="row", how="left", maintain_order="left")
                  .join(best, on="row", how="left", maintain_order="left"))
        of_lines, language, confidence = self.columns()
        return joined.select(
            pl.col("lines").fill_null(pl.lit([], dtype=joined.schema["lines"])).alias(of_lines),
            pl.col("language").alias(language),
            (pl.col("weight") / pl.col("characters")).fill_null(0.0).alias(confidence))
