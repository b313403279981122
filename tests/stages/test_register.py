"""Stage `register`: its run, its evidence, and its errors."""

from pathlib import Path

import pytest

from pipeline.stages import register as stage
from registry_fixture import NAME
from uploads import is_free, until
from vaeline.config import read_params
from vaeline.errors import UserError
from vaeline.evaluation.metrics_file import read_metrics
from vaeline.io.workspace import current_workspace
from vaeline.registry.versions import find_version
from vaeline.serving.model_files import load_model
from vaeline.tracking.connection import connect
from vaeline.tracking.provenance import run_start
from vaeline.tracking.runs import open_training_run


def test_the_version_belongs_to_the_run_of_the_training_that_an_uploader_still_follows(
    evaluated: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("VAELINE_UPLOADER")
    workspace = current_workspace()
    with open_training_run(workspace, "key", run_start(workspace, read_params(workspace.params))) as run:
        run.metrics({"train/elbo": -3.0}, 7)
        run.finish_training(load_model(Path("models")).digest)
        until(lambda: not is_free(run.outbox))
        stage.main()
        client = connect(workspace)
        version = find_version(client, NAME, 1)
        assert version.tags["vaeline.decision"] == "promoted"
        (point,) = client.get_metric_history(version.run_id, "train/elbo")
        assert (point.step, point.value) == (7, -3.0)
    until(lambda: is_free(run.outbox) and run.outbox.is_sent())


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot be read"),
        ("{", "is not JSON"),
        ("[]", "is not what the stage evaluate writes"),
        ('{"test": {"active_units": 3}}', "validation/elbo: is no number"),
        ('{"validation": {"elbo": "x"}, "test": {"active_units": 3}}', "validation/elbo: is no number"),
        ('{"validation": {"elbo": -1.0}, "test": {"active_units": null}}', "test/active_units: is no number"),
    ],
)
def test_wrong_metrics_are_reported_in_one_line(evaluated: Path, content: str | None, words: str):
    path, loaded = Path("reports/metrics.json"), load_model(Path("models"))
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(UserError, match=rf"^reports/metrics\.json: {words}.*$"):
        stage.gather_evidence(loaded, read_metrics(path))
