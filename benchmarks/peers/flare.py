"""Rounds of NVIDIA FLARE: provisioned, mutual TLS, FedAvg over numpy arrays, its defaults."""

from functools import partial
from pathlib import Path

from peers.peer import Peer, free_port, is_listening
from rounds import Workload

from tapestry_demo.federation import Processes

_APP = Path(__file__).parent / "flare_app"
_STORAGE = "/tmp/nvflare"  # noqa: S108 - where FLARE puts jobs unless told otherwise
_ADMIN = "admin@bench.org"
_SERVER = "localhost"


class Flare(Peer):
    """`nvflare`, over its default driver."""

    name = "flare"
    package = "nvflare"
    security = "mutual TLS"

    def start(self, processes: Processes, workload: Workload) -> None:
        """Provision, start the server and the clients, and submit the job."""
        port = free_port()
        clients = [f"node-{i}" for i in range(workload.nodes)]
        kits = self._provision(port, clients)
        for name, kit in (("server", _SERVER), *zip(clients, clients, strict=True)):
            script = kits / kit / "startup" / "sub_start.sh"
            processes.start(name, self.command("bash", str(script), "--once"))
        self.wait_until(processes, lambda: is_listening(port), what="the server listens")
        for name in clients:
            log = self.logs / f"{name}.log"
            self.wait_until(processes, partial(_is_registered, log), what=f"{name} registered")
        arguments = (workload.parameters, workload.nodes, workload.rounds)
        submit = (str(_APP / "submit.py"), str(kits / _ADMIN), *map(str, arguments))
        self.call("python", "-B", *submit, str(self.stamps))

    def _provision(self, port: int, clients: list[str]) -> Path:
        """Make keys, certificates and start-up kits; return their folder."""
        participants = [
            f"{{name: {_SERVER}, type: server, org: bench, fed_learn_port: {port}}}",
            f"{{name: {_ADMIN}, type: admin, org: bench, role: project_admin}}",
            *(f"{{name: {client}, type: client, org: bench}}" for client in clients),
        ]
        project = (_APP / "project.yml").read_text(encoding="utf-8")
        path = self.folder / "project.yml"
        path.write_text(project.replace("[]", f"[{', '.join(participants)}]"), encoding="utf-8")
        workspace = self.folder / "workspace"
        self.call("nvflare", "provision", "-p", str(path), "-w", str(workspace))
        kits = workspace / "bench" / "prod_00"
        local = kits / _SERVER / "local"
        resources = (local / "resources.json.default").read_text(encoding="utf-8")
        resources = resources.replace(_STORAGE, str(self.folder / "storage"))
        (local / "resources.json").write_text(resources, encoding="utf-8")
        return kits


def _is_registered(log: Path) -> bool:
    return "Successfully registered client" in log.read_text(encoding="utf-8", errors="replace")
