"""Real packages for the tests, what an attacker can do to them, and keys to sign them with."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from vaeline.serving.model_files import CONFIG, WEIGHTS, load_model
from vaeline.serving.package import MANIFEST, MODEL, SIGNATURE, seal

WEIGHTS_AT, CONFIG_AT = f"{MODEL}/{WEIGHTS}", f"{MODEL}/{CONFIG}"
EXAMPLE = np.random.default_rng(0).integers(0, 256, (2, 1, 5, 4), dtype=np.uint8)


def make_package(folder: Path, model: Path, name: str = "shapes", serial: int = 3) -> str:
    """What `register` uploads, by its own functions; returns the manifest's SHA-256."""
    from mlflow.models.model import Model

    from vaeline.serving.mlflow_package import write_package

    loaded = load_model(model)
    write_package(folder, model, loaded, EXAMPLE, Model())
    return seal(folder, name, serial, loaded)


def make_keys(folder: Path, name: str) -> tuple[Path, Path]:
    """A private key, and the public one that belongs to it, as PEM files."""
    key = Ed25519PrivateKey.generate()
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return private, public


def reseal(folder: Path, change: Callable[[dict[str, Any]], Any] = lambda manifest: None) -> None:
    """Make the manifest fit whatever the folder holds now, without a signature, as anyone can; then `change` it."""
    (folder / SIGNATURE).unlink(missing_ok=True)
    content = json.loads((folder / MANIFEST).read_text())
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != MANIFEST]
    content["files"] = {
        path.relative_to(folder).as_posix(): {
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "size": path.stat().st_size,
        }
        for path in files
    }
    digests = {name: content["files"][f"{MODEL}/{name}"]["sha256"] for name in (CONFIG, WEIGHTS)}
    text = json.dumps(digests, sort_keys=True, separators=(",", ":"))
    content |= {"signer": None, "model_digest": hashlib.sha256(text.encode()).hexdigest()}
    change(content)
    (folder / MANIFEST).write_text(json.dumps(content))
