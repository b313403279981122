import logging
import math
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vaeline.io.workspace import current_workspace
from vaeline.tracking.outbox import Event, RunOutbox
from vaeline.tracking.runs import RunStart, RunTracker, latest_artifact, open_model_run, open_training_run


def events(run: RunTracker | RunOutbox, *kinds: str) -> list[Event]:
    spool = run if isinstance(run, RunOutbox) else run.outbox
    return [event for event, _ in spool.read() if event["kind"] in kinds]


@pytest.fixture
def run(repository: Path, start: RunStart) -> RunTracker:
    return open_training_run(current_workspace(), "key", start)


def test_a_training_reports_metrics_pictures_files_and_its_end(run: RunTracker, repository: Path):
    picture = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    (repository / "notes.txt").write_text("notes")
    run.metrics({"train/elbo": -3.5, "train/kl": np.float32(2)}, 10)
    run.image("samples", picture, 10)
    run.artifact(repository / "notes.txt", "texts")
    run.finish_training("m" * 64)
    run.close()
    kinds = [event["kind"] for event, _ in run.outbox.read()]
    assert kinds == ["start", "metrics", "image", "artifact", "tags", "end"]
    assert events(run, "metrics")[0]["values"] == {"train/elbo": -3.5, "train/kl": 2.0}
    with Image.open(run.outbox.folder / events(run, "image")[0]["file"]) as image:
        assert np.array_equal(np.array(image), picture)
    assert (run.outbox.folder / events(run, "artifact")[0]["file"]).read_text() == "notes"
    assert events(run, "tags")[0]["values"] == {"vaeline.model_digest": "m" * 64}
    assert events(run, "end")[0]["status"] == "FINISHED"


def test_a_resumed_training_goes_on_without_repeating_a_point(run: RunTracker, start: RunStart):
    for step in (1, 2, 3):
        run.metrics({"train/elbo": float(step), "train/images_per_second": 100.0 + step}, step)
        run.image("samples", np.full((2, 2), step, np.uint8), step)
    run.close("KILLED")
    resumed = open_training_run(current_workspace(), "key", start)
    assert resumed.outbox == run.outbox
    for step in (2, 3, 4):
        resumed.metrics({"train/elbo": float(step), "train/images_per_second": 200.0 + step}, step)
        resumed.image("samples", np.full((2, 2), step, np.uint8), step)
    resumed.close()
    points = {event["step"]: event["values"]["train/images_per_second"] for event in events(run, "metrics")}
    assert len(events(run, "metrics")) == 4
    assert points == {1: 101.0, 2: 102.0, 3: 103.0, 4: 204.0}
    assert [event["step"] for event in events(run, "image")] == [1, 2, 3, 4]
    assert [e["kind"] for e in events(run, "start", "end", "resume")] == ["start", "end", "resume", "end"]
    assert run.outbox.status() == "FINISHED"


def test_a_finished_training_repeated_is_a_new_run_unless_it_resumes(run: RunTracker, start: RunStart):
    run.finish_training("m" * 64)
    run.close()
    resumed = open_training_run(current_workspace(), "key", start, resume=True)
    resumed.close()
    repeated = open_training_run(current_workspace(), "key", start)
    repeated.close()
    assert resumed.outbox == run.outbox
    assert repeated.outbox.folder.name == "key-2"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (None, "FINISHED"),
        (ValueError(), "FAILED"),
        (SystemExit(1), "FAILED"),
        (SystemExit(143), "KILLED"),
        (KeyboardInterrupt(), "KILLED"),
    ],
)
def test_how_the_block_ends_is_how_the_run_ends(run: RunTracker, error: BaseException | None, status: str):
    try:
        with run:
            if error is not None:
                raise error
    except BaseException as raised:
        assert raised is error
    assert [event["status"] for event in events(run, "end")] == [status]


def test_a_later_stage_finds_the_run_of_its_model_and_leaves_its_status_alone(run: RunTracker, start: RunStart):
    run.finish_training("m" * 64)
    run.close()
    with pytest.raises(ValueError, match="stage"), open_model_run(current_workspace(), "m" * 64, start) as later:
        later.metrics({"test_nll": 99.0})
        raise ValueError("stage")
    assert later.outbox == run.outbox
    assert run.outbox.status() == "FINISHED"
    assert events(run, "metrics")[0]["step"] == 0


def test_of_two_trainings_of_one_model_the_latest_is_found(run: RunTracker, start: RunStart):
    run.finish_training("m" * 64)
    run.close()
    other = open_training_run(current_workspace(), "other", start)
    other.finish_training("m" * 64)
    other.close()
    os.utime(run.outbox.folder / "model", (1, 1))
    later = open_model_run(current_workspace(), "m" * 64, start)
    later.close()
    assert later.outbox == other.outbox


def test_a_later_stage_corrects_a_value_but_does_not_repeat_it(run: RunTracker, start: RunStart):
    run.finish_training("m" * 64)
    run.close()
    for nll in (99.0, 99.0, 98.0):
        with open_model_run(current_workspace(), "m" * 64, start) as later:
            later.metrics({"test_nll": nll})
            later.image("samples/prior", np.full((2, 2), int(nll), np.uint8), 0)
    assert [e["values"]["test_nll"] for e in events(run, "metrics")] == [99.0, 98.0]
    assert len(events(run, "image")) == 2


