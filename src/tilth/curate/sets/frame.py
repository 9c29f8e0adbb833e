"""What the rule sets share: limits on columns they measure themselves, and profiles that fill in thresholds."""

from typing import Any, ClassVar, Literal

from pydantic import SerializeAsAny, model_validator

from tilth.curate.attributes import Attribute
from tilth.curate.rules import Keep, Rule, RuleSet
from tilth.recipe import BadInput

Profile = Literal["default", "dolma-1.2.1", "datatrove-0.10.1"]
SHORT = {"default": "", "dolma-1.2.1": "dolma_", "datatrove-0.10.1": "datatrove_"}


class Limit(Keep):
    """Keeps what lies between `minimum` and `maximum` (both included) of a column that the rule brings along."""

    kind: str = "limit"
    measured_by: SerializeAsAny[Attribute]

    def measures(self) -> tuple[Attribute, ...]:
        return (self.measured_by,)


class Profiled(RuleSet):
    """Base of the sets that have profiles: `PROFILES` holds what differs from the fields' defaults in each.

    `prefix` is put before the columns' names, so that a recipe can measure the same in two ways.
    """

    PROFILES: ClassVar[dict[str, dict[str, Any]]] = {}

    profile: Profile = "default"
    prefix: str = ""

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, values: Any) -> Any:
        """The profile's thresholds where the recipe gives none, so that a resolved recipe shows all of them."""
        if isinstance(values, dict):
            if values.get("profile", "default") not in {"default", *cls.PROFILES}:
                raise ValueError(f"the profiles of this set are {', '.join(['default', *cls.PROFILES])}")
            return {**cls.PROFILES.get(values.get("profile", "default"), {}), **values}
        return values


class MeasuredSet(Profiled):
    """Base of the sets that are limits on one attribute.

    A subclass lists in `LIMITS` the fields that are thresholds: field -> (column, "minimum" or "maximum"). A
    threshold of null switches its rule off.
    """

    LIMITS: ClassVar[dict[str, tuple[str, str]]] = {}

    def attribute(self) -> Attribute:
        """The attribute that measures what the limits are on."""
        raise NotImplementedError(f"{type(self).__name__} must define attribute().")

    def rules(self) -> list[Rule]:
        measured = self.attribute()
        names = dict(zip(self._plain(measured), measured.columns(), strict=True))
        made: list[Rule] = []
        for field, (column, edge) in self.LIMITS.items():
            value = getattr(self, field)
            if value is not None and column not in names:
                raise BadInput(f"`{self.kind}.{field}` is {value}, but the profile {self.profile} has no measure for "
                               f"it. Set it to null.")
            if value is not None:
                made.append(Limit(attribute=names[column], measured_by=measured, name=f"{self.title()} {field}",
                                  **{edge: value}))
        return made

    def _plain(self, measured: Attribute) -> list[str]:
        return [column.removeprefix(self.prefix + SHORT[self.profile]) for column in measured.columns()]
