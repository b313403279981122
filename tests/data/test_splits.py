import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_files import refusal
from vaeline.data.splits import distinct, fingerprints, split
from vaeline.errors import UserError

seeds = st.integers(0, 2**63 - 1)


@given(st.data(), st.integers(3, 300), seeds)
def test_splits_are_disjoint_complete_and_a_function_of_the_seed(data: st.DataObject, pool: int, seed: int) -> None:
    """Mistake 11: test images in the training split."""
    validation = data.draw(st.integers(1, pool - 2))
    test = data.draw(st.integers(1, pool - 1 - validation))
    parts = split(pool, validation, test, official=False, seed=seed)
    assert [len(part) for part in parts] == [pool - validation - test, validation, test]
    assert sorted(np.concatenate(parts).tolist()) == list(range(pool))
    for part, again in zip(parts, split(pool, validation, test, official=False, seed=seed), strict=True):
        np.testing.assert_array_equal(part, again)


@given(st.integers(2, 300), st.floats(0, 1, exclude_min=True, exclude_max=True), seeds)
def test_a_fraction_is_of_all_images_and_at_least_one(pool: int, fraction: float, seed: int) -> None:
    expected = max(1, round(fraction * pool))
    if expected >= pool:
        with pytest.raises(UserError, match=r"^data\.validation: found"):
            split(pool, fraction, "auto", official=True, seed=seed)
    else:
        train, validation, test = split(pool, fraction, "auto", official=True, seed=seed)
        assert (len(train), len(validation), len(test)) == (pool - expected, expected, 0)


def test_auto_takes_as_many_for_test_as_for_validation() -> None:
    assert [len(part) for part in split(100, 10, "auto", official=False, seed=1)] == [80, 10, 10]
    assert [len(part) for part in split(100, 0.2, 5, official=False, seed=1)] == [75, 20, 5]


@pytest.mark.parametrize(
    ("pool", "validation", "test", "official", "says"),
    [
        (100, 60, 40, False, "data.validation: found 60: validation 60 and test 40 leave none of 100 images "
                             "to train on; allowed: less than 100 together"),
        (100, 100, "auto", True, "data.validation: found 100: validation 100 and test 0 leave none of 100 images"),
        (100, 0.5, "auto", False, "data.validation: found 0.5: validation 50 and test 50"),
        (100, 10, 5, True, "data.test: found 5, but the source has a test split of its own; allowed: auto"),
    ],
)  # fmt: skip
def test_impossible_splits_name_the_key_what_was_found_and_what_is_allowed(
    pool: int, validation: float, test: str | int, official: bool, says: str
) -> None:
    assert says in refusal(split, pool, validation, test, official=official, seed=1)


@given(st.lists(st.integers(0, 5), min_size=3, max_size=40), st.data())
def test_no_image_is_left_in_two_splits_and_none_is_lost(kinds: list[int], data: st.DataObject) -> None:
    """Mistake 11: test images in the training split, as duplicates."""
    pixels = np.array(kinds, np.uint8)[:, None, None, None].repeat(4, 3)  # N x 1 x 1 x 4
    owner = np.array(data.draw(st.lists(st.integers(0, 2), min_size=len(kinds), max_size=len(kinds))))
    prints = fingerprints(pixels)
    names = ("test", "validation", "train")
    kept = distinct({name: (np.flatnonzero(owner == number), prints) for number, name in enumerate(names)})
    groups = [{kinds[index] for index in kept[name]} for name in names]
    assert not (groups[0] & groups[1] or groups[0] & groups[2] or groups[1] & groups[2])
    assert set().union(*groups) == set(kinds)
    assert kept["test"].tolist() == np.flatnonzero(owner == 0).tolist()  # test wins: it loses nothing
    first_owner = {kind: min(int(o) for o, k in zip(owner, kinds, strict=True) if k == kind) for kind in kinds}
    assert sum(map(len, kept.values())) == sum(int(o) == first_owner[k] for o, k in zip(owner, kinds, strict=True))


def test_fingerprints_agree_exactly_where_images_do() -> None:
    pixels = np.random.default_rng(0).integers(0, 2, (400, 1, 2, 4), np.uint8)
    prints = fingerprints(pixels)
    bits = [image.tobytes() for image in pixels]
    assert len(set(prints)) == len(set(bits)) < 400
    assert len(set(zip(prints, bits, strict=True))) == len(set(bits))
