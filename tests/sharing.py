"""Which tests run side by side when several processes share them (`pytest --numprocesses 2`).

One process begins with the tests that start many processes and wait for them, the other with those
that compute; they meet in the middle. Tests of one module stay together, because they share what
its fixtures made, except where each makes everything for itself.
"""

from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling
from xdist.workermanage import WorkerController

EACH_FOR_ITSELF = ("tests/e2e/test_bad_input.py", "tests/e2e/test_federation.py")
ENDS = {"tests/e2e/": -1, "tests/finetune/": 1, "tests/coordinator/": 2, "tests/simulation/": 3}
"""Where what takes long stands in the queue; everything else is in the middle."""


def place(item: pytest.Item) -> int:
    """Where a test stands in the queue that is taken from both ends."""
    return next((at for path, at in ENDS.items() if item.nodeid.startswith(path)), 0)


class FromBothEnds(LoadScopeScheduling):
    """Gives out tests by module, from both ends of the queue."""

    def __init__(self, config: Any, log: Any) -> None:
        config.option.loadscopereorder = False
        super().__init__(config, log)

    def _split_scope(self, nodeid: str) -> str:
        module = nodeid.partition("::")[0]
        return nodeid if module in EACH_FOR_ITSELF else module

    def _assign_work_unit(self, node: WorkerController) -> None:
        if self.nodes.index(node) % 2:
            self.workqueue.move_to_end(next(reversed(self.workqueue)), last=False)
        super()._assign_work_unit(node)
