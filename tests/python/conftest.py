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


@pytest.fixture
def problem(rng):
    return [
        rng.standard_normal(shape, dtype=np.float32)
        for shape in ((40, 8, 32), (200, 2, 32), (200, 2, 16))
    ]
