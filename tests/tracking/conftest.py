import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from packages import make_keys, make_package
from PIL import Image

from vaeline import config
from vaeline.tracking.provenance import RunStart
from vaeline.tracking.store import connect

ROOT = Path(__file__).parents[2]
START = RunStart("experiment", "run", {"train.beta": "1.0"}, {"vaeline.data_digest": "d" * 64})


@pytest.fixture
def start() -> RunStart:
    return START


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty repository as the working directory; no shipper is started in it."""
    monkeypatch.chdir(tmp_path)
    enter(monkeypatch, tmp_path)
    monkeypatch.setenv("VAELINE_SHIPPER", "off")
    return tmp_path


def enter(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    """Let `root` own the tracking store. MLflow writes the address into the environment; that is undone too."""
    monkeypatch.setenv("DVC_ROOT", str(root))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated MLflow database, made once: the migration takes seconds."""
    folder = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patch:
        enter(patch, folder)
        connect()
    return folder / ".vaeline" / "mlflow.db"


@pytest.fixture
def store(repository: Path, empty_store: Path) -> Path:
    """The repository's tracking store, migrated and empty."""
    target = repository / ".vaeline" / "mlflow.db"
    target.parent.mkdir()
    shutil.copy(empty_store, target)
    return target


@pytest.fixture(scope="session")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Makes a folder with what the stages before `register` leave behind, around a tiny untrained model."""

    def make(seed: int = 1, validation_elbo: float = -10.0, folder: Path | None = None) -> Path:
        from vaeline.models import build_model, save_model

        root = folder or tmp_path_factory.mktemp("outputs")
        section = config.Model(
            latent_dim=3,
            network=config.Mlp(kind="mlp", hidden=[8]),
            likelihood=config.Gaussian(kind="gaussian"),
        )
        identity = {"digest": "d" * 64, "source": "digits", "binarise": "none"}
        described = {"model": section.model_dump(), "objective": "elbo", "data": identity}
        save_model(root / "models", build_model(section, (1, 5, 4), "elbo", seed=seed), described)
        shutil.copy(ROOT / "params.yaml", root)
        prepared, reports = root / "data" / "prepared", root / "reports"
        prepared.mkdir(parents=True, exist_ok=True)
        reports.mkdir(exist_ok=True)
        pixels = np.random.default_rng(0).integers(0, 256, (20, 1, 5, 4), dtype=np.uint8)
        np.save(prepared / "test.npy", pixels)
        manifest = {"format": 1, "shape": [1, 5, 4], "splits": {"train": {"count": 40}, "test": {"count": 20}}}
        (prepared / "manifest.json").write_text(json.dumps(manifest))
        metrics = {"validation": {"elbo": validation_elbo}, "test": {"elbo": -11.0, "active_units": 3}}
        (reports / "metrics.json").write_text(json.dumps(metrics))
        (reports / "history.csv").write_text(
            "epoch,step,train_elbo,validation_elbo,sigma\n1,10,-5,-6,0.3\n2,20,-4,-5,0.2\n"
        )
        (reports / "samples").mkdir(exist_ok=True)
        Image.new("L", (8, 8)).save(reports / "samples" / "prior_samples.png")
        return root

    return make


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
    """A copy of the signed package, to be spoilt."""
    return shutil.copytree(sealed / "package", tmp_path / "package")
