"""DVC's stages in order, their outcomes, and that nothing is left running."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import psutil
import pytest

from pipeline.commands import doctor
from pipeline.services.dvc_command import (
    StageError,
    always_stale,
    cache_folder,
    copies_fault,
    outputs,
    read_stages,
    reproduce,
    stale_stages,
)
from vaeline.errors import UserError
from vaeline.io.workspace import Workspace
from workspaces import ROOT, alive, execute, make_toy

HERE = Workspace()


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_toy(tmp_path_factory.mktemp("trained"))
    execute("dvc", "repro", "train", cwd=folder)
    return folder


@pytest.fixture
def trained(trained_once: Path, toy: Path) -> Path:
    """The tiny repository after its stages fetch and train."""
    return shutil.copytree(trained_once, toy, dirs_exist_ok=True)


def test_in_this_repositorys_dvc_yaml_each_stage_comes_after_what_it_reads():
    written: list[PurePosixPath] = []
    for name, stage in read_stages(Workspace(ROOT)).items():
        for dep in map(PurePosixPath, stage["deps"]):
            if dep.parts[0] not in ("src", "pipeline"):
                assert any(dep.is_relative_to(out) or out.is_relative_to(dep) for out in written), f"{name}: {dep}"
        written += map(PurePosixPath, outputs(stage))


def test_ran_cached_and_restored_are_distinguished(toy: Path):
    lines: list[str] = []
    (toy / "train.sh").write_text("echo training; echo run $VAELINE_RUN_CONTEXT; cp raw.txt model.txt\n")
    assert stale_stages(HERE) == {"fetch", "train", "sample"}
    assert reproduce(HERE, "fetch", lines.append, {}) == "ran"
    assert reproduce(HERE, "train", lines.append, {"VAELINE_RUN_CONTEXT": "abc"}) == "ran"
    assert {"training", "run abc"} <= set(lines)
    assert stale_stages(HERE) == {"sample"}
    assert reproduce(HERE, "train", lines.append, {}) == "cached"
    (toy / "model.txt").unlink()
    assert reproduce(HERE, "train", lines.append, {}) == "restored"
    assert lines.count("training") == 1
    assert reproduce(HERE, "train", lines.append, {}, force=True) == "ran"
    assert lines.count("training") == 2


def test_a_failed_stage_is_reported_by_its_error_lines_or_its_exception(trained: Path):
    for script, reason in (
        ("echo so far so good; echo error: a.png: truncated >&2; exit 1", "a.png: truncated"),
        ("python -c '1 / 0'", "ZeroDivisionError: division by zero"),
    ):
        (trained / "train.sh").write_text(f"{script}\n")
        with pytest.raises(StageError, match=rf"^stage 'train' failed: {reason}$"):
            reproduce(HERE, "train", lambda line: None, {})


def test_what_dvc_refuses_is_reported(toy: Path):
    with pytest.raises(StageError, match=r"stage 'train' failed: .*raw\.txt"):
        reproduce(HERE, "train", lambda line: None, {})
    (toy / "dvc.yaml").write_text("stages: {fetch: {cmd: [}}")
    with pytest.raises(UserError, match=r"dvc\.yaml: is not valid YAML"):
        stale_stages(HERE)


@pytest.mark.parametrize("put", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
@pytest.mark.parametrize("name", ["params.yaml", "raw.txt", "model.txt/deep/file"])
def test_what_dvc_would_read_for_ever_is_refused(toy: Path, name: str, put: Callable[[Path], object]):
    (toy / name).unlink(missing_ok=True)
    (toy / name).parent.mkdir(parents=True, exist_ok=True)
    put(toy / name)
    with pytest.raises(UserError, match=f"^{name}: is a pipe or a device, which DVC would read for ever; delete it$"):
        stale_stages(HERE)


def test_dvcs_settings_that_cannot_be_read_are_named(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "global").mkdir()
    (tmp_path / "global" / "config").write_text("[core\n")
    monkeypatch.setenv("DVC_GLOBAL_CONFIG_DIR", str(tmp_path / "global"))
    for ask, name in ((stale_stages, "status"), (cache_folder, "cache dir")):
        with pytest.raises(UserError) as raised:
            ask(HERE)
        line = str(raised.value)
        assert line.startswith(f"dvc {name}: configuration error - config file error: ")
        assert line.endswith(f"; correct DVC's settings: .dvc/config or {tmp_path}/global/config")
        assert len(line.splitlines()) == 1
    with pytest.raises(UserError, match=r"DVC's settings: .dvc/config or [^;]+$"):
        doctor.dvc(HERE)


def test_where_dvc_cannot_run_copies_is_known(toy: Path):
    assert copies_fault(HERE) == ""
    other = toy / "pl\u00e4n"
    shutil.copytree(toy, other, ignore=shutil.ignore_patterns(other.name))
    assert "vaeline run -S does the same" in copies_fault(Workspace(other))
    assert doctor.dvc(Workspace(other, other))[0] == "warn"


def test_a_torn_lock_is_reported_with_its_fix_which_computes_nothing(trained: Path):
    lines, lock = list[str](), trained / "dvc.lock"
    lock.write_bytes(lock.read_bytes()[:30])
    with pytest.raises(UserError, match=r"^dvc status: .*; dvc\.lock is torn: .*delete it, and run again"):
        stale_stages(HERE)
    lock.unlink()
    assert reproduce(HERE, "fetch", lines.append, {}) == "restored"
    assert reproduce(HERE, "train", lines.append, {}) == "restored"
    assert lines.count("training") == 0


def test_a_folder_that_a_killed_dvc_left_in_its_run_cache_is_no_obstacle(trained: Path):
    for entry in (trained / ".dvc" / "cache" / "runs").glob("*/*/*"):
        entry.unlink()  # as if killed between making the folder and writing into it
    (trained / "raw.txt").unlink()
    (trained / "dvc.lock").unlink()
    assert doctor.dvc(HERE)[0] == "fail"
    lines: list[str] = []
    assert reproduce(HERE, "fetch", lines.append, {}) == "ran"
    assert [line for line in lines if line.endswith("left empty by a DVC that was killed; removed")]
    assert doctor.dvc(HERE)[0] == "ok"


def test_another_dvc_at_work_is_waited_for(toy: Path):
    pid = int(execute("sh", "-c", "sleep 4 >/dev/null 2>&1 & echo $!", cwd=toy).stdout)  # its parent will not reap it
    (toy / ".dvc" / "tmp").mkdir(exist_ok=True)
    writing = {"write": {str(toy / "raw.txt"): {"pid": pid, "cmd": "dvc repro"}}}
    (toy / ".dvc" / "tmp" / "rwlock").write_text(json.dumps(writing))
    with pytest.raises(UserError, match=r"^dvc status: '.*raw.txt' is busy, it is being blocked by: .*dvc repro"):
        stale_stages(HERE, patience=0)
    assert stale_stages(HERE) == {"fetch", "train", "sample"}


def test_a_torn_rwlock_is_reported_with_its_fix(trained: Path):
    (trained / ".dvc" / "tmp" / "rwlock").write_text('{"read"')
    with pytest.raises(StageError, match=r"; \.dvc/tmp/rwlock is torn: delete it"):
        reproduce(HERE, "train", lambda line: None, {})
    (trained / ".dvc" / "tmp" / "rwlock").unlink()
    assert reproduce(HERE, "train", lambda line: None, {}) == "cached"


def test_an_interruption_ends_every_process_of_the_stage(trained: Path):
    (trained / "train.sh").write_text("sleep 300 & echo child $!; sleep 300\n")
    children: list[psutil.Process] = []

    def interrupt(line: str) -> None:
        if line.startswith("child "):
            children.append(psutil.Process(int(line.split()[1])))
            children.append(children[0].parent())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reproduce(HERE, "train", interrupt, {})
    assert len(children) == 2
    assert not alive(children)
    assert stale_stages(HERE) == {"train", "sample"}


@pytest.mark.parametrize(
    ("kind", "init", "forced"),
    [
        ("digits", "random", set()),
        ("folder", "random", {"fetch"}),
        ("npz", "random", {"fetch"}),
        ("digits", "diffusers", {"fetch"}),
    ],
)
def test_files_that_dvc_does_not_watch_are_fetched_anew(tmp_path: Path, kind: str, init: str, forced: set[str]):
    (tmp_path / "params.yaml").write_text(f"data: {{source: {{kind: {kind}}}}}\ntrain: {{init: {{kind: {init}}}}}")
    assert always_stale(Workspace(tmp_path)) == forced


@pytest.mark.parametrize("text", ["", "[]", "1", "data: {}", "data: [1]", "data: {source: x}", "stages: {a: 1}"])
def test_files_without_what_is_asked_of_them_are_named_in_one_line(tmp_path: Path, text: str):
    for name, read in (("params.yaml", always_stale), ("dvc.yaml", read_stages)):
        (tmp_path / name).write_text(text)
        with pytest.raises(UserError, match=rf"^{tmp_path / name}: (data\.source\.kind: missing|stages: must be)"):
            read(Workspace(tmp_path))
