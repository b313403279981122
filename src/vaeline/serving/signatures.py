"""Ed25519 signatures (RFC 8032) of a package's manifest. The environment names the keys, as PEM files.

VAELINE_SIGNING_KEY: the private key that new packages are signed with. VAELINE_TRUSTED_KEYS: public keys, separated by
colons; where it is set, nothing is loaded that none of them signed.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vaeline.errors import UserError
from vaeline.io.safe_read import read_bounded

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

SIGNING, TRUSTED = "VAELINE_SIGNING_KEY", "VAELINE_TRUSTED_KEYS"
SIGNATURE_BYTES = 64
PEM_BYTES = 64 << 10


def signing_key() -> "Ed25519PrivateKey | None":
    """Private key of VAELINE_SIGNING_KEY; None where it is not set. Raises UserError for anything else."""
    if not (path := os.environ.get(SIGNING)):
        return None
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = _read_key(path, private=True)
    if not isinstance(key, Ed25519PrivateKey):
        raise UserError(f"{SIGNING}: {path}: allowed: an unencrypted Ed25519 private key in PEM")
    return key


def signer(key: "Ed25519PrivateKey") -> str:
    """Public half of a key, as the 64 hex digits by which manifests name it."""
    return key.public_key().public_bytes_raw().hex()


def trusted_signers() -> frozenset[str] | None:
    """Public keys of VAELINE_TRUSTED_KEYS, in the form of `signer`; None where it is not set. Raises UserError."""
    if (paths := os.environ.get(TRUSTED)) is None:
        return None
    if not paths.strip():
        raise UserError(f"{TRUSTED}: is empty, which trusts nobody; allowed: public keys (PEM files), or not set")
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    found = set()
    for path in paths.split(os.pathsep):
        key = _read_key(path, private=False)
        if not isinstance(key, Ed25519PublicKey):
            raise UserError(f"{TRUSTED}: {path}: allowed: an Ed25519 public key in PEM")
        found.add(key.public_bytes_raw().hex())
    return frozenset(found)


def is_signed(content: bytes, signature: bytes, by: str) -> bool:
    """Whether the owner of the public key `by` (hex) signed exactly this content."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(by)).verify(signature, content)
    except (InvalidSignature, ValueError):
        return False
    return True


def _read_key(path: str, private: bool) -> Any:
    """Key in a PEM file; None where it is none, or encrypted."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key

    content = read_bounded(Path(path), PEM_BYTES)
    try:
        return load_pem_private_key(content, password=None) if private else load_pem_public_key(content)
    except (ValueError, TypeError, UnsupportedAlgorithm):  # TypeError: it is encrypted
        return None