def test_without_a_local_run_one_is_made_from_the_outputs(
    repository: Path, start: RunStart, outputs: Callable[..., Path]
):
    outputs(folder=repository)
    with (
        open_model_run(current_workspace(), "m" * 64, start) as first,
        open_model_run(current_workspace(), "m" * 64, start) as second,
    ):
        pass
    assert first.outbox == second.outbox
    begin = events(first, "start")
    assert len(begin) == 1
    assert begin[0]["find"] == begin[0]["tags"]["vaeline.model_digest"] == "m" * 64
    points = [(e["step"], e["values"]) for e in events(first, "metrics")]
    assert points == [
        (10, {"train/elbo": -5.0, "validation/elbo": -6.0, "train/sigma": 0.3}),
        (20, {"train/elbo": -4.0, "validation/elbo": -5.0, "train/sigma": 0.2}),
        (0, {"validation_elbo": -10.0, "test_elbo": -11.0, "test_active_units": 3.0}),
    ]
    assert [event["key"] for event in events(first, "image")] == ["prior_samples"]
    assert all(event["fallback"] for event in events(first, "metrics", "image"))


def test_broken_outputs_do_not_stop_a_later_stage(repository: Path, start: RunStart, caplog: pytest.LogCaptureFixture):
    (repository / "reports").mkdir()
    (repository / "reports" / "history.csv").write_text("epoch,step,train_elbo\n1,ten,x\n")
    with open_model_run(current_workspace(), "m" * 64, start):
        pass
    assert "not all of it taken" in caplog.text


def test_a_full_disk_costs_one_warning_and_no_training(
    run: RunTracker, repository: Path, caplog: pytest.LogCaptureFixture
):
    run.outbox.events.unlink()
    run.outbox.events.symlink_to("/dev/full")
    with caplog.at_level(logging.WARNING), run:
        for step in range(3):
            run.metrics({"train/elbo": 1.0}, step)
        run.image("samples", np.zeros((2, 2), np.uint8), 1)
    assert [record.getMessage() for record in caplog.records] == [
        "tracking stops, the run goes on: [Errno 28] No space left on device"
    ]


def test_values_that_are_not_finite_are_reported_as_they_are(run: RunTracker):
    run.metrics({"train/elbo": math.nan}, 1)
    run.metrics({"train/elbo": -math.inf}, 2)
    run.close()
    nan, inf = (event["values"]["train/elbo"] for event in events(run, "metrics"))
    assert math.isnan(nan)
    assert inf == -math.inf


def test_a_point_costs_well_under_a_millisecond(run: RunTracker):
    begin = time.perf_counter()
    for step in range(1000):
        run.metrics({"train/elbo": 1.0, "train/kl": 2.0}, step)
    assert (time.perf_counter() - begin) / 1000 < 1e-3


@pytest.mark.parametrize("torn", [None, b"", b'{"kind":"start","ti'])
def test_a_run_whose_maker_was_killed_before_its_first_word_starts_all_the_same(
    repository: Path, start: RunStart, torn: bytes | None
):
    folder = repository / ".vaeline" / "spool" / "key-1"
    folder.mkdir(parents=True)
    if torn is not None:
        (folder / "events.jsonl").write_bytes(torn)
    run = open_training_run(current_workspace(), "key", start)
    run.metrics({"train/elbo": 1.0}, 1)
    run.close()
    assert run.outbox.folder == folder
    assert [event["kind"] for event, _ in run.outbox.read()] == ["start", "metrics", "end"]


def test_a_run_made_from_the_outputs_in_part_is_made_whole(
    repository: Path, start: RunStart, outputs: Callable[..., Path]
):
    outputs(folder=repository)
    whole = open_model_run(current_workspace(), "m" * 64, start)
    whole.close()
    lines = whole.outbox.events.read_bytes().splitlines(keepends=True)
    told = [(e["kind"], e.get("values"), e.get("key")) for e, _ in whole.outbox.read()]
    for count in range(len(lines)):
        (whole.outbox.folder / "model").unlink()
        whole.outbox.events.write_bytes(b"".join(lines[:count]))
        again = open_model_run(current_workspace(), "m" * 64, start)
        again.close()
        assert again.outbox == whole.outbox
        assert [(e["kind"], e.get("values"), e.get("key")) for e, _ in again.outbox.read()] == told


def test_where_no_run_can_be_begun_the_training_goes_on_untold(
    repository: Path, start: RunStart, caplog: pytest.LogCaptureFixture
):
    (repository / ".vaeline").write_text("not a folder")
    with open_training_run(current_workspace(), "key", start) as run:
        run.metrics({"train/elbo": 1.0}, 1)
        run.image("samples", np.zeros((2, 2), np.uint8), 1)
        run.finish_training("m" * 64)
    assert [record.getMessage()[:15] for record in caplog.records] == ["tracking stops,"]
    with pytest.raises(OSError, match="directory"):
        open_model_run(current_workspace(), "m" * 64, start, upload=False)


def test_what_the_latest_run_of_a_training_kept_is_found(repository: Path, start: RunStart):
    assert latest_artifact(current_workspace(), "key", "history.csv") is None
    run = open_training_run(current_workspace(), "key", start)
    for text in ("first", "second"):
        (repository / "history.csv").write_text(text)
        run.artifact(repository / "history.csv", "reports")
    run.close()
    assert latest_artifact(current_workspace(), "key", "history.csv") == b"second"
