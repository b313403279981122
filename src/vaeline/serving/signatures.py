"""Ed25519 signatures (RFC 8032) of a package's manifest. The environment names the keys, as PEM files.

VAELINE_SIGNING_KEY: the private key that new packages are signed with. VAELINE_TRUSTED_KEYS: public keys, separated by
colons; where it is set, nothing is loaded that none of them signed.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vaeline.errors import UserError, optional_imports
from vaeline.io.safe_read import read_bounded

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

SIGNING, TRUSTED = "VAELINE_SIGNING_KEY", "VAELINE_TRUSTED_KEYS"
SIGNATURE_BYTES = 64
PEM_BYTES = 64 << 10


def signing_key() -> "Ed25519PrivateKey | None":
    """Private key of VAELINE_SIGNING_KEY; None where it is not set. Raises UserError for anything else."""
    if (path := os.environ.get(SIGNING)) is None:
        return None
    if not path.strip():
        raise UserError(f"{SIGNING}: is empty, which signs nothing; allowed: a private key (PEM file), or not set")
    key: Ed25519PrivateKey = _read_key(SIGNING, path, private=True)
    return key


def signer(key: "Ed25519PrivateKey") -> str:
    """Public half of a key, as the 64 hex digits by which manifests name it."""
    return key.public_key().public_bytes_raw().hex()


def trusted_signers() -> frozenset[str] | None:
    """Public keys of VAELINE_TRUSTED_KEYS, in the form of `signer`; None where it is not set. Raises UserError."""
    if (paths := os.environ.get(TRUSTED)) is None:
        return None
    if not paths.strip():
        raise UserError(f"{TRUSTED}: is empty, which trusts no key; allowed: public keys (PEM files), or not set")
    keys = (_read_key(TRUSTED, path, private=False) for path in paths.split(os.pathsep))
    return frozenset(key.public_bytes_raw().hex() for key in keys)


def is_signed(content: bytes, signature: bytes, by: str) -> bool:
    """Whether the owner of the public key `by` (hex) signed exactly this content."""
    with optional_imports("pipeline"):
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(by)).verify(signature, content)
    except (InvalidSignature, ValueError):
        return False
    return True


def _read_key(variable: str, path: str, private: bool) -> Any:
    try:
        content = read_bounded(Path(path), PEM_BYTES)
    except UserError as error:
        raise UserError(f"{variable}: {error}") from None
    with optional_imports("pipeline"):
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key
    try:
        key = load_pem_private_key(content, password=None) if private else load_pem_public_key(content)
    except (ValueError, TypeError, UnsupportedAlgorithm):  # TypeError: it is encrypted
        key = None
    if not isinstance(key, Ed25519PrivateKey if private else Ed25519PublicKey):
        kind = "unencrypted Ed25519 private" if private else "Ed25519 public"
        raise UserError(f"{variable}: {path}: allowed: an {kind} key in PEM")
    return key
