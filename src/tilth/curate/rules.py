"""Rules: what is kept, dropped or rewritten, and why. Thresholds live here, in the recipe; measuring does not.

Rules act in the order of the recipe, each on the text as the ones before left it. A document rule decides batch by
batch; a corpus rule (duplicates) decides over everything that the document rules kept.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Protocol

import polars as pl
from pydantic import field_validator, model_validator

from tilth.curate.attributes import TEXT, Attribute, record_column
from tilth.recipe import Config

GROUP = re.compile(r"\$(?:\{([^}]*)\}|(\w+))")


class Rule(Config):
    """Base of all rules. `name` is what the report and `dropped_by` say; by default it is made from the fields."""

    kind: str = "keep"
    name: str | None = None

    def title(self) -> str:
        return self.name or self.default_title()

    def default_title(self) -> str:
        return self.kind.rpartition(":")[2]

    def reads(self) -> list[str]:
        """Files that the rule reads; if one changes, the corpus is curated again."""
        return []

    def about(self) -> dict[str, Any]:
        """What the report says of this rule beside its counts."""
        return {}

    def measures(self) -> tuple[Attribute, ...]:
        """Attributes that the rule brings along, so that a recipe need not name them."""
        return ()


class RuleSet(Rule):
    """Several rules under one name in a recipe. They act, and are reported, as if the recipe held them one by one."""

    def rules(self) -> list[Rule]:
        raise NotImplementedError(f"{type(self).__name__} must define rules().")


def expanded(rules: Sequence[Rule]) -> list[Rule]:
    """The rules with every set replaced by what it holds."""
    return [one for rule in rules for one in (expanded(rule.rules()) if isinstance(rule, RuleSet) else [rule])]


class DocumentRule(Rule):
    """A rule that looks at one batch at a time, as expressions over record columns and attributes.

    `rewrites_text` says whether later rules need their attributes measured again.
    """

    rewrites_text: ClassVar[bool] = False

    def needs(self) -> tuple[str, ...]:
        """Columns of attributes that the expressions use."""
        return ()

    def drops(self) -> pl.Expr | None:
        """Boolean: true where the document goes. Null counts as false."""
        return None

    def rewrites(self) -> pl.Expr | None:
        """The new text. Null leaves the text as it is."""
        return None

    def counts(self) -> dict[str, pl.Expr]:
        """What the report adds up over the documents that the rule saw: whole numbers by name, before it acts."""
        return {}

    def why(self) -> pl.Expr:
        """The reason, as text, for the report's examples."""
        return pl.lit(self.title())


class CorpusIndex(Protocol):
    """What a corpus rule decides from: a row for each document that is still there, in stable order. Columns are read
    when they are asked for (a Polars frame will do in a test)."""

    @property
    def height(self) -> int: ...

    def select(self, *columns: str) -> pl.DataFrame: ...

    def parts(self, *columns: str) -> Iterator[pl.DataFrame]:
        """Columns of all documents, some documents at a time."""
        ...


class CorpusRule(Rule):
    """A rule that decides over the whole corpus, from columns that it computes for each batch."""

    def signature(self, records: pl.DataFrame) -> pl.DataFrame:
        """Columns to remember for each record (same rows); names must begin with the rule's kind."""
        raise NotImplementedError(f"{type(self).__name__} must define signature(records).")

    def decide(self, index: CorpusIndex) -> pl.Series:
        """`index` has the columns `row` (uint32), `source`, `bytes` and the signature's. Returns uint32: the `row` of
        the document that this one repeats (it is then dropped), or null where it stays."""
        raise NotImplementedError(f"{type(self).__name__} must define decide(index).")


class CorpusCut(CorpusRule):
    """A corpus rule that takes parts out of documents, or marks them: spans of the text as the document rules left it.

    Cuts come after all corpus rules that drop, and leave held-out documents whole. A document of which nothing but
    white space is left is dropped. The spans are stored as the attribute `NAME_spans`.
    """

    @property
    def cuts(self) -> bool:
        """Whether the spans are taken out; if not, they are only stored."""
        return True

    def cut(self, index: CorpusIndex) -> pl.Series:
        """For each document of the index its spans (see `tilth.curate.spans`)."""
        raise NotImplementedError(f"{type(self).__name__} must define cut(index).")


