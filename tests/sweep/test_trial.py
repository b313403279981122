from pathlib import Path

from pipeline.sweep.trial import remove_clones
from sweep_repository import make_sweep
from vaeline.io.locks import locked


def test_a_clone_at_work_is_not_removed_and_what_a_killed_process_left_is(tmp_path: Path):
    sweep = make_sweep(tmp_path)
    for name in ("working", "left"):
        (sweep.folder / "work" / name).mkdir(parents=True)
    (sweep.folder / "locks").mkdir()
    with locked(sweep.folder / "locks" / "working"):
        remove_clones(sweep)
    assert [path.name for path in (sweep.folder / "work").glob("*/")] == ["working"]
