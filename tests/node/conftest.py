"""What several tests of a node train on."""

from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with forty short documents."""
    folder = tmp_path_factory.mktemp("text")
    documents = [f"{number}. the shuttle carries the weft through the shed" for number in range(40)]
    (folder / "text.txt").write_text("\n\n".join(documents), encoding="utf-8")
    return folder
