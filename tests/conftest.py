import pytest
from stages import Stages


@pytest.fixture(scope="session")
def stages(tmp_path_factory: pytest.TempPathFactory) -> Stages:
    """ZeRO at all stages in processes of their own, launched when a test first asks."""
    return Stages(tmp_path_factory.mktemp("stages"))
