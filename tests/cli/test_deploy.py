"""What lies in `deploy/`: units that systemd takes, an image made of files that are there."""

import json
import re
import shutil
import subprocess
import tomllib
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import typer

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_takes_the_units(tmp_path: Path) -> None:
    units = sorted(path for path in DEPLOY.iterdir() if path.suffix in {".service", ".timer"})
    for path in units:  # the program need not be installed here
        text = path.read_text(encoding="utf-8")
        (tmp_path / path.name).write_text(text.replace("/opt/tapestry/bin/tapestry", "/bin/true"))
    names = [str(tmp_path / path.name) for path in units]
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *names],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", ["tapestry-coordinator.service", "tapestry-node.service"])
def test_services_may_write_to_their_own_folder_alone(name: str) -> None:
    lines = (DEPLOY / name).read_text(encoding="utf-8").splitlines()
    for setting in ("ProtectSystem=strict", "NoNewPrivileges=yes", "UMask=0077"):
        assert setting in lines
    assert not any(line.startswith(("ReadWritePaths", "User=root")) for line in lines)
    assert any(line.startswith("User=tapestry") for line in lines)


def test_the_image_copies_what_there_is_and_does_not_run_as_root() -> None:
    lines = (DEPLOY / "Containerfile").read_text(encoding="utf-8").splitlines()
    copied = [line.split()[1:-1] for line in lines if line.startswith("COPY ") and "--" not in line]
    assert copied
    for name in (name for names in copied for name in names):
        assert (ROOT / name).exists(), name
    assert "USER 10001" in lines


def test_the_image_has_every_package_and_the_extras_that_there_are() -> None:
    text = (DEPLOY / "Containerfile").read_text(encoding="utf-8")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    for package in packages:
        assert f"COPY {package.split('/')[0]} /src/" in text, package
    (extras,) = re.findall(r"'/src\[([a-z0-9,]+)\]'", text)
    assert {"full", "postgres", "s3"} <= set(extras.split(","))
    assert set(extras.split(",")) <= set(project["project"]["optional-dependencies"])


def started() -> list[list[str]]:
    """What the units and the image start, without the program's path."""
    text = (DEPLOY / "Containerfile").read_text(encoding="utf-8")
    units = "\n".join(path.read_text(encoding="utf-8") for path in DEPLOY.glob("*.service"))
    commands = re.findall(r"^ExecStart=\S+/tapestry (.+)$", units, flags=re.MULTILINE)
    lists = re.findall(r"^CMD (.+)$", text, flags=re.MULTILINE)
    return [*(line.split() for line in commands), *(json.loads(line) for line in lists)]


@pytest.mark.parametrize("words", started(), ids=lambda words: " ".join(words[:2]))
def test_what_is_started_is_a_command_with_those_options(words: list[str]) -> None:
    part, name, *rest = words
    (point,) = entry_points(group="tapestry.commands", name=part)
    command = typer.main.get_command(point.load()).commands[name]  # type: ignore[attr-defined]
    options = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in rest if word.startswith("--")} <= options
