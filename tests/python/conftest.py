import numpy as np
import pytest

import annulus


@pytest.fixture(scope="session")
def client():
    with annulus.in_process(workers=2, threads=1) as made:
        yield made


@pytest.fixture
def rng():
    return np.random.default_rng(7)
