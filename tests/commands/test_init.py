"""`vaeline init`: what it proposes for images of every sort, and what it leaves of params.yaml."""

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from command_line import vaeline
from data_files import refusal
from pipeline.commands.init import propose, write_params
from vaeline.config import read_params
from vaeline.data.sources.images import read_folder
from vaeline.errors import UserError
from workspaces import ROOT

GREY, COLOUR = "L", "RGB"


def draw(folder: Path, *pictures: tuple[str, int, int, str]) -> Path:
    """Noise by name, width, height, mode."""
    for name, width, height, mode in pictures:
        pixels = np.random.default_rng(len(name)).integers(0, 256, (height, width, 4), np.uint8)
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).convert(mode).save(path)
    return folder


@pytest.mark.parametrize(
    ("pictures", "source"),
    [
        ([("a.png", 28, 28, GREY), ("b.png", 28, 28, GREY)], {}),
        ([("a.png", 28, 20, GREY), ("b.png", 28, 20, GREY)], {"size": 20, "fit": "crop"}),
        ([("a.jpg", 90, 70, COLOUR), ("b.jpg", 80, 120, COLOUR)], {"size": 64, "fit": "crop"}),
        ([("x/a.jpg", 40, 50, COLOUR), ("y/b.png", 50, 40, GREY)], {"size": 32, "fit": "crop", "mode": "RGB"}),
        ([("a.png", 16, 16, "RGBA"), ("b.png", 16, 16, "P")], {"mode": "RGB"}),
        ([("a.png", 16, 16, "1"), ("b.png", 16, 16, "LA")], {"mode": "L"}),
    ],
)
def test_the_source_that_is_proposed_reads_the_images(tmp_path: Path, pictures: Any, source: dict[str, Any]) -> None:
    folder = draw(tmp_path / "my pictures", *pictures)
    data, name, _ = propose(folder)
    assert data["source"] == {"kind": "folder", "path": str(folder)} | source
    assert name == "my-pictures"
    changes = {key: value for key, value in source.items() if key in ("size", "fit", "mode")}
    split, _ = read_folder(folder, **changes)
    assert len(split.pixels) == 2


def test_the_other_sections_and_their_comments_stay_and_what_was_chosen_is_said(tmp_path: Path) -> None:
    params = Path(shutil.copy(ROOT / "params.yaml", tmp_path / "params.yaml"))
    before = params.read_text()
    folder = draw(tmp_path / 'a "b": é', *((f"{kind}/{i}.png", 30, 40, GREY) for kind in "xy" for i in range(3)))
    lines = write_params(params, folder)
    now = read_params(params)
    assert (now.data.source.path, now.register_.name) == (str(folder.absolute()), "a-b")
    assert lines[1] == "classes, by subfolder: x 3, y 3"
    for number in ("2024", "true", "null"):
        write_params(params, draw(tmp_path / number, ("a.png", 28, 28, GREY)))
        assert read_params(params).register_.name == number
    write_params(params, folder)
    after = params.read_text()
    (validation,) = re.findall("^  validation: .*", before, re.MULTILINE)
    assert validation.replace("10000", "0.15 ") in after
    assert (
        after[after.index("\nmodel:") :].replace("name: a-b", "name: vaeline-fashion-mnist")
        == (before[before.index("\nmodel:") :])
    )


def test_a_mistake_is_one_line_and_leaves_params_as_they_were(tmp_path: Path) -> None:
    params = Path(shutil.copy(ROOT / "params.yaml", tmp_path / "params.yaml"))
    before = params.read_text()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.png").write_bytes(b"no image")
    for name, words in (("none", "--images: .*none: is not a folder"), ("bad", r"a\.png: cannot be decoded")):
        with pytest.raises(UserError, match=words):
            write_params(params, tmp_path / name)
    assert params.read_text() == before
    flow = before.replace("data:\n  source:", "data: \n  {source:", 1)
    params.write_text(flow)
    with pytest.raises(UserError):
        write_params(params, draw(tmp_path / "ok", ("a.png", 28, 28, GREY)))
    assert params.read_text() == flow


def test_a_folder_is_named_from_where_the_user_is(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = draw(toy / "below" / "pictures", ("a.png", 28, 28, GREY))
    monkeypatch.chdir(toy / "below")
    vaeline("init", "--images", "pictures")
    assert read_params(toy / "params.yaml").data.source.path == str(pictures)
    assert refusal(vaeline, "init", "--images", "~unknown/a").startswith("--images: ~unknown/a: there is no such user")
