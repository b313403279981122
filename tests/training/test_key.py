import os
import subprocess
import sys
from pathlib import Path

import pytest

import vaeline
from small_training import CPU
from vaeline.config import Params, parse_params
from vaeline.io.yaml_config import read_yaml
from vaeline.training import key
from vaeline.training.key import code_digest, training_key

CONTENT = read_yaml(Path(__file__).parents[2] / "params.yaml")


def changed(section: str, name: str, value: object) -> Params:
    return parse_params(CONTENT | {section: CONTENT[section] | {name: value}})


def test_the_same_training_has_the_same_name():
    assert training_key(parse_params(CONTENT), "d", CPU) == training_key(parse_params(CONTENT), "d", CPU)


@pytest.mark.parametrize(("section", "name", "value"), [("model", "latent_dim", 7), ("train", "beta", 4.0)])
def test_other_params_are_another_training(section: str, name: str, value: object):
    assert training_key(changed(section, name, value), "d", CPU) != training_key(parse_params(CONTENT), "d", CPU)


def test_other_data_threads_or_code_are_another_training(monkeypatch: pytest.MonkeyPatch):
    params = parse_params(CONTENT)
    plain = training_key(params, "d", CPU)
    assert training_key(params, "e", CPU) != plain
    monkeypatch.setattr(key, "identity", lambda device, processes: {"threads": 3})
    assert training_key(params, "d", CPU) != plain
    monkeypatch.undo()
    monkeypatch.setattr(key, "code_digest", lambda: "other")
    assert training_key(params, "d", CPU) != plain


def test_what_training_does_not_read_is_the_same_training():
    assert training_key(changed("sample", "rows", 3), "d", CPU) == training_key(parse_params(CONTENT), "d", CPU)


def test_the_codes_digest_covers_all_torch_code_that_training_loads():
    package = Path(vaeline.__file__).parent
    code = (
        "import sys, vaeline.training.trainer; "
        "print('\\n'.join(m.__file__ for n, m in sys.modules.items() if n.startswith('vaeline.')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    loaded = {Path(line) for line in done.stdout.split()}
    covered = {path for pattern in key.SOURCES for path in package.glob(pattern)}
    plain = {package / "config.py", package / "errors.py", package / "data/__init__.py", *package.glob("io/*.py")}
    assert loaded - covered <= plain
    assert len(code_digest()) == 64
