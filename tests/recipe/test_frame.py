"""Configuration: every mistake is named by its whole path, with the nearest valid key."""

import pytest
from pydantic import Field

from tilth.recipe import BadInput, Config, one_of, parse


class Engine(Config):
    kind: str = "diesel"
    power: float = Field(1.0, gt=0)


class Diesel(Engine):
    litres: float = 2.0


class Electric(Engine):
    kind: str = "electric"
    volts: int = 400


class Outside(Engine):
    kind: str = "outside"
    thrust: float = 3.0


class Unrelated(Config):
    kind: str = "unrelated"


EngineChoice = one_of(Engine, {"diesel": Diesel, "electric": f"{__name__}:Electric"})


class Wheel(Config):
    radius: float = 0.3


class Paint(Config):
    kind: str = ""


class Red(Paint):
    kind: str = "red"
    shade: int = 0


class Car(Config):
    engine: EngineChoice = Diesel()
    spare: EngineChoice | None = None
    wheel: Wheel = Wheel()
    wheels: list[Wheel] = Field(default_factory=list)
    engines: list[EngineChoice] = Field(default_factory=list)
    named: dict[str, EngineChoice] = Field(default_factory=dict)
    seats: int = 4
    paint: one_of(Paint, {"red": Red}) = Red()


@pytest.mark.parametrize(("data", "path", "hint"), [
    ({"seat": 4}, "`seat`", "'seats'"),
    ({"wheel": {"radus": 1}}, "`wheel.radus`", "'radius'"),
    ({"wheels": [{}, {"radis": 1}]}, "`wheels[1].radis`", "'radius'"),
    ({"engine": {"kind": "electric", "volt": 1}}, "`engine.volt`", "'volts'"),
    ({"engine": {"litre": 1}}, "`engine.litre`", "'litres'"),
    ({"engine": {"kind": "electic"}}, "`engine.kind`", "'electric'"),
    ({"engine": "desel"}, "`engine.kind`", "'diesel'"),
    ({"engines": ["diesel", {"kind": "electric", "voltz": 1}]}, "`engines[1].voltz`", "'volts'"),
    ({"named": {"front": {"kind": "diesell"}}}, "`named.front.kind`", "'diesel'"),
    ({"named": {"front": {"litters": 1}}}, "`named.front.litters`", "'litres'"),
    ({"spare": {"kind": "electric", "vols": 1}}, "`spare.vols`", "'volts'"),
])
def test_unknown_key_or_kind_is_named_by_its_path_with_the_nearest_valid_one(data, path, hint):
    with pytest.raises(BadInput) as caught:
        parse(Car, data)
    assert path in str(caught.value)
    assert f"did you mean {hint}?" in str(caught.value)


@pytest.mark.parametrize(("data", "path"), [
    ({"seats": "many"}, "`seats`"),
    ({"engines": [{"power": -1}]}, "`engines[0].power`"),
    ({"wheel": 3}, "`wheel`"),
    ({"engine": [1]}, "`engine`"),
    ({"engine": {"kind": 3}}, "`engine.kind`"),
    ({7: 1}, "`7`"),
    ({"wheel": {None: 1}}, "`wheel.None`"),
])
def test_wrong_value_is_named_by_its_path(data, path):
    with pytest.raises(BadInput) as caught:
        parse(Car, data)
    assert path in str(caught.value)


def test_choice_is_built_from_its_kind_or_from_the_default_kind():
    car = parse(Car, {"engine": {"litres": 5}, "engines": ["electric", {"kind": "diesel", "power": 2}]})
    assert car.engine == Diesel(litres=5)
    assert car.engines == [Electric(), Diesel(power=2)]


def test_choice_without_a_default_kind_asks_for_one():
    class Wall(Config):
        paint: one_of(Paint, {"red": Red})

    with pytest.raises(BadInput, match="`paint` needs a `kind`: one of red"):
        parse(Wall, {"paint": {"shade": 1}})


def test_class_from_outside_is_accepted_by_its_place():
    car = parse(Car, {"engine": {"kind": f"{__name__}:Outside", "thrust": 9}})
    assert isinstance(car.engine, Outside) and car.engine.thrust == 9


@pytest.mark.parametrize("kind", [f"{__name__}:Unrelated", f"{__name__}:Missing", "no_such_module:Thing", ":Thing",
                                  ".relative:Thing", f"{__name__}:parse", f"{__name__}:"])
def test_class_from_outside_that_is_no_such_choice_is_refused_by_name(kind):
    with pytest.raises(BadInput, match=r"`engine\.kind`") as caught:
        parse(Car, {"engine": {"kind": kind}})
    assert kind in str(caught.value)


@pytest.mark.parametrize("car", [
    Car(), Car(engine=Electric(volts=12), spare=Diesel(), seats=2),
    Car(engine=Outside(thrust=1), engines=[Outside(kind=f"{__name__}:Outside"), Electric()], named={"a": Outside()}),
])
def test_dumped_configuration_parses_to_the_same_fields_and_classes(car):
    again = parse(Car, car.model_dump(mode="json"))
    assert again.model_dump(mode="json") == car.model_dump(mode="json")
    assert [type(one) for one in (again.engine, *again.engines)] == [type(one) for one in (car.engine, *car.engines)]


def test_a_group_without_a_kind_is_of_the_kind_that_the_field_has_by_default():
    from tilth.stages.pretrain import PretrainStage

    stage = parse(PretrainStage, {"model": {"layers": 2}, "budget": {"steps": 1}})
    assert (stage.model.kind, stage.model.layers) == ("transformer", 2)
