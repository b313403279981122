import logging
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from uploads import outbox_runs
from vaeline.io.workspace import current_workspace
from vaeline.tracking.outbox import Event, RunOutbox
from vaeline.tracking.provenance import RunStart
from vaeline.tracking.runs import RunTracker, latest_artifact, open_model_run, open_training_run

DIGEST = "m" * 64


def events(run: RunTracker | RunOutbox, *kinds: str) -> list[Event]:
    outbox = run if isinstance(run, RunOutbox) else run.outbox
    return [event for _, event in outbox.read() if event["kind"] in kinds]


def train(key: str, start: RunStart, **options: bool) -> RunTracker:
    return open_training_run(current_workspace(), key, start, **options)


def later_stage(start: RunStart, **options: bool) -> RunTracker:
    return open_model_run(current_workspace(), DIGEST, start, **options)


def grey(value: int) -> np.ndarray:
    return np.full((2, 2), value, np.uint8)


@pytest.fixture
def run(repository: Path, start: RunStart) -> RunTracker:
    return train("key", start)


def test_a_training_reports_metrics_pictures_files_and_its_end(run: RunTracker, repository: Path):
    picture = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    (repository / "notes.txt").write_text("notes")
    run.metrics({"train/elbo": -3.5, "train/kl": np.float32(2)}, 10)
    run.metrics({"train/elbo": math.nan, "train/kl": -math.inf}, 11)
    run.image("samples", picture, 10)
    run.artifact(repository / "notes.txt", "texts")
    run.finish_training(DIGEST)
    run.close()
    kinds = [event["kind"] for _, event in run.outbox.read()]
    assert kinds == ["start", "metrics", "metrics", "image", "artifact", "tags", "end"]
    first, second = (event["values"] for event in events(run, "metrics"))
    assert first == {"train/elbo": -3.5, "train/kl": 2.0}
    assert math.isnan(second["train/elbo"])
    assert second["train/kl"] == -math.inf
    (image, artifact) = events(run, "image", "artifact")
    (repository / "picture.png").write_bytes(run.outbox.file(image["digest"]))
    with Image.open(repository / "picture.png") as stored:
        assert np.array_equal(np.array(stored), picture)
    assert (artifact["folder"], artifact["name"]) == ("texts", "notes.txt")
    assert run.outbox.file(artifact["digest"]) == b"notes"
    assert events(run, "tags")[0]["values"] == {"vaeline.model_digest": DIGEST}
    assert events(run, "end")[0]["status"] == "FINISHED"


def test_a_resumed_training_goes_on_without_repeating_a_point(run: RunTracker, start: RunStart):
    """Mistake 16: the first value of a step stays."""
    for step in (1, 2, 3):
        run.metrics({"train/elbo": float(step), "train/images_per_second": 100.0 + step}, step)
        run.image("samples", grey(step), step)
    run.close("KILLED")
    resumed = train("key", start)
    assert resumed.outbox == run.outbox
    for step in (2, 3, 4):
        resumed.metrics({"train/elbo": float(step), "train/images_per_second": 200.0 + step}, step)
        resumed.image("samples", grey(step), step)
    resumed.close()
    points = [(event["step"], event["values"]["train/images_per_second"]) for event in events(run, "metrics")]
    assert points == [(1, 101.0), (2, 102.0), (3, 103.0), (4, 204.0)]
    assert [event["step"] for event in events(run, "image")] == [1, 2, 3, 4]
    assert [e["kind"] for e in events(run, "start", "end", "resume")] == ["start", "end", "resume", "end"]
    assert run.outbox.status() == "FINISHED"


def test_a_finished_training_repeated_is_a_new_run_unless_it_resumes(run: RunTracker, start: RunStart):
    run.finish_training(DIGEST)
    run.close()
    with train("key", start, resume=True) as resumed:
        assert resumed.outbox == run.outbox
    with train("key", start) as repeated:
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


def test_a_later_stage_finds_the_latest_run_of_its_model_and_leaves_its_status_alone(run: RunTracker, start: RunStart):
    run.finish_training(DIGEST)
    run.close()
    other = train("other", start)
    other.finish_training(DIGEST)
    other.close()
    with pytest.raises(ValueError, match="stage"), later_stage(start) as later:
        later.metrics({"test_nll": 99.0})
        raise ValueError("stage")
    assert later.outbox == other.outbox
    assert other.outbox.status() == "FINISHED"
    assert [event["step"] for event in events(other, "metrics")] == [0]


