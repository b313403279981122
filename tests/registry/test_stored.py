"""A version's stored model, read for scoring and tried in a fresh process."""

from dataclasses import replace
from pathlib import Path

import pytest

from registry_fixture import NAME, FilledRegistry
from vaeline.errors import UserError
from vaeline.registry import stored
from vaeline.registry.champion import run_gate
from vaeline.registry.stored import download_model, load_version, smoke_test

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType"),  # MLflow, of its own classes
]


class UnreachableStore:
    def get_model_version(self, name: str, version: str) -> None:
        raise ConnectionError


def test_a_store_that_is_away_is_not_taken_for_a_damaged_model(filled: FilledRegistry):
    version, weights = filled.client.get_model_version(NAME, "2"), filled.weights(2)
    whole = weights.read_bytes()
    try:
        weights.unlink()
        with pytest.raises(ConnectionError):
            load_version(UnreachableStore(), version)  # type: ignore[arg-type]
    finally:
        weights.write_bytes(whole)


def test_a_version_registered_by_hand_is_read_unless_a_key_must_have_signed_it(
    filled: FilledRegistry, sealed: Path, monkeypatch: pytest.MonkeyPatch
):
    """Mistake 17: a check that a key's owner signed, which a version without a manifest goes around."""
    by_hand = filled.client.create_model_version(NAME, filled.client.get_model_version(NAME, "3").source)
    registered = filled.client.get_model_version(NAME, "3")
    assert load_version(filled.client, by_hand).digest == load_version(filled.client, registered).digest
    monkeypatch.setenv("VAELINE_TRUSTED_KEYS", str(sealed / "signer.pub"))
    for version in (by_hand, registered):
        with pytest.raises(UserError, match=r"is signed by no key|is not signed by any key"):
            load_version(filled.client, version)
        assert "VAELINE_TRUSTED_KEYS" in (smoke_test(filled.client, version) or "")


def test_the_model_files_are_those_that_were_registered(filled: FilledRegistry, tmp_path: Path):
    version, weights = filled.client.get_model_version(NAME, "2"), filled.weights(2)
    whole = weights.read_bytes()
    assert (download_model(version, tmp_path / "a") / weights.name).read_bytes() == whole
    try:
        weights.write_bytes(whole + b" ")
        with pytest.raises(UserError, match=r"registered was .*: changed"):
            download_model(version, tmp_path / "b")
        weights.unlink()
        with pytest.raises(UserError, match="not registered by vaeline"):
            download_model(version, tmp_path / "c")
    finally:
        weights.write_bytes(whole)


def test_a_package_must_load_and_predict_in_a_fresh_process(
    filled: FilledRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Mistake 17: the caller's PYTHONPATH in that process, or damaged code run in it.

    A model whose own code is broken passes every number, but cannot be used.
    """
    code = next(filled.weights(4).parents[2].rglob("code/vaeline/serving/model_files.py"))
    whole, evaluator = code.read_bytes(), replace(filled.evaluator, smoke_test=smoke_test)
    version = filled.client.get_model_version(NAME, "4")
    candidate = evaluator.candidate(load_version(filled.client, version))
    (tmp_path / "sitecustomize.py").write_text("import os\nos._exit(7)\n")  # run by a Python that has it in its path
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    try:
        code.write_bytes(b"raise RuntimeError('no such thing')\n")
        assert "allowed by its manifest" in (smoke_test(filled.client, version) or "")
        monkeypatch.setattr(stored, "load_version", lambda client, version: None)
        (reason,) = run_gate(filled.client, version, candidate, evaluator).reasons
    finally:
        code.write_bytes(whole)
    assert reason.startswith("does not load and predict in a fresh process: ")
    assert "no such thing" in reason
    assert filled.aliases() == {"challenger": "4"}
    assert smoke_test(filled.client, version, seconds=1) == "no answer within 1 s"
    assert run_gate(filled.client, version, candidate, evaluator).promote
