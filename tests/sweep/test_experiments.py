from pathlib import Path

import pytest

from pipeline.sweep.experiments import experiment_overrides, read_experiments
from vaeline.config import read_params
from vaeline.errors import UserError
from vaeline.io.yaml_config import read_yaml
from workspaces import ROOT, execute, vaeline

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
    assert not plain - vamp


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
    with pytest.raises(UserError) as caught:
        experiment_overrides("b", read_yaml(ROOT / "params.yaml"), read_experiments(tmp_path / "experiments.yaml"))
    assert line in str(caught.value)


def test_an_experiment_runs_by_its_name_and_further_options_are_dvcs(toy: Path) -> None:
    (toy / "experiments.yaml").write_text(
        "small: {about: the least, params: {sample: {rows: 2}, model: {network: {kind: gated, hidden: [7, 8]}}, "
        "train: {learning_rate: 1.0e-6}, register: {name: small}}}"
    )
    execute("git", "add", "-A", cwd=toy)
    execute("git", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "start", cwd=toy)
    assert vaeline("experiment", cwd=toy).stdout == "small\n    the least\n"
    vaeline("experiment", "small", "-S", "sample.columns=3", cwd=toy)
    params = read_params(toy / "params.yaml")
    assert (params.sample.rows, params.sample.columns) == (2, 3)
    assert params.model.network.model_dump() == {"kind": "gated", "hidden": [7, 8]}
    assert params.train.learning_rate == 1e-6
    assert params.register_.name == "small"
    assert (toy / "sample.txt").exists()
