"""What can be done to a package, each by its name: damage, and what an attacker would put in."""

import json
import os
import pickle
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save, save_file

from packages import CONFIG_AT, WEIGHTS_AT, reseal
from vaeline.serving.package import LEFT_BY_MLFLOW, MANIFEST, SIGNATURE

Damage = Callable[[Path], Any]
NAME = "decoder.0.bias"


class Payload:
    """Unpickled, it leaves a mark."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.canary),)


def canary(folder: Path) -> Path:
    """What each payload would make."""
    return folder.parent / "canary"


def code(folder: Path) -> bytes:
    return f"import os\nos.mkdir({str(canary(folder))!r})\n".encode()


def put(name: str, content: bytes | Callable[[Path], bytes]) -> Damage:
    def apply(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content(folder))

    return apply


def pickled(folder: Path) -> bytes:
    return pickle.dumps(Payload(canary(folder)))


def put_torch(name: str) -> Damage:
    return lambda folder: torch.save({"weights": Payload(canary(folder))}, folder / name)


def edit(name: str, change: Callable[[bytes], bytes]) -> Damage:
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes()))


def edit_json(name: str, change: Callable[[dict[str, Any]], Any]) -> Damage:
    def apply(content: bytes) -> bytes:
        value = json.loads(content)
        change(value)
        return json.dumps(value).encode()

    return edit(name, apply)


def replace(name: str, by: Callable[[Path, Path], Any]) -> Damage:
    """Move a file or folder out of the package, and put something else in its place."""

    def apply(folder: Path) -> None:
        moved = folder.parent / "moved"
        shutil.move(folder / name, moved)
        by(folder / name, moved)

    return apply


def fifo(path: Path, _: Path) -> None:
    os.mkfifo(path)


def remove(name: str) -> Damage:
    return lambda folder: (folder / name).unlink()


def make_large(name: str, size: int) -> Damage:
    return lambda folder: os.truncate(folder / name, size)


def swap(one: str, other: str) -> Damage:
    def apply(folder: Path) -> None:
        first, second = (folder / one).read_bytes(), (folder / other).read_bytes()
        (folder / one).write_bytes(second)
        (folder / other).write_bytes(first)

    return apply


def tensors(change: Callable[[dict[str, torch.Tensor]], Any], name: str = WEIGHTS_AT) -> Damage:
    def apply(folder: Path) -> None:
        content = load_file(folder / name)
        change(content)
        save_file(content, folder / name)

    return apply


def header(change: Callable[[dict[str, Any]], Any] | Callable[[bytes], bytes], raw: bool = False) -> Damage:
    """Change the header of model.safetensors, as JSON or as bytes, and leave the data."""

    def apply(content: bytes) -> bytes:
        (size,) = struct.unpack("<Q", content[:8])
        old, data = content[8 : 8 + size], content[8 + size :]
        value = json.loads(old)
        new = change(old) if raw else (change(value), json.dumps(value).encode())[1]
        return struct.pack("<Q", len(new)) + new + data

    return edit(WEIGHTS_AT, apply)


def bytecode(folder: Path) -> None:
    here = folder / "code/vaeline/__pycache__"
    here.unlink()
    here.mkdir()
    (here / "models.cpython-311.pyc").write_bytes(code(folder))


NESTED = b"[" * 100_000 + b"]" * 100_000
PARTS = {"weights": WEIGHTS_AT, "config": CONFIG_AT, "manifest": MANIFEST, "signature": SIGNATURE}
DAMAGED: dict[str, Damage] = {  # done to a package whose manifest and signature stay as they were
    **{f"link in place of the {part}": replace(name, Path.symlink_to) for part, name in PARTS.items()},
    **{f"pipe in place of the {part}": replace(name, fifo) for part, name in PARTS.items()},
    **{f"empty {part}": put(name, b"") for part, name in PARTS.items()},
    **{f"cut {part}": edit(name, lambda old: old[:-1]) for part, name in PARTS.items()},
    **{f"longer {part}": edit(name, lambda old: old + b"\0") for part, name in PARTS.items()},
    **{f"{part} removed": remove(name) for part, name in PARTS.items()},
    "pickle in place of the weights": put(WEIGHTS_AT, pickled),
    "torch archive in place of the weights": put_torch(WEIGHTS_AT),
    "pickle added": put("artifacts/model/model.pkl", pickled),
    "pt2 archive added": put_torch("model.pt2"),
    "code added": put("code/vaeline/extra.py", code),
    "module that hides another added": put("code/torch.py", code),
    "bytecode added": bytecode,
    "sitecustomize added": put("sitecustomize.py", code),
    "model code changed": put("pyfunc.py", code),
    "library code changed": edit("code/vaeline/serving/model_files.py", lambda old: old + b"\n"),
    "another loader module": edit("MLmodel", lambda old: old.replace(b"mlflow.pyfunc.loaders.code_model", b"evil")),
    "another requirement": edit("requirements.txt", lambda old: old + b"evil==1.0\n"),
    "link in place of a folder": replace("code", Path.symlink_to),
    "link in place of the model's folder": replace("artifacts/model", Path.symlink_to),
    "link to nowhere added": lambda folder: (folder / "more.txt").symlink_to("/nowhere"),
    "link to a device": replace(WEIGHTS_AT, lambda path, _: path.symlink_to("/dev/zero")),
    "pipe added": lambda folder: os.mkfifo(folder / "more.txt"),
    "pipe that MLflow might have left": lambda folder: os.mkfifo(folder / LEFT_BY_MLFLOW),
    "folder in place of the weights": replace(WEIGHTS_AT, lambda path, _: path.mkdir()),
    "folder in place of the manifest": replace(MANIFEST, lambda path, _: path.mkdir()),
    "empty folder added": lambda folder: (folder / "more").mkdir(),
    "environment removed": remove("conda.yaml"),
    "manifest and signature removed": lambda folder: (remove(MANIFEST)(folder), remove(SIGNATURE)(folder)),
    "files swapped": swap("conda.yaml", "python_env.yaml"),
    "weights and config swapped": swap(WEIGHTS_AT, CONFIG_AT),
    "hidden file added": put(".hidden", b""),
    "file with an odd name added": put("a\nb.txt", b""),
    "file with an odd name in bytes added": lambda folder: Path(os.fsdecode(bytes(folder) + b"/\xff.txt")).touch(),
    "what MLflow leaves, but large": put(LEFT_BY_MLFLOW, b"a" * 10_000),
    "what MLflow leaves, but elsewhere": put(f"artifacts/{LEFT_BY_MLFLOW}", b"model_name: a\n"),
    "config of another model": edit_json(CONFIG_AT, lambda c: c["data"].update(source="mnist")),
    "config of 100 MB": make_large(CONFIG_AT, 100 << 20),
    "weights of a terabyte": make_large(WEIGHTS_AT, 1 << 40),
    "manifest of 100 MB": make_large(MANIFEST, 100 << 20),
    "another name": edit_json(MANIFEST, lambda m: m.update(name="other")),
    "another serial": edit_json(MANIFEST, lambda m: m.update(serial=4)),
    "space added to the manifest": edit(MANIFEST, lambda old: old + b" "),
    "manifest made anew": reseal,
}
ALSO = ("pickle in place of the weights", "torch archive in place of the weights", "pickle added", "pt2 archive added")
RESEALED: dict[str, Damage] = {  # the attacker made the manifest fit, and no signature is asked for
    **{name: DAMAGED[name] for name in (*ALSO, "bytecode added", "config of 100 MB")},
    "shared library added": put("code/vaeline/extra.so", b"\x7fELF"),
    "huge header": edit(WEIGHTS_AT, lambda old: struct.pack("<Q", 1 << 40) + old[8:]),
    "largest header": edit(WEIGHTS_AT, lambda old: b"\xff" * 8 + old[8:]),
    "header longer than the file": edit(WEIGHTS_AT, lambda old: struct.pack("<Q", len(old) - 7) + old[8:]),
    "header of 2 MB": header(lambda old: old + b" " * (2 << 20), raw=True),
    "weights of seven bytes": put(WEIGHTS_AT, b"\2\0\0\0\0\0\0"),
    "deep header": put(WEIGHTS_AT, struct.pack("<Q", len(NESTED)) + NESTED),
    "tensor twice in the header": header(lambda old: b'{"a":1,"a":2,' + old[1:], raw=True),
    "overlapping tensors": header(lambda h: h["decoder.2.bias"].update(data_offsets=[0, 80])),
    "tensor beyond the end": header(lambda h: h[NAME].update(data_offsets=[1 << 40, (1 << 40) + 32])),
    "tensor of negative size": header(lambda h: h[NAME].update(data_offsets=[32, 0])),
    "shape that overflows": header(lambda h: h[NAME].update(shape=[1 << 62, 1 << 62])),
    "dtype that torch lacks": header(lambda h: h[NAME].update(dtype="F4")),
    "unknown dtype": header(lambda h: h[NAME].update(dtype="pickle")),
    "tensor with an odd name": tensors(lambda t: t.update({"a\nb\x1b[2J" * 99: torch.ones(1)})),
    "odd name of a wrong tensor": header(lambda h: h.update({"a\nb": {**h[NAME], "data_offsets": [1, 2]}})),
    "header is a list": put(WEIGHTS_AT, struct.pack("<Q", 2) + b"[]"),
    "no tensors": put(WEIGHTS_AT, save({})),
    "weights not a number": tensors(lambda t: t[NAME].fill_(torch.nan)),
    "weights infinite": tensors(lambda t: t[NAME].fill_(torch.inf)),
    "weights of another dtype": tensors(lambda t: t.update({NAME: t[NAME].double()})),
    "weights of half the size": tensors(lambda t: t.update({NAME: t[NAME].half()})),
    "weights of another shape": tensors(lambda t: t.update({NAME: torch.ones(3)})),
    "tensor missing": tensors(lambda t: t.pop(NAME)),
    "tensor too many": tensors(lambda t: t.update(more=torch.ones(1))),
    "deep config": put(CONFIG_AT, NESTED),
    "key twice in the config": edit(CONFIG_AT, lambda old: b'{"format": 1,' + old[1:]),
    "config that is not a number": edit(CONFIG_AT, lambda old: old.replace(b'"scale_factor": null', b"") + b"NaN"),
    "infinite scale": edit_json(CONFIG_AT, lambda c: c.update(scale_factor=float("inf"))),
    "config in UTF-16": edit(CONFIG_AT, lambda old: old.decode().encode("utf-16")),
    "config is a list": put(CONFIG_AT, b"[]"),
    "unknown key in the config": edit_json(CONFIG_AT, lambda c: c["model"].update({"a\nb\x1b[2J": 1})),
    "layers by the thousand": edit_json(CONFIG_AT, lambda c: c["model"]["network"].update(hidden=[1] * 4000)),
    "a hundred layers": edit_json(CONFIG_AT, lambda c: c["model"]["network"].update(hidden=[1] * 100)),
    "config of gigabytes": edit_json(CONFIG_AT, lambda c: c["model"].update(latent_dim=65536)),
    "config of a terabyte": edit_json(CONFIG_AT, lambda c: c["model"]["network"].update(hidden=[65536] * 90)),
    "larger images than any data": edit_json(CONFIG_AT, lambda c: c.update(shape=[1, 65536, 65536])),
    "largest config": edit_json(
        CONFIG_AT,
        lambda c: (c.update(shape=[4, 4096, 4096]), c["model"].update(prior={"kind": "vamp", "components": 65536})),
    ),
    "config of another objective": edit_json(CONFIG_AT, lambda c: c.update(objective="autoencoder")),
}
MANIFESTS: dict[str, Damage] = {  # the files are as they were, the manifest is not
    "path upwards": lambda folder: reseal(folder, lambda m: m["files"].update({"../moved.txt": ENTRY})),
    "absolute path": lambda folder: reseal(folder, lambda m: m["files"].update({"/etc/hostname": ENTRY})),
    "path upwards inside": lambda folder: reseal(folder, lambda m: m["files"].update({"code/../MLmodel": ENTRY})),
    "doubled slash": lambda folder: reseal(folder, lambda m: m["files"].update({"code//a.py": ENTRY})),
    "file that is not there": lambda folder: reseal(folder, lambda m: m["files"].update({"more.txt": ENTRY})),
    "model not listed": lambda folder: reseal(folder, lambda m: m["files"].pop(CONFIG_AT)),
    "digest in capitals": lambda folder: reseal(folder, lambda m: m.update(model_digest=m["model_digest"].upper())),
    "digest of another model": lambda folder: reseal(folder, lambda m: m.update(model_digest="0" * 64)),
    "digest of other data": lambda folder: reseal(folder, lambda m: m.update(data_digest="0" * 64)),
    "size below zero": lambda folder: reseal(folder, lambda m: m["files"]["MLmodel"].update(size=-1)),
    "size beyond the file": lambda folder: reseal(folder, lambda m: m["files"]["MLmodel"].update(size=1 << 50)),
    "unknown key": lambda folder: reseal(folder, lambda m: m["files"]["MLmodel"].update(run="rm")),
    "serial zero": lambda folder: reseal(folder, lambda m: m.update(serial=0)),
    "another format": lambda folder: reseal(folder, lambda m: m.update(format=2)),
    "signer without signature": lambda folder: reseal(folder, lambda m: m.update(signer="0" * 64)),
    "no files": lambda folder: reseal(folder, lambda m: m.update(files={})),
    "files as a list": lambda folder: reseal(folder, lambda m: m.update(files=[])),
    "deep": put(MANIFEST, NESTED),
    "name twice": lambda folder: (reseal(folder), edit(MANIFEST, lambda old: b'{"name": "a",' + old[1:])(folder)),
    "no JSON": put(MANIFEST, b"\x80\x04."),
    "JSON, but a number": put(MANIFEST, b"1"),
}
ENTRY = {"sha256": "0" * 64, "size": 1}
