import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from packages import make_keys
from vaeline.errors import UserError
from vaeline.serving.signatures import is_signed, signer, signing_key, trusted_signers


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """Keys in PEM files, and others that will not do."""
    for name in ("one", "two"):
        make_keys(tmp_path, name)
    other, locked = X25519PrivateKey.generate(), BestAvailableEncryption(b"word")
    for key, file, lock in ((other, "other.pem", NoEncryption()), (Ed25519PrivateKey.generate(), "locked.pem", locked)):
        (tmp_path / file).write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, lock))
    public = other.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "other.pub").write_bytes(public)
    (tmp_path / "text").write_text("no key")
    return tmp_path


def test_unset_variables_mean_no_signing_and_no_trust(monkeypatch: pytest.MonkeyPatch):
    """Mistake 17: nothing that is signed wrongly, or not at all, passes for trusted."""
    for name in ("VAELINE_SIGNING_KEY", "VAELINE_TRUSTED_KEYS"):
        monkeypatch.delenv(name, raising=False)
    assert signing_key() is None
    assert trusted_signers() is None
    monkeypatch.setenv("VAELINE_TRUSTED_KEYS", "")
    with pytest.raises(UserError, match="VAELINE_TRUSTED_KEYS: is empty"):
        trusted_signers()


def test_what_a_key_signs_is_known_by_its_public_half_alone(keys: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("VAELINE_SIGNING_KEY", str(keys / "one.pem"))
    monkeypatch.setenv("VAELINE_TRUSTED_KEYS", f"{keys / 'one.pub'}:{keys / 'two.pub'}")
    key, trusted = signing_key(), trusted_signers()
    assert key is not None
    assert trusted is not None
    (other,) = trusted - {own := signer(key)}
    signature = key.sign(b"content")
    assert is_signed(b"content", signature, own)
    for content, mark, by in (
        (b"another", signature, own),
        (b"content", signature, other),
        (b"content", signature[:-1], own),
        (b"content", b"", own),
        (b"content", signature, "ff" * 32),
    ):
        assert not is_signed(content, mark, by)


ALLOWED = {"VAELINE_SIGNING_KEY": "unencrypted Ed25519 private", "VAELINE_TRUSTED_KEYS": "Ed25519 public"}


@pytest.mark.parametrize(
    ("variable", "name"),
    [
        *(("VAELINE_SIGNING_KEY", name) for name in ("one.pub", "other.pem", "locked.pem", "text", "none")),
        *(("VAELINE_TRUSTED_KEYS", name) for name in ("one.pem", "other.pub", "text", "none")),
    ],
)
def test_what_is_no_key_is_reported_in_one_line(keys: Path, monkeypatch: pytest.MonkeyPatch, variable: str, name: str):
    monkeypatch.setenv(variable, f"{keys / 'one.pub'}:{keys / name}" if "TRUSTED" in variable else str(keys / name))
    with pytest.raises(
        UserError, match=rf"^{variable}: .*{name}: (allowed: an {ALLOWED[variable]} key|cannot be read)"
    ):
        signing_key() if "SIGNING" in variable else trusted_signers()


def test_without_cryptography_a_key_is_refused_with_what_to_install(keys: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("VAELINE_TRUSTED_KEYS", str(keys / "one.pub"))
    monkeypatch.setitem(sys.modules, "cryptography.exceptions", None)
    with pytest.raises(UserError, match=r"^cryptography: is not installed; pip install 'vaeline\[pipeline\]'$"):
        trusted_signers()
