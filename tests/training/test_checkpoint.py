import fcntl
import logging
import os
import resource
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch

from small_training import CPU
from vaeline.config import parse_params
from vaeline.errors import UserError
from vaeline.io.yaml_config import read_yaml
from vaeline.training import checkpoint
from vaeline.training.checkpoint import Checkpoint, training_key

CONTENT = read_yaml(Path(__file__).parents[2] / "params.yaml")


def numbered(step: int) -> Checkpoint:
    return Checkpoint({"weights": torch.full((1000,), float(step)), "count": torch.tensor(step)}, {"step": step})


def newest(folder: Path) -> int | None:
    found = checkpoint.read(folder)
    return None if found is None else found.progress["step"]


def test_a_checkpoint_anywhere_gives_back_tensors_and_progress_to_the_last_bit(tmp_path: Path):
    assert checkpoint.read(tmp_path / "absent") is None
    tensors = {"a": torch.randn(3, 4), "b": torch.tensor(1 / 3, dtype=torch.float64), "c": torch.arange(5)}
    progress = {"step": 7, "rows": [{"elbo": -1 / 3, "kl": None}]}
    with TemporaryDirectory(dir="/tmp") as shallow:
        for folder in (tmp_path, Path(shallow)):
            checkpoint.write(folder, 7, Checkpoint(tensors, progress))
            found = checkpoint.read(folder)
            assert (found.progress, found.tensors.keys()) == (progress, tensors.keys())
            assert all(torch.equal(tensor, found.tensors[name]) for name, tensor in tensors.items())


def test_mistake_18_the_last_two_are_kept_and_the_newest_is_read(tmp_path: Path):
    for step in (1, 5, 10, 200):
        checkpoint.write(tmp_path, step, numbered(step))
    assert newest(tmp_path) == 200
    assert sorted(path.name[:17] for path in tmp_path.iterdir()) == ["step-000000000010", "step-000000000200"]


@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_a_damaged_checkpoint_is_passed_over_with_a_line(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture):
    for step in (1, 2):
        checkpoint.write(tmp_path, step, numbered(step))
    path = max(tmp_path.iterdir())
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes({"flip": bytes(content), "cut": bytes(content[:-1]), "empty": b""}[damage])
    with caplog.at_level(logging.WARNING):
        assert newest(tmp_path) == 1
    assert f"{path}: is damaged" in caplog.text


def test_what_a_crash_or_a_full_disk_left_half_written_does_not_count(tmp_path: Path):
    checkpoint.write(tmp_path, 1, numbered(1))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
        with pytest.raises(OSError, match=r"."):
            checkpoint.write(tmp_path, 2, numbered(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert len(list(tmp_path.iterdir())) == 1
    (tmp_path / ".step.4999999-4999999.part").write_bytes(b"half")
    assert newest(tmp_path) == 1
    checkpoint.write(tmp_path, 2, numbered(2))
    assert not (tmp_path / ".step.4999999-4999999.part").exists()


def test_a_repository_that_was_moved_meanwhile_is_not_begun_anew_where_it_was(tmp_path: Path):
    folder = tmp_path / "repository/.vaeline/checkpoints/key"
    folder.mkdir(parents=True)
    checkpoint.write(folder, 1, numbered(1))
    (tmp_path / "repository").rename(tmp_path / "moved")
    with pytest.raises(UserError, match="repository: was moved or deleted; run again where it is now"):
        checkpoint.write(folder, 2, numbered(2))
    assert [path.name for path in tmp_path.iterdir()] == ["moved"]


def test_a_folder_has_one_owner_at_a_time(tmp_path: Path):
    folder = tmp_path / "key"
    with checkpoint.owned(folder):
        descriptor = os.open(folder, os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        checkpoint.remove(folder)
        os.close(descriptor)
    with checkpoint.owned(folder):
        assert folder.is_dir()


def test_only_folders_that_are_old_are_removed(tmp_path: Path):
    for name in ("old", "held", "new", "going"):
        checkpoint.write(tmp_path / name, 1, numbered(1))
    for path in [*tmp_path.glob("old/*"), *tmp_path.glob("held/*"), tmp_path / "old", tmp_path / "held"]:
        os.utime(path, (time.time() - 2 * checkpoint.ABANDONED_S,) * 2)
    (tmp_path / "going" / "just renamed").symlink_to("gone")  # as if another training had taken it away meanwhile
    with checkpoint.owned(tmp_path / "held"):  # the clock was set forward
        checkpoint.drop_abandoned(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["going", "held", "new"]


def key(section: str = "sample", data: str = "d", initial: Any = None, **changes: Any) -> str:
    return training_key(parse_params(CONTENT | {section: CONTENT[section] | changes}), data, CPU, initial=initial)


def test_a_training_is_named_by_its_params_data_machine_and_code(monkeypatch: pytest.MonkeyPatch):
    keys = [key(), key("model", latent_dim=7), key("train", beta=4.0), key(data="e"), key(initial={"a": "1"})]
    assert key() == key("sample", rows=3) == keys[0]  # what training does not read
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "identity", lambda *_: {"threads": 3})
        keys.append(key())
    monkeypatch.setattr(checkpoint, "SOURCES", checkpoint.SOURCES[1:])
    assert len({*keys, key()}) == 7
    lpips = [
        {"kind": "vgg16", "weight": weight, "weights": path} for weight, path in ((1.0, "a"), (1.0, "b"), (2.0, "a"))
    ]
    here, elsewhere, heavier = (key("train", perceptual=section) for section in lpips)
    assert here == elsewhere != heavier, "where the file lies does not matter"
