"""DVC's stages in order, what became of each, and that nothing is left running."""

import json
from pathlib import Path

import psutil
import pytest

from pipeline.commands import doctor
from pipeline.services.dvc_command import Stage, StageError, always_stale, read_stages, reproduce, stale_stages
from vaeline.errors import UserError
from vaeline.io.workspace import Workspace
from workspaces import execute


def test_stages_come_after_what_they_depend_on(toy: Path):
    assert read_stages() == [
        Stage("fetch", "first", ()),
        Stage("train", "", ("fetch",)),
        Stage("sample", "", ("train",)),
    ]


def test_a_file_in_an_output_folder_is_a_dependency_on_its_stage(tmp_path: Path):
    path = tmp_path / "dvc.yaml"
    path.write_text("stages: {b: {cmd: x, deps: [out/a.txt]}, a: {cmd: y, metrics: [{out: {cache: false}}]}}")
    assert [stage.name for stage in read_stages(path)] == ["a", "b"]


def test_this_repository_goes_from_fetch_to_register():
    names = [stage.name for stage in read_stages(Path(__file__).parents[2] / "dvc.yaml")]
    assert names[:3] == ["fetch", "prepare", "train"]
    assert set(names[3:-1]) == {"evaluate", "sample", "theory"}
    assert names[-1] == "register"


def test_stages_in_a_circle_are_refused(tmp_path: Path):
    path = tmp_path / "dvc.yaml"
    path.write_text("stages: {a: {cmd: x, deps: [b.txt], outs: [a.txt]}, b: {cmd: y, deps: [a.txt], outs: [b.txt]}}")
    with pytest.raises(UserError, match="circle: a -> b -> a"):
        read_stages(path)


def test_ran_cached_and_restored_are_told_apart(toy: Path):
    lines: list[str] = []
    assert stale_stages() == {"fetch", "train", "sample"}
    assert reproduce("fetch", lines.append, {}) == "ran"
    assert reproduce("train", lines.append, {}) == "ran"
    assert "training" in lines
    assert stale_stages() == {"sample"}
    assert reproduce("train", lines.append, {}) == "cached"
    (toy / "model.txt").unlink()
    assert reproduce("train", lines.append, {}) == "restored"
    assert lines.count("training") == 1
    assert reproduce("train", lines.append, {}, force=True) == "ran"
    assert lines.count("training") == 2


def test_a_stage_sees_the_variables_it_is_given(toy: Path):
    (toy / "train.sh").write_text("echo run $VAELINE_RUN_CONTEXT; cp raw.txt model.txt\n")
    lines: list[str] = []
    reproduce("fetch", lines.append, {})
    reproduce("train", lines.append, {"VAELINE_RUN_CONTEXT": "abc"})
    assert "run abc" in lines


def test_a_failed_stage_says_why_in_its_own_words(toy: Path):
    (toy / "train.sh").write_text("echo so far so good; echo error: a.png: truncated >&2; exit 1\n")
    reproduce("fetch", lambda line: None, {})
    with pytest.raises(StageError, match=r"^stage 'train' failed: a.png: truncated$"):
        reproduce("train", lambda line: None, {})


def test_a_bug_in_a_stage_is_named_by_its_exception(toy: Path):
    (toy / "train.sh").write_text("python -c '1 / 0'\n")
    reproduce("fetch", lambda line: None, {})
    with pytest.raises(StageError, match=r"^stage 'train' failed: ZeroDivisionError: division by zero$"):
        reproduce("train", lambda line: None, {})


def test_what_dvc_refuses_is_told(toy: Path):
    with pytest.raises(StageError, match=r"stage 'train' failed: .*raw\.txt"):
        reproduce("train", lambda line: None, {})
    (toy / "dvc.yaml").write_text("stages: {fetch: {cmd: [}}")
    with pytest.raises(UserError, match=r"dvc status: .*dvc\.yaml"):
        stale_stages()


@pytest.mark.parametrize("size", [0, 5, 30])
def test_a_torn_lock_is_told_with_how_to_mend_it_which_computes_nothing(toy: Path, size: int):
    lines: list[str] = []
    reproduce("fetch", lines.append, {})
    reproduce("train", lines.append, {})
    lock = toy / "dvc.lock"
    lock.write_bytes(lock.read_bytes()[:size])
    with pytest.raises(UserError, match=r"^dvc status: .*; dvc\.lock is torn: .*delete it, and run again"):
        stale_stages()
    lock.unlink()
    assert reproduce("fetch", lines.append, {}) == "restored"
    assert reproduce("train", lines.append, {}) == "restored"
    assert lines.count("training") == 1


def test_a_folder_that_a_killed_dvc_left_in_its_run_cache_is_no_obstacle(toy: Path):
    reproduce("fetch", lambda line: None, {})
    (entry,) = (toy / ".dvc" / "cache" / "runs").glob("*/*/*")
    entry.unlink()  # as if killed between making the folder and writing into it
    (toy / "raw.txt").unlink()
    (toy / "dvc.lock").unlink()
    assert doctor.dvc(Workspace()).level == "fail"
    lines: list[str] = []
    assert reproduce("fetch", lines.append, {}) == "ran"
    assert [line for line in lines if line.endswith("left empty by a DVC that was killed; removed")]
    assert doctor.dvc(Workspace()).level == "ok"


def test_another_dvc_at_work_is_waited_for(toy: Path):
    pid = int(execute("sh", "-c", "sleep 6 >/dev/null 2>&1 & echo $!", cwd=toy).stdout)  # its parent will not reap it
    (toy / ".dvc" / "tmp").mkdir(exist_ok=True)
    writing = {"write": {str(toy / "raw.txt"): {"pid": pid, "cmd": "dvc repro"}}}
    (toy / ".dvc" / "tmp" / "rwlock").write_text(json.dumps(writing))
    with pytest.raises(UserError, match=r"^dvc status: '.*raw.txt' is busy, it is being blocked by: .*dvc repro"):
        stale_stages(patience=0)
    assert stale_stages() == {"fetch", "train", "sample"}


def test_a_torn_rwlock_is_told_with_how_to_mend_it(toy: Path):
    reproduce("fetch", lambda line: None, {})
    (toy / ".dvc" / "tmp" / "rwlock").write_text('{"read"')
    with pytest.raises(StageError, match=r"; \.dvc/tmp/rwlock is torn: delete it"):
        reproduce("train", lambda line: None, {})
    (toy / ".dvc" / "tmp" / "rwlock").unlink()
    assert reproduce("train", lambda line: None, {}) == "ran"


def test_an_interruption_ends_every_process_of_the_stage(toy: Path):
    (toy / "train.sh").write_text("sleep 300 & echo child $!; sleep 300\n")
    reproduce("fetch", lambda line: None, {})
    children: list[psutil.Process] = []

    def interrupt(line: str) -> None:
        if line.startswith("child "):
            children.append(psutil.Process(int(line.split()[1])))
            children.append(children[0].parent())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reproduce("train", interrupt, {})
    assert len(children) == 2
    assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    assert stale_stages() == {"train", "sample"}


@pytest.mark.parametrize(("kind", "forced"), [("digits", set()), ("folder", {"fetch"}), ("npz", {"fetch"})])
def test_files_that_dvc_does_not_watch_are_fetched_anew(tmp_path: Path, kind: str, forced: set[str]):
    path = tmp_path / "params.yaml"
    path.write_text(f"data: {{source: {{kind: {kind}}}}}")
    assert always_stale(path) == forced
