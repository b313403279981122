"""One for all: building it takes half a minute."""

import pytest

from crash_workspaces import StageStates


@pytest.fixture(scope="session")
def states(tmp_path_factory: pytest.TempPathFactory) -> StageStates:
    """Every stage, a checkpoint and a point each step."""
    return StageStates(tmp_path_factory.mktemp("states"))


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
