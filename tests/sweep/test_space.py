import itertools
from typing import Any

import pytest

from pipeline.sweep.space import Choices, Range, check, corners, grid, overlaid, parse_axes, varied
from vaeline.config import parse_params
from vaeline.errors import UserError
from vaeline.io.yaml_config import read_yaml
from workspaces import ROOT

PARAMS: Any = read_yaml(ROOT / "params.yaml")


def test_values_are_yaml_whole_sections_too():
    text = "model.network={kind: mlp, hidden: [30, 20]},{kind: gated}"
    assert parse_axes(["train.beta=0.5,1,2e-1", text, "data.binarise=none"], PARAMS) == [
        Choices("train.beta", (0.5, 1, 0.2)),
        Choices("model.network", ({"kind": "mlp", "hidden": [30, 20]}, {"kind": "gated"})),
        Choices("data.binarise", ("none",)),
    ]


def test_a_value_given_twice_counts_once_but_one_and_one_point_zero_are_told_apart():
    assert parse_axes(["train.beta=1,2,1"], PARAMS) == [Choices("train.beta", (1, 2))]
    assert parse_axes(["train.beta=1,1.0,true"], PARAMS) == [Choices("train.beta", (1, 1.0, True))]


def test_a_path_with_two_dots_is_no_range():
    assert parse_axes(["data.source.path=../a,../b"], PARAMS) == [Choices("data.source.path", ("../a", "../b"))]


def test_a_range_is_of_whole_numbers_where_the_parameter_is():
    axes = parse_axes(["model.latent_dim=2..16", "train.beta=1..4", "train.learning_rate=log:1e-4..1e-2"], PARAMS)
    assert axes == [
        Range("model.latent_dim", 2, 16, log=False, whole=True),
        Range("train.beta", 1.0, 4.0, log=False, whole=False),
        Range("train.learning_rate", 1e-4, 1e-2, log=True, whole=False),
    ]


def test_the_grid_is_every_combination_once():
    axes = parse_axes(["train.beta=0.5,1", "model.latent_dim=2,4,8", "train.epochs=1"], PARAMS)
    found = [tuple(values.values()) for values in grid(axes)]
    assert found == list(itertools.product([0.5, 1], [2, 4, 8], [1]))
    assert varied(axes) == ["train.beta", "model.latent_dim"]


def test_a_section_with_a_kind_is_replaced_and_keys_of_one_section_come_together():
    wanted = overlaid(PARAMS, {"model.network.kind": "gated", "model.network.hidden": [7], "train.beta": 2})
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
        ("train.beta=1..2,5", "train.beta: found a range among values"),
    ],
)
def test_a_mistake_in_an_assignment_is_one_clear_line(assignment: str, line: str):
    with pytest.raises(UserError) as caught:
        parse_axes([assignment], PARAMS)
    assert line in str(caught.value)


def test_all_mistakes_are_told_at_once():
    with pytest.raises(UserError) as caught:
        parse_axes(["train.beta", "train.epochs=1", "train.epochs=2", "model={a: 1}", "model.latent_dim=2"], PARAMS)
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert lines[1:] == ["train.epochs: given twice", "model.latent_dim: is inside model, which is varied too"]


def test_every_combination_is_checked_and_a_mistake_that_many_share_is_told_once():
    axes = parse_axes(["train.bata=1,2", "train.epochs=0,5", "train.warmup_epochs=0,9"], PARAMS)
    with pytest.raises(UserError) as caught:
        check(PARAMS, grid(axes))
    lines = str(caught.value).splitlines()
    assert len(lines) == 2
    assert "train.bata: unknown key; did you mean 'beta'?" in lines[1]
    assert "train.epochs: must be greater than or equal to 1; found 0" in lines[0]


def test_values_that_contradict_each_other_only_together_are_refused():
    axes = parse_axes(["train.epochs=5,20", "train.warmup_epochs=0,9"], PARAMS)
    with pytest.raises(UserError, match=r"warmup_epochs \(9\) must not exceed epochs \(5\)"):
        check(PARAMS, grid(axes))


def test_a_range_has_no_grid_but_ends():
    axes = parse_axes(["train.beta=0.5..4", "train.epochs=1,2"], PARAMS)
    with pytest.raises(UserError, match=r"train\.beta: a range has no grid"):
        grid(axes)
    assert [tuple(values.values()) for values in corners(axes)] == [(0.5, 1), (0.5, 2), (4.0, 1), (4.0, 2)]
