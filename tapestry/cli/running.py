"""What every command shares: one-line errors, log lines, where things lie by default."""

import json
import logging
import os
import sys
import warnings
from datetime import UTC, datetime
from pathlib import Path

import platformdirs
import typer

from tapestry.errors import ConfigError, TapestryError


def run_app(app: typer.Typer, arguments: list[str]) -> int:
    """Run a typer application as `tapestry NAME ...`; return the exit code."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # what matters comes as an error of ours
    if not sys.warnoptions:  # what libraries tell each other of their next versions
        warnings.simplefilter("ignore", FutureWarning)
    command = typer.main.get_command(app)
    try:
        command.main(args=arguments[1:], prog_name=f"tapestry {arguments[0]}")
    except TapestryError as error:
        print(f"tapestry: {error}", file=sys.stderr)
        return 1
    except SystemExit as exit_:
        return exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
    return 0


def default_home(kind: str) -> Path:
    """Return the folder of a node or coordinator whose operator named none."""
    return Path(platformdirs.user_data_dir("tapestry", appauthor=False)) / kind


def existing(folder: Path) -> Path:
    """Return a folder that a command was given.

    Raises:
        ConfigError: There is none.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder")
    return folder


def log_to_stderr(*, as_json: bool, verbose: bool) -> None:
    """Send the log to stderr, for people or as one JSON object a line."""
    handler = _ToStderr()
    handler.setFormatter(_JsonLines() if as_json else _ForPeople())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    for name in ("tapestry", "tapestry_node", "tapestry_coordinator", "tapestry_finetune"):
        logging.getLogger(name).setLevel(logging.DEBUG if verbose else logging.INFO)


class _ToStderr(logging.Handler):
    """Writes to whatever stderr is at that moment: a progress bar puts itself in its place."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        try:
            sys.stderr.write(self.format(record) + "\n")
            sys.stderr.flush()
        except (OSError, ValueError):  # nobody reads any more
            self.handleError(record)


class _ForPeople(logging.Formatter):
    """`12:00:00 message`, with the level only when it is a warning or worse."""

    def format(self, record: logging.LogRecord) -> str:
        """Return one line, and a traceback if there is one."""
        time = datetime.fromtimestamp(record.created, UTC).astimezone().strftime("%H:%M:%S")
        level = f"{record.levelname.lower()}: " if record.levelno > logging.INFO else ""
        text = f"{time} {level}{record.getMessage()}"
        return (
            text if record.exc_info is None else f"{text}\n{self.formatException(record.exc_info)}"
        )


class _JsonLines(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as JSON."""
        table = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname.lower(),
            "part": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info is not None:
            table["traceback"] = self.formatException(record.exc_info)
        return json.dumps(table, ensure_ascii=False)
