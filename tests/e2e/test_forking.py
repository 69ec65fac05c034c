"""What the tests fork: a trainer of a node that was forked has none of gRPC's threads."""

import multiprocessing
import os
import time
from pathlib import Path

import grpc

from tests.forking import Forks

_TASKS = Path("/proc/self/task")
_BEGIN_SECONDS = 0.3
"""In which gRPC has started its threads anew, if it does."""


def _fork_beside_a_channel(found: Path) -> None:
    """Fork as a node does, which has made its channel by then; write down the child's threads."""
    with grpc.insecure_channel("127.0.0.1:1"):
        child = os.fork()
        if not child:
            time.sleep(_BEGIN_SECONDS)
            found.write_text(str(len(list(_TASKS.iterdir()))), encoding="ascii")
            os._exit(0)
        os.waitpid(child, 0)


def test_a_trainer_that_is_forked_from_a_node_has_one_thread(forks: Forks, tmp_path: Path) -> None:
    assert forks.call(["--help"], tmp_path)[0] == 0
    found = tmp_path / "threads"
    context = multiprocessing.get_context("forkserver")
    node = context.Process(target=_fork_beside_a_channel, args=(found,))
    node.start()
    node.join()
    assert found.read_text(encoding="ascii") == "1"
