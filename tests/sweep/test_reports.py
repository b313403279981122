import io
from pathlib import Path

from PIL import Image

from pipeline.sweep.reports import pictures
from pipeline.sweep.study import Request
from sweep_repository import make_scored_sweep, make_sweep

ALL = {"parallel_coordinates.png", "slice.png", "importances.png", "rate_distortion.png"}


def test_the_pictures_are_whole_and_the_same_every_time(tmp_path: Path):
    sweep = make_scored_sweep(tmp_path)
    drawn = pictures(sweep)
    assert set(drawn) == ALL
    assert drawn == pictures(sweep)
    for content in drawn.values():
        with Image.open(io.BytesIO(content)) as image:
            image.load()
            assert min(image.size) > 300
            assert len(image.convert("RGB").getcolors(1 << 24) or []) > 20


def test_a_picture_needs_two_trials_that_have_what_it_shows(tmp_path: Path):
    sweep = make_sweep(tmp_path, Request(["train.beta=1,2,4"]))
    sweep.begin()
    found = []
    while trial := sweep.next_trial():
        kl = {"test.kl": 1.0, "test.reconstruction": -1.0} if trial.number == 2 else {}
        sweep.finish(trial.number, {"metrics": {"test.elbo": -2.0, **kl}})
        found.append(set(pictures(sweep)))
    assert found == [set(), ALL - {"rate_distortion.png"}, ALL - {"rate_distortion.png"}]
