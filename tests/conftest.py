import os

import pytest

# Read at import. No test may depend on what the Hub holds; threads only slow such small models down.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

from hypothesis import settings  # noqa: E402

from small_configs import SMALL_CONFIGS, small_model  # noqa: E402

settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.load_profile("repeatable")


@pytest.fixture(params=SMALL_CONFIGS)
def model(request):
    """A small model of each kind, the test's own: it may change it."""
    return small_model(request.param)
