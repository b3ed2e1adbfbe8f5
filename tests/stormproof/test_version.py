from importlib.metadata import version

import stormproof


def test_the_version_is_that_of_the_distribution():
    assert stormproof.__version__ == version("stormproof")
