"""Recipes: order of stages, changes from the command line, YAML on a base, Python."""

import pytest
from stage_toys import WRITE

from tilth.optim import AdamW, Muon
from tilth.recipe import BadInput, parse
from tilth.stages import Recipe, load_recipe
from tilth.stages.load import set_key


def stages(**inputs):
    return parse(Recipe, {"name": "r", "stages": {name: {"kind": WRITE, "inputs": reads}
                                                  for name, reads in inputs.items()}})


def test_order_puts_every_stage_after_what_it_reads_and_else_keeps_the_recipes():
    assert stages(c=["b"], a=[], b=["a", "d"], d=[]).order() == ["a", "d", "b", "c"]
    assert stages(b=[], a=[]).order() == ["b", "a"]


def test_circle_is_refused_naming_its_stages():
    with pytest.raises(BadInput, match=r"a, b wait for each other"):
        stages(start=[], a=["b"], b=["a", "start"]).order()
    with pytest.raises(BadInput, match="circle"):
        stages(a=["a"]).order()


def test_unknown_stage_is_refused_with_the_nearest():
    with pytest.raises(BadInput, match=r"'last' reads a stage 'curat'.*did you mean 'curate'\?"):
        stages(curate=[], last=["curat"]).order()


@pytest.mark.parametrize("name", ["../escape", "a/b", "", ".hidden", "a.b", "seed", "name", "stages"])
def test_stage_name_must_be_fit_for_a_folder_and_a_key(name):
    with pytest.raises(BadInput, match="cannot name a stage"):
        stages(**{name: []})


def quick(*changes):
    return load_recipe("quickstart", changes)


def test_changes_reach_nested_keys_choices_lists_and_the_recipe_itself():
    recipe = quick("pretrain.optimizer.lr=1e-3", "seed=7", "pretrain.model.layers=2", "name=mine",
                   "curate.rules.1.minimum=50", "pretrain.budget={steps: 3}", "evaluate.prompts=[a, b]")
    pretrain = recipe.stages["pretrain"]
    assert pretrain.optimizer == quick().stages["pretrain"].optimizer.model_copy(update={"lr": 1e-3})
    assert (recipe.seed, recipe.name, pretrain.model.layers) == (7, "mine", 2)
    assert recipe.stages["curate"].rules[1].minimum == 50
    assert pretrain.budget.steps == 3
    assert recipe.stages["evaluate"].prompts == ["a", "b"]


def test_changed_kind_drops_the_fields_of_the_old_kind():
    assert isinstance(quick().stages["pretrain"].optimizer, Muon)
    assert quick("pretrain.optimizer.kind=adamw").stages["pretrain"].optimizer == AdamW()
    assert quick("pretrain.optimizer=adamw").stages["pretrain"].optimizer == AdamW()
    assert quick("pretrain.optimizer={kind: adamw, lr: 0.5}").stages["pretrain"].optimizer == AdamW(lr=0.5)
    assert quick("pretrain.optimizer.kind=adamw", "pretrain.optimizer.lr=0.25").stages["pretrain"].optimizer.lr == 0.25
    assert quick("pretrain.optimizer.kind=muon").stages["pretrain"].optimizer == quick().stages["pretrain"].optimizer


@pytest.mark.parametrize(("change", "message"), [
    ("pretrain.optimizer.lrr=1", r"`stages\.pretrain\.optimizer\.lrr`.*did you mean 'lr'\?"),
    ("pretrian.length=3", r"'pretrian'.*did you mean 'pretrain'\?"),
    ("pretrain.optimizer.kind=adam", r"`stages\.pretrain\.optimizer\.kind`.*did you mean 'adamw'\?"),
    ("curate.rules.9.minimum=1", r"'9' is not one of the 2 positions"),
    ("curate.rules.first=1", "'first' is not one of"),
    ("seed.x=1", "plain value"),
    ("pretrain.length.x=1", "plain value"),
    ("pretrain.length", "not of the form key=value"),
    ("=3", "not of the form"),
    ("pretrain.length=[1", "not YAML"),
    ("pretrain.length=long", r"`stages\.pretrain\.length`.*'long'"),
    ("name=no/slashes", "`name`"),
])
def test_bad_change_is_named(change, message):
    with pytest.raises(BadInput, match=message):
        quick(change)


