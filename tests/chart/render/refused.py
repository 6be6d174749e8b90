"""For tests of values that cannot work: they are refused before anything is rendered, and the error
names their path.

Helm 3.17 and 4.3 spell paths differently ("tls.mode", "/tls/mode"); the words are compared without
what they put between them.
"""

import re

import pytest

import chart

SECRET = {"mode": "secret", "coordinatorSecret": "c"}
TOKENS = {"enabled": True, "existingSecret": "a", "workerToken": {"existingSecret": "w"}}


def error_of(values, version):
    with pytest.raises(ValueError) as error:
        chart.render(values, version=version)
    return str(error.value)


def check_by_the_schema(values, path, version):
    """The schema refuses them, and names the path, or the one above it and its last word."""
    error = error_of(values, version)
    found = re.findall(r"^- (?:at )?(\S+?):? ", error, re.MULTILINE)
    paths = {one.strip("'/:").replace("/", ".").replace("(root)", "") for one in found}
    parent = path.rpartition(".")[0]
    assert path in paths or (parent in paths and path.rpartition(".")[2] in error), error


def check_together(values, message):
    """Values that contradict one another are refused in these words by every helm."""
    for version in chart.VERSIONS:
        assert message in error_of(values, version)
