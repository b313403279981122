"""One farm for all: growing it takes half a minute."""

from collections.abc import Iterator

import pytest

from crash_workspaces import Farm, Zygote


@pytest.fixture(scope="session")
def farm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Farm]:
    """Every stage, a checkpoint and a point each step."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VAELINE_CHECKPOINT_SECONDS", "0")
        patch.setenv("VAELINE_LOG_EVERY", "2")
        zygote = Zygote()  # which keeps them; other tests are not to see them
    try:
        yield Farm(tmp_path_factory.mktemp("farm"), zygote)
    finally:
        zygote.close()


@pytest.fixture
def grown(farm: Farm) -> Farm:
    """The stages up to a trained model."""
    farm.grow(("fetch", "prepare", "train"))
    return farm


@pytest.fixture
def whole(farm: Farm) -> Farm:
    """All stages."""
    farm.grow()
    return farm
