"""A live federation for tests: real processes, real gRPC over mutual TLS, text files on disk."""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tapestry.checkpoints.policy import save_policy
from tapestry.ledger.proof import PROOF_FILE
from tapestry_coordinator import settings as settings_module
from tapestry_coordinator.home import CoordinatorHome
from tapestry_coordinator.status import status_of
from tapestry_coordinator.web.settings import PageSettings
from tapestry_demo.federation import Processes, free_port_pair, tapestry_command
from tests.conftest import Federation
from tests.coordinator.small import changed_policy
from tests.forking import Forks

_WORDS = {
    "fra": "le la une bibliothèque garde chaque livre dans sa langue et personne ne le sait",
    "eus": "liburu bakoitzak bere hizkuntza du eta inork ez daki nork irakurriko duen bihar",
    "ukr": "кожна книга має свою мову і ніхто не знає хто її прочитає завтра вранці",
    "isl": "hver bók á sitt tungumál og enginn veit hver les hana á morgun í safninu",
}


def write_text(folder: Path, language: str, *, documents: int = 60) -> Path:
    """Write a small corpus: shuffled sentences, a blank line between documents."""
    words = _WORDS[language].split()
    folder.mkdir(parents=True, exist_ok=True)
    texts = []
    for number in range(documents):
        turned = [words[(number * 7 + i * (1 + number % 5)) % len(words)] for i in range(90)]
        texts.append(f"{number}. {' '.join(turned)}.")
    (folder / "text.txt").write_text("\n\n".join(texts), encoding="utf-8")
    return folder


