"""A repository whose stages are lines of shell, for whole sweeps in seconds."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.sweep.process import Baseline
from pipeline.sweep.study import Request, Sweep
from vaeline.io.workspace import Workspace
from vaeline.io.yaml_config import read_yaml
from workspaces import ROOT, commit, make_toy

PARAMS: Any = read_yaml(ROOT / "params.yaml")
GRID = Request(["train.beta=0.5,1", "model.latent_dim=2,8"])
STAGES = """
stages:
  prepare:
    {cmd: sh prepare.sh, deps: [seed.txt, prepare.sh], params: [data], outs: [data.txt]}
  train:
    {cmd: sh train.sh, deps: [data.txt, train.sh], params: [model, train], outs: [models]}
  evaluate:
    {cmd: sh evaluate.sh, deps: [models, evaluate.sh], metrics: [reports/metrics.json]}
  register:
    {cmd: 'cp models/model.safetensors registered.txt', deps: [models, reports/metrics.json], outs: [registered.txt]}
"""
PREPARE = 'echo once >> "$REPOSITORY/prepared"; cp seed.txt data.txt'
# beta 3 fails; the sweep's name and the cores come by the environment
TRAIN = """
beta=$(sed -n 's/^  beta: \\([^ ]*\\).*/\\1/p' params.yaml)
sweep=$(echo "$VAELINE_RUN_CONTEXT" | sed -n 's/.*"sweep": "\\([^"]*\\)".*/\\1/p')
echo "$beta $sweep $VAELINE_THREADS $DVC_EXP_NAME" >> "$REPOSITORY/trained"
[ "$beta" != 3 ] || { echo "error: training diverged at step 2" >&2; exit 1; }
[ ! -e "$REPOSITORY/hang" ] || { echo waiting $$; sleep 300; }
mkdir -p models; echo "$beta" > models/model.safetensors; echo '{}' > models/config.json
"""
EVALUATE = """
mkdir -p reports
echo '{"test": {"elbo": '-"$(cat models/model.safetensors)"', "kl": 1, "reconstruction": -1}}' > reports/metrics.json
"""
IGNORED = "/.vaeline/ /data.txt /models/ /reports/ /registered.txt /prepared /trained /hang"


def make_sweep(folder: Path, request: Request = GRID, **baseline: Any) -> Sweep:
    """A sweep on a baseline that is no commit, its study in `folder`; not begun."""
    start = Baseline(**{"commit": "c" * 40, "stash": "", "changes": "", "params": PARAMS, **baseline})
    return Sweep(Workspace(folder, folder), "s", request, start, f"sqlite:///{folder}/study.db")


def make_scored_sweep(folder: Path, metric: str = "test.elbo") -> Sweep:
    """Four trials: the second has the best ELBO, the third failed."""
    sweep = make_sweep(folder, Request(GRID.assignments, metric=metric))
    sweep.begin()
    for elbo in (-3.25, -1.123456789012345, None, -2.0):
        trial = sweep.next_trial()
        assert trial
        if elbo is None:
            sweep.finish(trial.number, {"reason": "diverged | at step 2"})
            continue
        kl = 0.25 * (1 + trial.number)
        metrics = {"test.elbo": elbo, "test.kl": kl, "test.reconstruction": elbo + kl, "test.nll": -elbo - 0.1}
        sweep.finish(trial.number, {"metrics": metrics, "seconds": 3})
    return sweep


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny repository with these stages, committed, and one change that is not; the working folder."""
    monkeypatch.setenv("REPOSITORY", str(tmp_path))
    monkeypatch.chdir(make_toy(tmp_path))
    texts = {"dvc.yaml": STAGES, "prepare.sh": PREPARE, "train.sh": TRAIN, "evaluate.sh": EVALUATE}
    texts |= {".gitignore": IGNORED.replace(" ", "\n") + "\n", ".dvcignore": ".vaeline/\n"}
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    commit(tmp_path)
    (tmp_path / "seed.txt").write_text("another seed, uncommitted")
    return tmp_path
