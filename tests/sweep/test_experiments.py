from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from data_files import refusal
from pipeline.sweep.experiments import experiment_overrides, override_arguments, parse_overrides, read_experiments
from vaeline.config import read_params
from vaeline.io.yaml_config import read_yaml
from workspaces import ROOT, commit, vaeline

EXPERIMENTS = read_experiments(ROOT / "experiments.yaml")


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_of_the_repository_is_valid_and_changes_something(name: str) -> None:
    assert experiment_overrides(name, read_yaml(ROOT / "params.yaml"), EXPERIMENTS)
    assert EXPERIMENTS[name].about


def test_a_section_with_a_kind_is_replaced_whole_and_others_are_merged_over_the_base() -> None:
    params = read_yaml(ROOT / "params.yaml")
    plain, vamp = (set(experiment_overrides(f"fashion-exemplar{end}", params, EXPERIMENTS)) for end in ("", "-vamp"))
    assert {"~model.network.activation", '++model.network.kind="gated"'} <= plain
    assert not any("train.seed" in change for change in plain)
    assert vamp - plain == {'++model.prior.kind="vamp"', "++model.prior.components=500"}
    assert plain - vamp == {'++model.prior.kind="standard-normal"'}


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: {about: x, params: {}}", "experiment 'b': allowed: a"),
        ("b: {about: x, base: c, params: {}}", "experiments.yaml: b: base must be another experiment, found 'c'"),
        ("b: {about: x, base: b, params: {}}", "experiments.yaml: b: base must be another experiment, found 'b'"),
        ("b: {about: x, parms: {}}", "experiments.yaml: b: parms: unknown key; did you mean 'params'?"),
        ("b: {about: x, params: {train: {epocs: 3}}}", "experiments.yaml: b: train.epocs: unknown key; did you mean"),
        ("b: {about: x, params: {train: {epochs: 0}}}", "experiments.yaml: b: train.epochs: must be greater than"),
        ("[]", "experiments.yaml: must hold experiments by name, found []"),
    ],
)
def test_a_mistake_is_reported_before_anything_runs(tmp_path: Path, text: str, line: str) -> None:
    (tmp_path / "experiments.yaml").write_text(text)
    params = read_yaml(ROOT / "params.yaml")
    assert line in refusal(lambda: experiment_overrides("b", params, read_experiments(tmp_path / "experiments.yaml")))


def test_overrides_by_key_become_literals_that_hydra_reads_as_they_are() -> None:
    params = read_yaml(ROOT / "params.yaml")
    changes = parse_overrides(["train.beta=4", "+model.prior={kind: vamp, components: 5}", "train.seed=1"], params)
    assert changes == ["-S", '++model.prior.kind="vamp"', "-S", "++model.prior.components=5", "-S", "++train.beta=4"]
    to_gated = parse_overrides(["model.network.kind=gated"], params)  # whose other keys are those of another kind
    removed = ["-S", "~model.network.activation", "-S", "~model.network.hidden"]
    assert to_gated == [*removed, "-S", '++model.network.kind="gated"']
    parser = OverridesParser.create()
    for text in ("caf\u00e9", 'a"b', "a\\", '\\"', "a\\nb", "a, {b}: [c]", "$HOME", "", " x "):
        _, argument = override_arguments({}, {"k": [text, {"a": text}]})
        assert parser.parse_override(argument).value() == [text, {"a": text}]


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("train.beta", "-S: 'train.beta': allowed: KEY=VALUE, a key path of params.yaml, or ~KEY"),
        ("train@hydra=x", "-S: 'train@hydra=x': allowed: KEY="),
        ("train.beta=4\nx: 1", "-S: 'train.beta=4\\nx: 1': allowed: KEY="),
        ("hydra.run.dir=/tmp", "-S: hydra: unknown key"),
        ("train.bata=4", "-S: train.bata: unknown key; did you mean 'beta'?"),
        ("train.beta=[4", "-S: train.beta: is not valid YAML"),
        ("train.beta=${oc.env:HOME}", "-S: train.beta: "),
        ("register.name=${oc.env:HOME}", "-S: register.name: "),
        ("data.source={kind: npz, path: '${oc.env:HOME}'}", "'${oc.env:HOME}': ${ would be replaced by Hydra"),
        ("~train.epochs", "-S: train.epochs: missing"),
        ("train={}", "-S: train.beta: is inside train, which is changed too"),
        ("+train.beta=5", "-S: train.beta: given twice"),
    ],
)
def test_an_override_that_is_no_value_of_params_yaml_is_one_line(override: str, line: str) -> None:
    beta = [] if override.startswith("train.beta") else ["train.beta=4"]
    assert refusal(parse_overrides, [*beta, override], read_yaml(ROOT / "params.yaml")).startswith(line)


def test_an_experiment_runs_by_its_name_and_further_options_are_dvcs(toy: Path) -> None:
    """Mistake 21: an experiment without its changes."""
    (toy / "experiments.yaml").write_text(
        "small: {about: the least, params: {sample: {rows: 2}, model: {network: {kind: gated, hidden: [7, 8]}}, "
        "train: {learning_rate: 1.0e-6}, register: {name: small}}}"
    )
    commit(toy)
    assert vaeline("experiment", cwd=toy).stdout == "small\n    the least\n"
    vaeline("experiment", "small", "-S", "sample.columns=3", cwd=toy)
    params = read_params(toy / "params.yaml")
    assert (params.sample.rows, params.sample.columns) == (2, 3)
    assert params.model.network.model_dump() == {"kind": "gated", "hidden": [7, 8]}
    assert params.train.learning_rate == 1e-6
    assert params.register_.name == "small"
    assert (toy / "sample.txt").exists()
