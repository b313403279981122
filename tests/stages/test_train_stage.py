"""The stage as DVC runs it: a process of its own in a folder of its own."""

import hashlib
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
import yaml
from diffusers import AutoencoderKL
from safetensors.torch import load_file

from model_sections import AUTOENCODER_KL
from pipeline.stages import train
from train_stage import COMMAND, OUTPUTS, edit, environment, outputs, run, start, steps, workspace  # noqa: F401
from uploads import outbox_events, outbox_runs
from vaeline.config import AutoencoderKl
from vaeline.config.train import INIT_WEIGHTS, Diffusers
from vaeline.core.autoencoder_kl import to_diffusers
from vaeline.data.fetch import fetch_init
from vaeline.io.digests import file_digest
from vaeline.io.workspace import Workspace
from vaeline.serving.model_files import load_model
from vaeline.training.build import kl_sizes


def test_mistake_11_the_stage_writes_its_outputs_without_a_test_split(workspace: Path):
    """Mistake 2: the test split used for validation."""
    more = environment(VAELINE_LOG_EVERY="5")
    done = subprocess.run(COMMAND, cwd=workspace, env=more, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
    assert "epoch 3/3: ELBO" in done.stderr
    assert "images/s" in done.stderr
    data = load_model(workspace / "models").config.data
    manifest = workspace / "data" / "prepared" / "manifest.json"
    assert (data.source, data.digest) == ("bumps", file_digest(manifest))
    history = (workspace / "reports" / "history.csv").read_bytes()
    assert len(history.splitlines()) == 4
    assert not list((workspace / ".vaeline" / "checkpoints").iterdir())
    events = outbox_events(workspace)
    kinds = [event["kind"] for event in events]
    assert (kinds[0], kinds[-1], events[-1]["status"], kinds.count("image")) == ("start", "end", "FINISHED", 3)
    names = {name for event in events if event["kind"] == "metrics" for name in event["values"]}
    assert {"train/elbo", "train/images_per_second", "validation/elbo", "train/sigma"} <= names

    shutil.rmtree(workspace / "models")  # DVC was killed before it wrote its lock, and removes the outputs
    assert run(workspace).returncode == 0
    assert len(outbox_runs(workspace)) == 1, "the same run again"
    out = {"path": "reports/history.csv", "md5": hashlib.md5(history).hexdigest()}
    (workspace / "dvc.lock").write_text(yaml.safe_dump({"stages": {"train": {"outs": [out]}}}))
    assert run(workspace).returncode == 0
    assert len(outbox_runs(workspace)) == 2, "another run"


def test_terminated_or_killed_the_stage_writes_nothing_and_goes_on_to_the_same_bytes(workspace: Path):
    edit(workspace, "train", epochs=30, patience=30)
    for code in (143, -signal.SIGKILL):
        seen = steps(workspace)
        process = start(workspace, VAELINE_CHECKPOINT_SECONDS="0")
        while not steps(workspace) - seen:
            assert process.is_alive()
            time.sleep(0.02)
        process.terminate() if code == 143 else process.kill()
        process.join(60)
        assert process.exitcode == code
        assert not (workspace / "models").exists()
    resumed = run(workspace)
    assert resumed.returncode == 0
    assert "resuming at step" in resumed.stderr
    after = outputs(workspace)
    assert not list((workspace / ".vaeline" / "checkpoints").iterdir())
    for name in ("models", "reports"):  # as DVC does before it runs a stage
        shutil.rmtree(workspace / name)
    whole = run(workspace)
    assert whole.returncode == 0
    assert "resuming" not in whole.stderr
    assert outputs(workspace) == after


def test_mistake_18_checkpoints_stay_until_the_result_is_in_place(workspace: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: object) -> None:
        raise OSError("no space left")

    for name, value in environment(VAELINE_CHECKPOINT_SECONDS="0").items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(workspace)
    for writer in ("save_model", "write_file"):
        with monkeypatch.context() as patch, pytest.raises(OSError, match="no space left"):
            patch.setattr(train, writer, full)
            train.main()
        assert steps(workspace)
    train.main()
    assert not steps(workspace)


def test_ctrl_c_while_libraries_are_imported_leaves_no_traceback(workspace: Path):
    process = subprocess.Popen(COMMAND, cwd=workspace, env=environment(), stderr=subprocess.PIPE, text=True)
    while "libtorch" not in Path(f"/proc/{process.pid}/maps").read_text():
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode in (-signal.SIGINT, 130)
    assert "Traceback" not in said


@pytest.mark.slow
def test_a_first_stage_starts_from_what_fetch_has_copied_and_says_the_scale_of_its_latents(workspace: Path):
    params = yaml.safe_load((workspace / "params.yaml").read_text())
    params["data"]["source"] = {"kind": "npz", "path": "bumps.npz"}
    params["model"] = {"latent_dim": 16, "network": AUTOENCODER_KL, "likelihood": {"kind": "laplace"}}
    params["train"] |= {"epochs": 1, "only": "decoder", "init": {"kind": "diffusers", "path": "theirs"}}
    (workspace / "params.yaml").write_text(yaml.safe_dump(params))
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        section = AutoencoderKl(**AUTOENCODER_KL)
        AutoencoderKL(**kl_sizes(section).arguments((1, 8, 8))).save_pretrained(workspace / "theirs")
        fetch_init(Diffusers(kind="diffusers", path="theirs"), None, Workspace(workspace, workspace))
        done = run(workspace)
        assert done.returncode == 0, done.stderr
        loaded, theirs = load_model(workspace / "models"), load_file(workspace / "theirs" / INIT_WEIGHTS)
        ours = to_diffusers(loaded.vae.state_dict())
        assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items() if name.startswith("encoder."))
        assert loaded.config.scale_factor > 0 and loaded.config.shift_factor != 0
        found.append(loaded.digest)
    assert found[0] != found[1]
