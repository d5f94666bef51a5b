"""The commands of `vader`, a file each: `vader data`, `vader train`, `vader report`, `vader runs`, ..."""

from __future__ import annotations

import sys
from importlib import import_module

from ..settings.checks import nearest

COMMANDS = {  # in the order in which a newcomer needs them; each is a module here with `main(arguments) -> status`
    "data": "prepare a data set: render or read it once, then it loads",
    "train": "train both stages of an experiment, or resume them",
    "report": "run a notebook and leave its report, renew stored outputs, collect the claims",
    "runs": "list trained runs, or keep one as a reference run",
}


def main(arguments: list[str] | None = None) -> int:
    """`vader COMMAND ...`. Exit status: what the command says; 2 where the command line is wrong."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        print(overview())
        return 0 if arguments else 2
    name, *rest = arguments
    if name not in COMMANDS:
        known = list(COMMANDS)
        print(
            f"vader: no command is called {name!r}{nearest(name, known)}; there are {', '.join(known)}", file=sys.stderr
        )
        return 2
    return import_module(f".{name}", __name__).main(rest)


def overview() -> str:
    """What `vader --help` prints."""
    lines = [f"  {name:<8} {what}" for name, what in COMMANDS.items()]
    return "\n".join(["usage: vader COMMAND ...", "", *lines, "", "vader COMMAND --help says more."])
