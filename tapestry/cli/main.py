"""The command `tapestry`: finds the sub-command's package and imports only that.

Exit codes: 0 done, 1 refused with one line on stderr, 2 wrong usage, 130 interrupted. A bug keeps
its traceback.
"""

import sys
from importlib.metadata import entry_points, version

_SUMMARIES = {
    "demo": "a whole federation on this machine, measured (start here)",
    "node": "join a federation, train where your data is, see what left",
    "coordinator": "make a federation, invite members, run rounds",
    "checkpoint": "verify, show, list and fetch published checkpoints",
    "ledger": "show and verify what a federation has recorded, and who has seen it",
    "finetune": "turn a consensus checkpoint into an assistant of your own language",
    "chat": "talk with a checkpoint, or with a community's model",
    "serve": "a page and an OpenAI-compatible endpoint for them",
    "export": "write them for other programs: transformers, llama.cpp, peft",
}
_TO_LOCALIZE = ("accelerate", "charset_normalizer", "gguf", "peft", "trl")
"""What only the extra `finetune` brings."""


def main(argv: list[str] | None = None) -> int:
    """Run one sub-command."""
    arguments = sys.argv[1:] if argv is None else argv
    points = {point.name: point for point in entry_points(group="tapestry.commands")}
    if not arguments or arguments[0] in ("--help", "-h", "help"):
        print(_help(sorted(points, key=_order)))
        return 0
    if arguments[0] == "--version":
        print(f"tapestry {version('tapestry-fl')}")
        return 0
    if arguments[0] not in points:
        print(f"tapestry: no command {arguments[0]!r}; see `tapestry --help`", file=sys.stderr)
        return 2
    from tapestry.cli.running import run_app  # noqa: PLC0415 - typer and rich only when needed

    try:
        return run_app(points[arguments[0]].load(), arguments)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing.startswith("tapestry"):
            raise  # a bug of ours
        without, extra = "for verifying", "full"
        if missing in _TO_LOCALIZE:
            without, extra = "without localization", "finetune"
        print(
            f"tapestry: this needs {missing}, which an installation {without} leaves out: "
            f"pip install 'tapestry-fl[{extra}]'",
            file=sys.stderr,
        )
        return 1


def _order(name: str) -> int:
    names = list(_SUMMARIES)
    return names.index(name) if name in names else len(names)


def _help(names: list[str]) -> str:
    rows = "\n".join(f"  {name:<12} {_SUMMARIES.get(name, '')}" for name in names)
    return (
        "tapestry: institutions of many countries train one foundation model together\n"
        "and keep their data.\n\n"
        "usage: tapestry COMMAND ...      (tapestry COMMAND --help explains each)\n\n"
        f"{rows}\n\n"
        "  --version    print the version\n\n"
        "First steps: `tapestry demo --quick` shows everything in a minute and a half.\n"
        "To join a federation: `tapestry node join INVITATION`, then `tapestry node run`.\n"
        "To found one: `tapestry coordinator init DIR --name NAME`."
    )


if __name__ == "__main__":
    sys.exit(main())
