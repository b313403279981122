"""Shared by tests of the registry: names, environment, and a registry with versions to decide on."""

import json
import math
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image

from packages import make_keys, make_package
from vaeline import config
from vaeline.io.digests import file_digest
from vaeline.io.workspace import current_workspace
from vaeline.tracking.connection import connect
from vaeline.tracking.provenance import RunStart

if TYPE_CHECKING:
    from mlflow import MlflowClient

NAME = "vaeline-fashion-mnist"
ROOT = Path(__file__).parents[2]
START = RunStart("experiment", "run", {"train.beta": "1.0"}, {"vaeline.data_digest": "d" * 64})


def enter(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    """Let `root` own the tracking store. MLflow writes the address into the environment; that is undone too."""
    monkeypatch.setenv("DVC_ROOT", str(root))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")


def patch_smoke_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """No smoke test of new packages, whose process takes six seconds: tests/registry/test_registration.py has it."""
    monkeypatch.setattr("vaeline.registry.registration.smoke_test", lambda *given: None)


@contextmanager
def entered(root: Path, store: Path | None = None) -> Iterator[pytest.MonkeyPatch]:
    """Work in `root`, which owns the tracking store, a copy of `store` if given; no uploader, no smoke test."""
    with pytest.MonkeyPatch.context() as patch:
        if store:
            (root / ".vaeline").mkdir()
            shutil.copy(store, root / ".vaeline")
        patch.chdir(root)
        enter(patch, root)
        patch_smoke_test(patch)
        patch.setenv("VAELINE_UPLOADER", "off")
        yield patch


class FilledRegistry:
    """A registry with published versions, and what tests do with it."""

    def __init__(self, client: "MlflowClient") -> None:
        from pipeline.stages.register import gate_evaluator

        self.client, self.workspace = client, current_workspace()
        evaluator = gate_evaluator(self.workspace)
        thresholds = evaluator.thresholds.model_copy(update={"minimum_active_units": 0})  # nothing is trained here
        self.evaluator = replace(evaluator, thresholds=thresholds)

    def run_gate(self, number: int, client: Any = None, evaluator: Any = None) -> Any:
        """Decide on a version as the stage does, through another client where one is given."""
        from vaeline.registry.champion import load_version, run_gate

        version, evaluator = self.client.get_model_version(NAME, str(number)), evaluator or self.evaluator
        candidate = evaluator.candidate(load_version(version).loaded)
        return run_gate(client or self.client, version, candidate, evaluator)

    def rollback(self, reason: str = "") -> tuple[str | None, str]:
        from vaeline.registry.champion import rollback

        return rollback(self.client, self.workspace, NAME, reason)

    def aliases(self) -> dict[str, str]:
        return {key: str(value) for key, value in self.client.get_registered_model(NAME).aliases.items()}

    def history(self) -> list[tuple[str, str, str | None]]:
        from vaeline.registry.champion_history import read

        entries = read(self.client.get_registered_model(NAME).tags)
        return [(entry.action, entry.version, entry.before) for entry in entries]

    def tags(self, number: int) -> dict[str, str]:
        return dict(self.client.get_model_version(NAME, str(number)).tags)

    def weights(self, number: int) -> Path:
        """The stored file of a version."""
        return self.folder(number) / "artifacts/model/model.safetensors"

    def folder(self, number: int) -> Path:
        """The package of a version."""
        return Path(unquote(self.client.get_model_version_download_uri(NAME, str(number)).removeprefix("file://")))


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty repository as the working directory; no uploader is started in it."""
    monkeypatch.chdir(tmp_path)
    enter(monkeypatch, tmp_path)
    monkeypatch.setenv("VAELINE_UPLOADER", "off")
    return tmp_path


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated MLflow database, made once: the migration takes seconds."""
    folder = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patch:
        enter(patch, folder)
        connect(current_workspace())
    return folder / ".vaeline" / "mlflow.db"


@pytest.fixture
def store(repository: Path, empty_store: Path) -> Path:
    """The repository's tracking store, migrated and empty."""
    target = repository / ".vaeline" / "mlflow.db"
    target.parent.mkdir()
    shutil.copy(empty_store, target)
    return target


@pytest.fixture
def no_smoke_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """New packages are not loaded in a fresh process."""
    patch_smoke_test(monkeypatch)


def manifest(test_sha256: str) -> dict[str, Any]:
    """Of 20 test images; the other splits' files are not there."""
    split = {"sha256": test_sha256, "mean": 0.5, "std": 0.29, "labels": False, "factors": False}
    counts = {"train": 40, "validation": 10, "test": 20}
    splits = {name: split | {"count": count} for name, count in counts.items()}
    facts = {"source": "digits", "shape": [1, 5, 4], "binarise": "none", "duplicates_dropped": 0, "classes": None}
    return {"format": 1, "splits": splits, **facts}


@pytest.fixture(scope="session")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Makes a folder with what the stages before `register` leave behind, around a tiny untrained model.

    `sigma`, in pixels, decides how good it is on its test images: 0.29 (their own spread) is about the best.
    """
    small = config.Model(
        latent_dim=3, network=config.Mlp(kind="mlp", hidden=[8]), likelihood=config.Gaussian(kind="gaussian")
    )

    def make(
        seed: int = 1,
        validation_elbo: float = -10.0,
        folder: Path | None = None,
        sigma: float | None = None,
        section: config.Model = small,
    ) -> Path:
        from vaeline.serving.model_files import save_model
        from vaeline.training.build import build_model
        from vaeline.training.history import Epoch, to_csv

        root = folder or tmp_path_factory.mktemp("outputs")
        vae = build_model(section, (1, 5, 4), "elbo", seed=seed)
        if sigma is not None:
            vae.likelihood.log_sigma.data.fill_(math.log(sigma))
        shutil.copy(ROOT / "params.yaml", root)
        prepared, reports = root / "data" / "prepared", root / "reports"
        prepared.mkdir(parents=True, exist_ok=True)
        reports.mkdir(exist_ok=True)
        pixels = np.random.default_rng(0).integers(0, 256, (20, 1, 5, 4), dtype=np.uint8)
        np.save(prepared / "test.npy", pixels)
        (prepared / "manifest.json").write_text(json.dumps(manifest(file_digest(prepared / "test.npy"))))
        identity = {"digest": file_digest(prepared / "manifest.json"), "source": "digits", "binarise": "none"}
        described = {"model": section.model_dump(), "objective": "elbo", "data": identity}
        save_model(root / "models", vae, described)
        test = {"elbo": -11.0, "active_units": 3}
        metrics = {"protocol": "grey", "validation": {"elbo": validation_elbo}, "test": test}
        (reports / "metrics.json").write_text(json.dumps(metrics))
        rows = ((1, 10, -5.0, -6.0, 0.3), (2, 20, -4.0, -5.0, 0.2))
        history = [Epoch(n, step, elbo, elbo - 1, 1.0, v, v - 1, 1.0, s, 1.0, 0.001) for n, step, elbo, v, s in rows]
        (reports / "history.csv").write_text(to_csv(history))
        (reports / "samples").mkdir(exist_ok=True)
        Image.new("L", (8, 8)).save(reports / "samples" / "prior_samples.png")
        return root

    return make


@pytest.fixture
def evaluated(store: Path, outputs: Callable[..., Path], no_smoke_test: None) -> Path:
    """A repository with a trained and evaluated model, and an empty store."""
    return outputs(folder=store.parents[1])


@pytest.fixture(scope="session")
def sealed(tmp_path_factory: pytest.TempPathFactory, outputs: Callable[..., Path]) -> Path:
    """A folder with a signed package, the key that signed it, and another one: `package`, `signer.*`, `stranger.*`."""
    root = tmp_path_factory.mktemp("sealed")
    private, _ = make_keys(root, "signer")
    make_keys(root, "stranger")
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow, of its own classes
        patch.setenv("VAELINE_SIGNING_KEY", str(private))
        make_package(root / "package", outputs() / "models")
    return root


@pytest.fixture
def package(sealed: Path, tmp_path: Path) -> Path:
    """A copy of the signed package, to be damaged."""
    return shutil.copytree(sealed / "package", tmp_path / "package")


@pytest.fixture(scope="session")
def registered_once(outputs: Callable[..., Path], empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository in which the stage `register` has made its model champion; not to be changed."""
    from pipeline.stages import register as stage

    root = tmp_path_factory.mktemp("registered")
    with entered(root, empty_store):
        outputs(folder=root)
        (root / "dvc.yaml").write_text("stages: {}")
        params = root / "params.yaml"
        params.write_text(params.read_text().replace("minimum_active_units: 2", "minimum_active_units: 0"))
        stage.main()
    return root


@pytest.fixture
def registered(registered_once: Path, repository: Path, no_smoke_test: None) -> Path:
    """The same as a repository of the test's own."""
    return shutil.copytree(registered_once, repository, dirs_exist_ok=True)


@pytest.fixture(scope="session")
def published(outputs: Callable[..., Path], empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository whose registry holds versions 1 to 4, each better than the one before, none decided on yet."""
    from pipeline.stages import register as stage
    from vaeline.evaluation.metrics_file import read_metrics
    from vaeline.registry.registration import NewModel, publish
    from vaeline.serving.model_files import load_model
    from vaeline.tracking.runs import open_model_run
    from vaeline.tracking.uploader import upload_now

    root = tmp_path_factory.mktemp("published")
    with entered(root, empty_store):
        client = connect(current_workspace())
        for seed, sigma in enumerate((1.2, 0.8, 0.5, 0.3), 1):
            outputs(seed, folder=root, sigma=sigma)
            loaded, report = load_model(root / "models"), read_metrics(root / "reports" / "metrics.json")
            with open_model_run(current_workspace(), loaded.digest, START, upload=False) as tracker:
                run_id = upload_now(tracker.outbox, client, current_workspace())
            example = np.zeros((2, 1, 5, 4), np.uint8)
            evidence = stage.gather_evidence(loaded, report)
            publish(client, NewModel(NAME, root / "models", loaded, example, evidence, run_id, ""))
    return root


@pytest.fixture
def filled(published: Path, repository: Path, monkeypatch: pytest.MonkeyPatch) -> FilledRegistry:
    """The published versions in a repository of their own, a copy."""
    shutil.copytree(published, repository, dirs_exist_ok=True)
    (repository / "dvc.yaml").write_text("stages: {}")
    return FilledRegistry(connect(current_workspace()))