def test_a_later_stage_corrects_a_value_but_does_not_repeat_it(run: RunTracker, start: RunStart):
    run.finish_training(DIGEST)
    run.close()
    for nll in (99.0, 99.0, 98.0):
        with later_stage(start) as later:
            later.metrics({"test_nll": nll})
            later.image("samples/prior", grey(int(nll)), 0)
    assert [e["values"]["test_nll"] for e in events(run, "metrics")] == [99.0, 98.0]
    assert len(events(run, "image")) == 2


def test_without_a_local_run_one_is_made_from_the_outputs(
    repository: Path, start: RunStart, outputs: Callable[..., Path]
):
    outputs(folder=repository)
    with later_stage(start) as first, later_stage(start) as second:
        pass
    assert first.outbox == second.outbox
    (begin,) = events(first, "start")
    assert begin["model"] == begin["tags"]["vaeline.model_digest"] == DIGEST
    points = [(e["step"], e["values"]) for e in events(first, "metrics")]
    shown = ("train/elbo", "validation/elbo", "train/sigma")
    assert [(step, *(values[name] for name in shown)) for step, values in points[:-1]] == [
        (10, -5.0, -6.0, 0.3),
        (20, -4.0, -5.0, 0.2),
    ]
    assert points[-1] == (0, {"validation_elbo": -10.0, "test_elbo": -11.0, "test_active_units": 3.0})
    assert [event["key"] for event in events(first, "image")] == ["prior_samples"]
    assert {event["when"] for event in events(first, "metrics", "image")} == {"created"}


def test_broken_outputs_do_not_stop_a_later_stage(repository: Path, start: RunStart, caplog: pytest.LogCaptureFixture):
    (repository / "reports").mkdir()
    (repository / "reports" / "history.csv").write_text("epoch,step,train_elbo\n1,ten,x\n")
    with later_stage(start):
        pass
    assert "not all of it taken" in caplog.text


def test_a_run_made_from_the_outputs_is_made_whole_or_not_at_all(
    repository: Path, start: RunStart, outputs: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
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
            later_stage(start)
    assert outbox_runs(repository) == []
    with later_stage(start) as whole:
        pass
    assert [event["kind"] for _, event in whole.outbox.read()] == ["start", *["metrics"] * 3, "image"]


def test_a_full_disk_costs_one_warning_and_no_training(
    run: RunTracker, start: RunStart, caplog: pytest.LogCaptureFixture
):
    run.outbox.outbox.execute("PRAGMA max_page_count = 1")
    with caplog.at_level(logging.WARNING), run:
        for step in range(3):
            run.metrics({"train/elbo": 1.0}, step)
        run.image("samples", np.random.default_rng(1).integers(0, 255, (200, 200)).astype(np.uint8), 1)
        run.metrics({"train/elbo": 1.0}, 4)
        run.finish_training(DIGEST)
    (message,) = (record.getMessage() for record in caplog.records)
    assert message.startswith("tracking stops, the run goes on: [Errno 28] No space left on device")


def test_where_no_run_can_be_begun_the_training_goes_on_without(
    repository: Path, start: RunStart, caplog: pytest.LogCaptureFixture
):
    (repository / ".vaeline").write_text("not a folder")
    with train("key", start) as run:
        run.metrics({"train/elbo": 1.0}, 1)
        run.image("samples", grey(0), 1)
        run.finish_training(DIGEST)
    assert [record.getMessage()[:15] for record in caplog.records] == ["tracking stops,"]
    with pytest.raises(OSError, match="directory"):
        later_stage(start, upload=False)


def test_what_the_latest_run_of_a_training_kept_is_found(repository: Path, start: RunStart):
    assert latest_artifact(current_workspace(), "key", "history.csv") is None
    run = train("key", start)
    for text in ("first", "second"):
        (repository / "history.csv").write_text(text)
        run.artifact(repository / "history.csv", "reports")
    run.close()
    assert latest_artifact(current_workspace(), "key", "history.csv") == b"second"
