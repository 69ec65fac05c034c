"""Rounds of Flower: a SuperLink, SuperNodes and FedAvg with their defaults.

State in memory, no TLS. Off: runtime installation of dependencies, telemetry, the update check.
"""

from pathlib import Path
from typing import ClassVar

from peers.peer import Peer, free_port, is_listening
from rounds import Workload

from tapestry_demo.federation import Processes

_APP = Path(__file__).parent / "flower_app"


class Flower(Peer):
    """`flwr`, over HTTP."""

    name = "flower"
    package = "flwr"
    security = "no TLS"
    settings: ClassVar = {
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    }

    def start(self, processes: Processes, workload: Workload) -> None:
        """Start the SuperLink and the SuperNodes, and submit the run."""
        port = free_port()
        link = ("--insecure", "--host", "127.0.0.1", "--port", str(port))
        processes.start("superlink", self.command("flower-superlink", *link))
        self.wait_until(processes, lambda: is_listening(port), what="the SuperLink listens")
        for index in range(workload.nodes):
            node = ("--insecure", "--superlink", f"127.0.0.1:{port}", "--port", str(free_port()))
            processes.start(f"supernode-{index}", self.command("flower-supernode", *node))
        self._write_config(port)
        config = (
            f"parameters={workload.parameters} nodes={workload.nodes} rounds={workload.rounds} "
            f'stamps="{self.stamps}"'
        )
        self.call("flwr", "run", str(_APP), "bench", "--run-config", config)

    def _write_config(self, port: int) -> None:
        folder = self.folder / ".flwr"
        folder.mkdir(exist_ok=True)
        (folder / "config.toml").write_text(
            '[superlink]\ndefault = "bench"\n\n'
            f'[superlink.bench]\naddress = "127.0.0.1:{port}"\ninsecure = true\n',
            encoding="utf-8",
        )