class Condition(DocumentRule):
    """What `keep` and `drop` share: a test of one attribute, all of whose given parts must hold.

    `attribute` names a column that is computed, one of the record's (`source`, `license` ...) or `metadata.KEY`.
    A missing value (null, NaN) fulfils no condition: `keep` drops it, `drop` leaves it.
    """

    attribute: str
    minimum: float | None = None
    maximum: float | None = None
    one_of: list[str | int | float | bool] | None = None
    not_one_of: list[str | int | float | bool] | None = None

    @model_validator(mode="after")
    def _has_a_test(self) -> "Condition":
        if all(test is None for test in (self.minimum, self.maximum, self.one_of, self.not_one_of)):
            raise ValueError("give at least one of minimum, maximum, one_of, not_one_of")
        if self.minimum is not None and self.maximum is not None and self.minimum > self.maximum:
            raise ValueError(f"minimum {self.minimum} is above maximum {self.maximum}")
        return self

    def needs(self) -> tuple[str, ...]:
        return (self.attribute,)

    def default_title(self) -> str:
        return f"{self.kind} {self.attribute}{self._described()}"

    def _described(self) -> str:
        tests: dict[str, Any] = {">=": self.minimum, "<=": self.maximum, "in": self.one_of, "not in": self.not_one_of}
        parts = [f"{sign} {_short(value)}" for sign, value in tests.items() if value is not None]
        return " " + " and ".join(parts)

    def holds(self) -> pl.Expr:
        """Boolean, never null: all given tests hold."""
        value = pl.col(self.attribute)
        tests = [value.is_not_null()]
        if self.minimum is not None or self.maximum is not None:
            number = _as_number(value)
            tests += [number >= self.minimum] if self.minimum is not None else []
            tests += [number <= self.maximum] if self.maximum is not None else []
        if self.one_of is not None:
            tests.append(_among(value, self.one_of))
        if self.not_one_of is not None:
            tests.append(~_among(value, self.not_one_of))
        return pl.all_horizontal(tests).fill_null(False)

    def why(self) -> pl.Expr:
        shown = pl.col(self.attribute).cast(pl.String).fill_null("missing").str.head(80)
        return pl.format("{} is {}", pl.lit(self.attribute), shown)


class Keep(Condition):
    """Keeps the documents for which the condition holds; all others are dropped."""

    kind: str = "keep"

    def drops(self) -> pl.Expr:
        return ~self.holds()


class Drop(Condition):
    """Drops the documents for which the condition holds."""

    kind: str = "drop"

    def drops(self) -> pl.Expr:
        return self.holds()


class Pattern(DocumentRule):
    """What the regex rules share. The engine is Rust's: linear time, no look-around, no back-references.

    Flags are written into the pattern: `(?i)` ignores case, `(?m)` lets ^ and $ match at lines, `(?s)` lets . match
    a newline.
    """

    pattern: str

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        try:
            pl.Series([""]).str.contains(pattern)
        except pl.exceptions.ComputeError as error:
            reason = str(error).partition("error: ")[2] or str(error)
            reason = " ".join(reason.split("This error occurred")[0].split())
            raise ValueError(f"not a valid regular expression of the linear engine: {reason}") from error
        return pattern

    def default_title(self) -> str:
        return f"{self.kind} {_short(self.pattern)}"


class DropMatching(Pattern):
    """Drops documents in which the pattern matches at least `minimum` times."""

    kind: str = "drop_matching"
    minimum: int = 1

    def drops(self) -> pl.Expr:
        if self.minimum <= 1:
            return TEXT.str.contains(self.pattern)
        return TEXT.str.count_matches(self.pattern) >= self.minimum

    def why(self) -> pl.Expr:
        # The match itself may be personal data of any form, so only its place is told.
        return pl.format("matches at byte {}", TEXT.str.find(self.pattern).fill_null(0))


class Rewrite(Pattern):
    """Replaces every match; `${1}` or `${name}` in the replacement are groups, `$$` is a dollar sign."""

    kind: str = "rewrite"
    rewrites_text: ClassVar[bool] = True
    replacement: str = ""

    @model_validator(mode="after")
    def _groups_exist(self) -> "Rewrite":
        # The engine would replace an unknown group by nothing, and it takes `$1a` for a group called `1a`.
        known = {"0"}
        groups = pl.Series([""]).str.extract_groups(self.pattern).dtype
        if isinstance(groups, pl.Struct):
            known |= {field.name for field in groups.fields} | {str(at + 1) for at in range(len(groups.fields))}
        for match in GROUP.finditer(self.replacement.replace("$$", "")):
            name = match.group(1) or match.group(2)
            if name not in known:
                raise ValueError(f"the replacement names the group '{name}', which the pattern does not have (write "
                                 f"${{1}} before letters or digits, $$ for a dollar sign)")
        return self

    def rewrites(self) -> pl.Expr:
        return TEXT.str.replace_all(self.pattern, self.replacement)


