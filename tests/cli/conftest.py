"""Commands that run in this process leave its log as it was."""

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _log_as_before() -> Iterator[None]:
    """Remove the handler that writes to the captured stderr of one test, and its levels."""
    yield
    root = logging.getLogger()
    for handler in [one for one in root.handlers if type(one) is logging.StreamHandler]:
        root.removeHandler(handler)
    for name in ("tapestry", "tapestry_node", "tapestry_coordinator", "tapestry_finetune"):
        logging.getLogger(name).setLevel(logging.NOTSET)
