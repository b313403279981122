import itertools
from typing import Any

import pytest
from optuna.distributions import FloatDistribution, IntDistribution

from data_files import refusal
from pipeline.sweep.experiments import with_values
from pipeline.sweep.space import check, corners, grid, parse_space, varied
from vaeline.config import parse_params
from vaeline.errors import UserError
from vaeline.io.yaml_config import read_yaml
from workspaces import ROOT

PARAMS: Any = read_yaml(ROOT / "params.yaml")


def choices(assignment: str) -> list[Any]:
    return [next(iter(values.values())) for values in grid(parse_space([assignment], PARAMS))]


@pytest.mark.parametrize(
    ("assignment", "values"),
    [
        ("train.beta=0.5,1,2e-1", [0.5, 1, 0.2]),
        ("data.binarise=none", ["none"]),
        ("model.network={kind: mlp, hidden: [3]},{kind: gated}", [{"kind": "mlp", "hidden": [3]}, {"kind": "gated"}]),
        ("train.beta=1,2,1", [1, 2]),
        ("train.beta=1,1.0,true", [1, 1.0, True]),
        ("data.source.path=../a,../b", ["../a", "../b"]),
    ],
)
def test_choices_are_yaml_each_once_and_of_its_own_type(assignment: str, values: list[Any]):
    found = choices(assignment)
    assert found == values
    assert [type(value) for value in found] == [type(value) for value in values]


def test_a_range_is_of_whole_numbers_where_the_parameter_is():
    space = ["model.latent_dim=2..16", "train.beta=1..4", "train.learning_rate=log:1e-4..1e-2", "train.seed=log:1..9"]
    space.append("sample.seed=1..9007199254740993")  # which no float is
    assert parse_space(space, PARAMS) == {
        "model.latent_dim": IntDistribution(2, 16),
        "train.beta": FloatDistribution(1.0, 4.0),
        "train.learning_rate": FloatDistribution(1e-4, 1e-2, log=True),
        "train.seed": IntDistribution(1, 9, log=True),
        "sample.seed": IntDistribution(1, 9007199254740993),
    }


def test_the_grid_is_every_combination_once_and_a_range_has_only_ends():
    space = parse_space(["train.beta=0.5,1", "model.latent_dim=2,4,8", "train.epochs=1"], PARAMS)
    found = [tuple(values.values()) for values in grid(space)]
    assert found == list(itertools.product([0.5, 1], [2, 4, 8], [1]))
    assert varied(space) == ["train.beta", "model.latent_dim"]
    space = parse_space(["train.beta=0.5..4", "train.epochs=1,2"], PARAMS)
    with pytest.raises(UserError, match=r"train\.beta: a range has no grid"):
        grid(space)
    tens = ",".join(map(str, range(1, 11)))
    keys = ("train.seed", "sample.seed", "theory.seed", "data.seed", "evaluate.seed", "train.epochs")
    assert "found a grid of 1,000,000 trials, allowed: 10,000" in refusal(
        grid, parse_space([f"{key}={tens}" for key in keys], PARAMS)
    )
    assert [tuple(values.values()) for values in corners(space)] == [(0.5, 1), (0.5, 2), (4.0, 1), (4.0, 2)]


def test_a_section_with_a_kind_is_replaced_and_keys_of_one_section_come_together():
    wanted = with_values(PARAMS, {"model.network.kind": "gated", "model.network.hidden": [7], "train.beta": 2})
    assert wanted["model"]["network"] == {"kind": "gated", "hidden": [7]}
    assert parse_params(wanted).train.beta == 2
    assert PARAMS["train"]["beta"] == 1.0


@pytest.mark.parametrize(
    ("assignment", "line"),
    [
        ("train.beta", "'train.beta': is no assignment; allowed: KEY=VALUE"),
        ("=3", "'=3': is no assignment"),
        ("train.beta=", "is no assignment"),
        ("train.beta=[1", "train.beta: '[1': is not valid YAML"),
        ("train.beta=3..1", "train.beta: found '3..1', allowed: LOW below HIGH"),
        ("train.beta=log:0..1", "train.beta: found 'log:0..1', allowed: LOW below HIGH, both above 0"),
        ("data.source.path=2026-01-01", "found '2026-01-01', allowed: numbers, true, false, null, or text in quotes"),
        ("train.beta=1..2,5", "train.beta: found '1..2,5', no values or a range among them; allowed: KEY"),
    ],
)
def test_a_mistake_in_an_assignment_is_one_clear_line(assignment: str, line: str):
    assert line in refusal(parse_space, [assignment], PARAMS)


def test_all_mistakes_are_reported_at_once():
    assignments = ["train.beta", "train.epochs=1", "train.epochs=2", "model={a: 1}", "model.latent_dim=2"]
    with pytest.raises(
        UserError, match=r"(?s)^'train.beta': .*\ntrain.epochs: given twice\nmodel.latent_dim: is inside model"
    ):
        parse_space(assignments, PARAMS)


def test_every_combination_is_checked_and_a_mistake_that_many_share_is_reported_once():
    space = parse_space(["sample.colums=1,2", "train.epochs=0,5", "train.batch_size=8,9"], PARAMS)
    with pytest.raises(UserError) as caught:
        check(PARAMS, grid(space))
    epochs, colums = str(caught.value).splitlines()
    assert "train.epochs: must be greater than or equal to 1; found 0" in epochs
    assert "sample.colums: unknown key; did you mean 'columns'?" in colums
    space = parse_space(["train.epochs=5,20", "train.warmup_epochs=0,9"], PARAMS)
    with pytest.raises(UserError, match=r"warmup_epochs \(9\) must not exceed epochs \(5\)"):
        check(PARAMS, grid(space))
