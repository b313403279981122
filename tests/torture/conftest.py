"""One for all: building it takes half a minute."""

from collections.abc import Iterator

import pytest

from crash_workspaces import PreloadedProcess, StageStates


@pytest.fixture(scope="session")
def states(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StageStates]:
    """Every stage, a checkpoint and a point each step."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VAELINE_CHECKPOINT_SECONDS", "0")
        patch.setenv("VAELINE_LOG_EVERY", "2")
        preloaded = PreloadedProcess()  # which keeps them; other tests are not to see them
    try:
        yield StageStates(tmp_path_factory.mktemp("states"), preloaded)
    finally:
        preloaded.close()


@pytest.fixture
def trained(states: StageStates) -> StageStates:
    """The stages up to a trained model."""
    states.build(("fetch", "prepare", "train"))
    return states


@pytest.fixture
def full(states: StageStates) -> StageStates:
    """All stages."""
    states.build()
    return states