def test_unknown_recipe_and_missing_file_are_named():
    with pytest.raises(BadInput, match=r"'quickstrat'.*did you mean 'quickstart'\?"):
        load_recipe("quickstrat")
    with pytest.raises(BadInput, match=r"no recipe file none\.yaml"):
        load_recipe("none.yaml")


def test_set_key_works_on_plain_data_with_and_without_stages():
    data = {"stages": {"a": {"kind": "x", "items": [{"n": 1}, {"n": 2}]}}}
    set_key(data, "a.items.1.n", 5)
    set_key(data, "a.new.deep", 1)
    assert data["stages"]["a"] == {"kind": "x", "items": [{"n": 1}, {"n": 5}], "new": {"deep": 1}}
    with pytest.raises(BadInput, match="neither a stage nor a field"):
        set_key({"name": "x"}, "a.b", 1)


def test_yaml_on_a_base_is_the_base_with_its_changes(tmp_path):
    (tmp_path / "small.yaml").write_text(
        "base: quickstart\nseed: 5\npretrain:\n  optimizer: {lr: 1e-4}\n  length: 64\npretrain.batch_tokens: 128\n")
    expected = quick("seed=5", "name=small", "pretrain.optimizer.lr=1e-4", "pretrain.length=64",
                     "pretrain.batch_tokens=128")
    assert load_recipe(str(tmp_path / "small.yaml")) == expected
    (tmp_path / "smaller.yml").write_text("base: small.yaml\nstages:\n  pretrain: {length: 32}\n")
    assert load_recipe(str(tmp_path / "smaller.yml"), ["seed=6"]) == load_recipe(
        str(tmp_path / "small.yaml"), ["name=smaller", "pretrain.length=32", "seed=6"])


def test_yaml_without_a_base_is_whole(tmp_path):
    (tmp_path / "own.yaml").write_text(f"stages:\n  a: {{kind: '{WRITE}', text: hi}}\n")
    recipe = load_recipe(str(tmp_path / "own.yaml"), ["a.text=ho"])
    assert recipe.name == "own" and recipe.stages["a"].text == "ho"


@pytest.mark.parametrize(("text", "message"), [
    ("stages: [", "not YAML"), ("- a", "group of keys"), ("name: x", "`stages`"), ("base: nothing", "no recipe"),
    ("base: quickstart\nstages:\n  pretrain: {lenght: 3}", r"`stages\.pretrain\.lenght`.*'length'"),
    ("base: quickstart\nstages:", None), ("base: quickstart\n3: x", "`3`"),
    ("stages: {a: {kind: 3}}", r"`stages\.a\.kind`"),
])
def test_bad_yaml_is_named(tmp_path, text, message):
    (tmp_path / "r.yaml").write_text(text)
    if message is None:
        assert load_recipe(str(tmp_path / "r.yaml")).stages == quick().stages
        return
    with pytest.raises(BadInput, match=message):
        load_recipe(str(tmp_path / "r.yaml"))


def test_yaml_change_without_stages_is_an_error_not_a_traceback(tmp_path):
    (tmp_path / "r.yaml").write_text("name: x")
    with pytest.raises(BadInput, match="neither a stage nor a field"):
        load_recipe(str(tmp_path / "r.yaml"), ["pretrain.length=3"])


def test_python_recipe_is_what_its_function_returns(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from stage_toys import Write\nfrom tilth.stages import Recipe\n\n"
        "def recipe():\n    return Recipe(name='mine', stages={'a': Write(text='x'), 'b': Write(inputs=['a'])})\n")
    recipe = load_recipe(str(tmp_path / "mine.py"), ["a.text=y"])
    assert recipe.stages["a"].text == "y" and recipe.order() == ["a", "b"]
    (tmp_path / "empty.py").write_text("x = 1\n")
    with pytest.raises(BadInput, match="no function `recipe`"):
        load_recipe(str(tmp_path / "empty.py"))


def test_dumped_quickstart_parses_to_itself():
    assert parse(Recipe, quick().model_dump(mode="json")) == quick()
