import logging
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from uploads import DIGEST, later_stage, outbox_runs, train
from vaeline.io.workspace import current_workspace
from vaeline.tracking.outbox import Event, RunOutbox
from vaeline.tracking.runs import RunTracker, latest_artifact


def events(run: RunTracker, *kinds: str) -> list[Event]:
    return [event for _, event in run.outbox.read() if event["kind"] in kinds]


def grey(value: int) -> np.ndarray:
    return np.full((2, 2), value, np.uint8)


@pytest.fixture
def run(repository: Path) -> RunTracker:
    return train()


@pytest.fixture
def finished(run: RunTracker) -> RunTracker:
    run.finish_training(DIGEST)
    run.close()
    return run


def test_a_training_reports_metrics_pictures_files_and_its_end(run: RunTracker, repository: Path):
    picture = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    run.metrics({"train/elbo": -3.5, "train/kl": np.float32(2)}, 10)
    run.metrics({"train/elbo": math.nan, "train/kl": -math.inf}, 11)
    run.image("samples", picture, 10)
    for text in ("first", "notes"):
        (repository / "notes.txt").write_text(text)
        run.artifact(repository / "notes.txt", "texts")
    run.finish_training(DIGEST)
    run.close()
    kinds = [event["kind"] for _, event in run.outbox.read()]
    assert kinds == ["start", "metrics", "metrics", "image", "artifact", "artifact", "tags", "end"]
    first, second = (event["values"] for event in events(run, "metrics"))
    assert first == {"train/elbo": -3.5, "train/kl": 2.0}
    assert math.isnan(second["train/elbo"])
    assert second["train/kl"] == -math.inf
    image, _, artifact, tags, end = events(run, "image", "artifact", "tags", "end")
    (repository / "picture.png").write_bytes(run.outbox.file(image["digest"]))
    with Image.open(repository / "picture.png") as stored:
        assert np.array_equal(np.array(stored), picture)
    assert (artifact["folder"], artifact["name"]) == ("texts", "notes.txt")
    assert run.outbox.file(artifact["digest"]) == b"notes"
    assert latest_artifact(current_workspace(), "key", "notes.txt") == b"notes"
    assert latest_artifact(current_workspace(), "other", "notes.txt") is None
    assert (tags["values"], end["status"]) == ({"vaeline.model_digest": DIGEST}, "FINISHED")


def test_a_resumed_training_goes_on_without_repeating_a_point(run: RunTracker):
    """Mistake 16: the first value of a step stays."""
    for status, steps, speed in (("KILLED", (1, 2, 3), 100.0), ("FINISHED", (2, 3, 4), 200.0)):
        tracker = run if status == "KILLED" else train()
        assert tracker.outbox == run.outbox
        for step in steps:
            tracker.metrics({"train/elbo": float(step), "train/images_per_second": speed + step}, step)
            tracker.image("samples", grey(step), step)
        tracker.close(status)
    points = [(event["step"], event["values"]["train/images_per_second"]) for event in events(run, "metrics")]
    assert points == [(1, 101.0), (2, 102.0), (3, 103.0), (4, 204.0)]
    assert [event["step"] for event in events(run, "image")] == [1, 2, 3, 4]
    assert [e["kind"] for e in events(run, "start", "end", "resume")] == ["start", "end", "resume", "end"]
    assert run.outbox.status() == "FINISHED"


def test_a_finished_training_repeated_is_a_new_run_unless_it_resumes(finished: RunTracker):
    with train(resume=True) as resumed:
        assert resumed.outbox == finished.outbox
    with train() as repeated:
        assert repeated.outbox.name == "key-2"


@pytest.mark.parametrize(
    ("error", "status"),
    [(None, "FINISHED"), (ValueError(), "FAILED"), (SystemExit(1), "FAILED"), (SystemExit(143), "KILLED")],
)
def test_how_the_block_ends_is_how_the_run_ends(run: RunTracker, error: BaseException | None, status: str):
    try:
        with run:
            if error is not None:
                raise error
    except BaseException as raised:
        assert raised is error
    assert [event["status"] for event in events(run, "end")] == [status]


def test_a_later_stage_corrects_values_of_the_latest_run_of_its_model_and_leaves_its_status_alone(finished: RunTracker):
    with train("other") as other:
        other.finish_training(DIGEST)
    for nll in (99.0, 99.0, 98.0):
        with pytest.raises(ValueError, match="stage"), later_stage() as later:
            later.metrics({"test/nll": nll})
            later.image("samples/prior", grey(int(nll)), 0)
            raise ValueError("stage")
        assert later.outbox == other.outbox
    assert other.outbox.status() == "FINISHED"
    assert [(e["step"], e["values"]["test/nll"]) for e in events(other, "metrics")] == [(0, 99.0), (0, 98.0)]
    assert len(events(other, "image")) == 2


def test_without_a_local_run_one_is_made_from_the_outputs_whole_or_not_at_all(
    repository: Path, outputs: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
):
    outputs(folder=repository)
    append = RunOutbox.append

    def interrupted(run: RunOutbox, kind: str, content: bytes | None = None, **fields: object) -> None:
        append(run, kind, content, **fields)
        if kind == "image":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunOutbox, "append", interrupted)
        with pytest.raises(KeyboardInterrupt):
            later_stage()
    assert outbox_runs(repository) == []
    with later_stage() as first, later_stage() as second:
        pass
    assert first.outbox == second.outbox
    begin, *points, image = (event for _, event in first.outbox.read())
    assert begin["model"] == begin["tags"]["vaeline.model_digest"] == DIGEST
    assert [
        (e["step"], *(e["values"][name] for name in ("train/elbo", "validation/elbo", "train/sigma")))
        for e in points[:-1]
    ] == [(10, -5.0, -6.0, 0.3), (20, -4.0, -5.0, 0.2)]
    assert points[-1]["step"] == 0
    assert points[-1]["values"] == {"test/elbo": -11.0, "test/active_units": 3.0}
    assert image["key"] == "prior_samples"
    assert {event["when"] for event in (*points, image)} == {"created"}


def test_broken_outputs_do_not_stop_a_later_stage(repository: Path, caplog: pytest.LogCaptureFixture):
    (repository / "reports").mkdir()
    (repository / "reports" / "history.csv").write_text("epoch,step,train_elbo\n1,ten,x\n")
    with later_stage():
        pass
    assert "not all of it taken" in caplog.text


@pytest.mark.parametrize("fault", ["full disk", "no folder"])
def test_a_fault_of_the_disk_costs_no_training(repository: Path, caplog: pytest.LogCaptureFixture, fault: str):
    if fault == "no folder":
        (repository / ".vaeline").write_text("not a folder")
    with caplog.at_level(logging.WARNING), train() as run:
        if fault == "full disk":
            run.outbox.outbox.execute("PRAGMA max_page_count = 1")
        run.metrics({"train/elbo": 1.0}, 1)
        run.image("samples", np.random.default_rng(1).integers(0, 255, (200, 200)).astype(np.uint8), 1)
        run.finish_training(DIGEST)
    (message,) = caplog.messages
    assert message.startswith("tracking stops, the run goes on: ")
    assert ("[Errno 28] No space left on device" in message) == (fault == "full disk")
    if fault == "no folder":
        with pytest.raises(OSError, match="directory"):
            later_stage(upload=False)
