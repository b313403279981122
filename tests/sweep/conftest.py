"""A repository whose stages are lines of shell, for whole sweeps in seconds."""

from pathlib import Path

import pytest

from workspaces import execute

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


@pytest.fixture
def repository(toy: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny repository with these stages, committed, and one change that is not."""
    monkeypatch.setenv("REPOSITORY", str(toy))
    (toy / "dvc.yaml").write_text(STAGES)
    (toy / "prepare.sh").write_text(PREPARE)
    (toy / "train.sh").write_text(TRAIN)
    (toy / "evaluate.sh").write_text(EVALUATE)
    ignored = ["/.vaeline/", "/data.txt", "/models/", "/reports/", "/registered.txt", "/prepared", "/trained", "/hang"]
    (toy / ".gitignore").write_text("\n".join(ignored) + "\n")
    (toy / ".dvcignore").write_text(".vaeline/\n")
    execute("git", "add", "-A", cwd=toy)
    execute("git", "commit", "-qm", "Start", cwd=toy)
    (toy / "seed.txt").write_text("another seed, uncommitted")
    return toy