def wait_for(
    condition: Callable[[], bool],
    processes: Processes,
    log: Callable[[str], str],
    *,
    seconds: float,
) -> None:
    """Wait until `condition` holds; if it does not, show what every process has said last."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "\n".join(
            f"{name}: {log(name)[-3000:]}" for name in processes.running
        )
        time.sleep(0.05)


@dataclass
class Live:
    """A federation in a temporary folder."""

    folder: Path
    processes: Processes
    port: int
    forks: Forks | None = None
    """What starts the processes; if None, they are started as people do."""
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def home(self) -> CoordinatorHome:
        return CoordinatorHome(self.folder / "coordinator")

    def found(
        self,
        *,
        rounds: int,
        steps: int = 3,
        quorum: int = 2,
        model: Path | None = None,
        trainable: str = "all",
        storage: Sequence[str] = (),
        **changes: Any,
    ) -> None:
        """Found the federation; `changes` go into the table `[rounds]`.

        `storage` says where registry and blobs are, as `init` takes it.
        """
        made_of = ("--vocabulary", "300") if model is None else ("--model", str(model))
        self.call(
            "coordinator", "init", str(self.home.folder), "--name", "loom",
            "--address", f"localhost:{self.port}", "--rounds", str(rounds),
            "--inner-steps", str(steps), "--quorum", str(quorum), *made_of,
            "--trainable", trainable, *storage,
            "--pool", str(write_text(self.folder / "pool", "isl")),
        )  # fmt: skip
        settings = self.home.load_settings()
        network = settings.network.model_copy(
            update={
                "listen": f"127.0.0.1:{self.port}",
                "enrolment_listen": f"127.0.0.1:{self.port + 1}",
            }
        )
        rounds_table = settings.rounds.model_copy(
            update={"gather_seconds": 60.0, "grace_seconds": 60.0, **changes}
        )
        inner = settings.inner.model_copy(update={"sequences": 2, "sequence_tokens": 32})
        settings_module.save(
            self.home.folder,
            settings.model_copy(
                update={
                    "network": network,
                    "rounds": rounds_table,
                    "inner": inner,
                    "page": PageSettings(enabled=False),
                }
            ),
        )

    def aggregate(self, **changes: Any) -> None:
        """Change the table `[aggregation]` of a founded federation's policy."""
        policy = self.home.load_policy()
        table = policy.aggregation.model_copy(update=changes)
        save_policy(self.home.policy, policy.model_copy(update={"aggregation": table}))

    def decide(self, **tables: Mapping[str, Any]) -> None:
        """Change tables of a founded federation's policy."""
        save_policy(self.home.policy, changed_policy(self.home.load_policy(), **tables))

    def serve(self) -> None:
        """Start the coordinator and wait until it listens."""
        self.start("coordinator", "coordinator", "serve", str(self.home.folder))
        self.wait_until_listening("coordinator")

    def wait_until_listening(self, name: str) -> None:
        """Wait until a coordinator serves."""
        self.wait(lambda: "enrolment:" in self.log(name))

    def stand_by(self, name: str) -> CoordinatorHome:
        """Start another coordinator at the same address; return its folder once it stands by."""
        home = CoordinatorHome(self.folder / name)
        home.folder.mkdir()
        for part in ("ca", "identity"):
            shutil.copytree(self.home.folder / part, home.folder / part)
        for part in ("coordinator.toml", "policy.toml"):
            shutil.copy(self.home.folder / part, home.folder / part)
        self.start(name, "coordinator", "serve", str(home.folder))
        self.wait(lambda: "standing by: " in self.log(name))
        return home

    def invite(self, member: str, *, role: str = "contributor") -> str:
        """Return an invitation's text."""
        home = str(self.home.folder)
        said = self.call("coordinator", "invite", member, "--role", role, "--dir", home)
        return next(line for line in said.splitlines() if line.startswith("tapestry-invite-"))

    def join(self, member: str, language: str, *, role: str = "contributor") -> Path:
        """Make a node with its text; return its folder."""
        node, invited = self.folder / member, self.invite(member, role=role)
        write_text(self.folder / f"{member}-text", language)
        self.call("node", "join", invited, "--dir", str(node), "--language", language)
        return node

    def describe(self, member: str, language: str) -> None:
        """Describe a node's text in `corpus.toml`; then it is not named when the node runs."""
        (self.folder / member / "corpus.toml").write_text(
            '[filters]\nduplicates = "exact"\nwrong_language = "keep"\n'
            f'[[source]]\nname = "archive"\npath = "../{member}-text"\nlanguage = "{language}"\n'
            'licence = "CC0-1.0"\njurisdiction = "EU"\ncategory = "private"\n'
            'consent = "registry 7"\n',
            encoding="utf-8",
        )

    def run_node(self, member: str) -> None:
        """Start a node's daemon; it ends when no further round is planned."""
        is_described = (self.folder / member / "corpus.toml").is_file()
        data = () if is_described else ("--data", str(self.folder / f"{member}-text"))
        self.start(member, "node", "run", str(self.folder / member), "--until-finished", *data)

    def start(self, name: str, *arguments: str) -> None:
        """Start a `tapestry` process."""
        if self.forks is not None:
            log = self.folder / "logs" / f"{name}.log"
            self.processes.running[name] = self.forks.start(arguments, log)
            return
        old = os.environ.copy()
        os.environ.update(self.environment)
        try:
            self.processes.start(name, tapestry_command(*arguments))
        finally:
            os.environ.clear()
            os.environ.update(old)

    def kill(self, name: str) -> None:
        """End a process at once, as a crash would."""
        process = self.processes.running.pop(name)
        process.send_signal(signal.SIGKILL)
        process.wait()

    def log(self, name: str) -> str:
        """Return what a process has printed."""
        return (self.folder / "logs" / f"{name}.log").read_text(encoding="utf-8")

    def call(self, *arguments: str, code: int = 0) -> str:
        """Run a `tapestry` command; return its output, stderr if it is expected to fail."""
        if self.forks is not None:
            ended, out, err = self.forks.call(arguments, self.folder / "logs")
            assert ended == code, out + err
            return err if code else out
        done = subprocess.run(
            tapestry_command(*arguments),
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, **self.environment},
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stderr if code else done.stdout

    def status(self) -> dict[str, Any]:
        """Return where the federation stands."""
        return status_of(self.home)

    def progress(self, member: str) -> dict[str, Any]:
        """Return what a node says it does."""
        path = self.folder / member / "progress.json"
        table: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
        return table

    def wait(self, condition: Callable[[], bool], *, seconds: float = 180.0) -> None:
        """Wait until `condition` holds."""
        wait_for(condition, self.processes, self.log, seconds=seconds)

    def verify(self, number: int) -> str:
        """Verify a checkpoint, once a member's cosignature is beside it; return what was said."""
        proof = self.home.checkpoint(number) / PROOF_FILE
        self.wait(lambda: proof.is_file() and proof.read_text(encoding="utf-8").count("— ") > 1)
        return self.call("checkpoint", "verify", str(self.home.checkpoint(number)))

    def wait_done(self, member: str) -> None:
        """Wait until a node ended by itself, without an error."""
        self.wait(lambda: self.processes.is_done(member))


@contextmanager
def served_copy(federation: Federation, folder: Path) -> Iterator[Live]:
    """Serve a copy of the small federation, at genesis, by a coordinator's process."""
    shutil.copytree(federation.home.folder, folder / "coordinator")
    with Processes(folder / "logs") as processes:
        live = Live(folder, processes, free_port_pair())
        shutil.rmtree(live.home.checkpoint(1))  # its registry knows of round 0 only
        settings = live.home.load_settings()
        network = settings.network.model_copy(
            update={
                "listen": f"127.0.0.1:{live.port}",
                "address": f"localhost:{live.port}",
                "enrolment_listen": f"127.0.0.1:{live.port + 1}",
                "enrolment_address": f"localhost:{live.port + 1}",
            }
        )
        settings_module.save(live.home.folder, settings.model_copy(update={"network": network}))
        live.serve()
        yield live