class Normalize(DocumentRule):
    """Unicode NFC, CRLF and lone CR to LF, NUL characters out. Each part can be switched off."""

    kind: str = "normalize"
    rewrites_text: ClassVar[bool] = True
    unicode: bool = True
    newlines: bool = True
    nul: bool = True

    def rewrites(self) -> pl.Expr:
        text = TEXT
        if self.nul:
            text = text.str.replace_all("\0", "", literal=True)
        if self.newlines:
            text = text.str.replace_all("\r\n", "\n", literal=True).str.replace_all("\r", "\n", literal=True)
        return text.str.normalize("NFC") if self.unicode else text


RULES: dict[str, type[Rule] | str] = {
    "keep": Keep,
    "drop": Drop,
    "drop_matching": DropMatching,
    "rewrite": Rewrite,
    "normalize": Normalize,
    "exact_duplicates": "tilth.curate.exact:ExactDuplicates",
    "near_duplicates": "tilth.curate.near_duplicates:NearDuplicates",
    "url_duplicates": "tilth.curate.url_duplicates:UrlDuplicates",
    "paragraph_duplicates": "tilth.curate.paragraphs:ParagraphDuplicates",
    "repeated_passages": "tilth.curate.paragraphs:RepeatedPassages",
    "html_text": "tilth.curate.extract:HtmlText",
    "front_matter": "tilth.curate.extract:FrontMatter",
    "code_comments": "tilth.curate.extract:CodeComments",
    "decontaminate": "tilth.curate.decontaminate:Decontaminate",
    "c4": "tilth.curate.sets.c4:C4",
    "chinese": "tilth.curate.sets.chinese:Chinese",
    "classified": "tilth.curate.classifier_rules:Classified",
    "code": "tilth.curate.sets.code:Code",
    "dolma_books": "tilth.curate.sets.dolma:DolmaBooks",
    "dolma_web": "tilth.curate.sets.dolma:DolmaWeb",
    "drop_foreign_lines": "tilth.curate.language_rules:DropForeignLines",
    "drop_lines": "tilth.curate.sets.line_rules:DropLines",
    "drop_urls": "tilth.curate.sets.urls:DropUrls",
    "fineweb": "tilth.curate.sets.fineweb:FineWeb",
    "gopher_quality": "tilth.curate.sets.gopher:GopherQuality",
    "gopher_repetition": "tilth.curate.sets.repetition:GopherRepetition",
    "keep_languages": "tilth.curate.language_rules:KeepLanguages",
    "licence_header": "tilth.curate.sets.code:LicenceHeader",
    "licences": "tilth.curate.licence_rules:Licences",
    "mask_personal_data": "tilth.curate.personal_rules:MaskPersonalData",
    "mask_secrets": "tilth.curate.sets.code:MaskSecrets",
    "multilingual": "tilth.curate.sets.multilingual:Multilingual",
    "normalize_chinese": "tilth.curate.sets.chinese:NormalizeChinese",
    "personal_data": "tilth.curate.personal_rules:PersonalDataRules",
    "sample": "tilth.curate.sets.sampling:Sample",
    "starcoder": "tilth.curate.sets.starcoder:Starcoder",
    "token_repetition": "tilth.curate.sets.token_repetition:TokenRepetition",
}


def with_record_columns(frame: pl.DataFrame, names: set[str]) -> pl.DataFrame:
    """Add the `metadata.KEY` columns that rules ask for."""
    return frame.with_columns([record_column(name) for name in sorted(names) if name.startswith("metadata.")])


def _as_number(value: pl.Expr) -> pl.Expr:
    # Metadata are text; and Polars holds NaN to be above every number, so that it would pass any minimum.
    return value.cast(pl.Float64, strict=False).fill_nan(None)


def _among(value: pl.Expr, items: list[str | int | float | bool]) -> pl.Expr:
    """Is the value one of the items? Numbers are compared as numbers, whatever form the column gives them."""
    words = [str(item).lower() if isinstance(item, bool) else item for item in items if isinstance(item, (str, bool))]
    numbers = [float(item) for item in items if not isinstance(item, (str, bool))]
    return value.cast(pl.String).is_in(words) | _as_number(value).is_in(numbers).fill_null(False)


def _short(value: Any, limit: int = 40) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else f"{value:g}" if isinstance(value, float) \
        else str(value)
    return text if len(text) <= limit else text[:limit - 1] + "…"
