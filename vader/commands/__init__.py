"""The commands of `vader`, a file each: `vader data`, `vader train`, `vader report`, ..."""

from __future__ import annotations

import sys
from importlib import import_module
from io import TextIOWrapper

from ..settings.checks import ConfigError, nearest

COMMANDS = {  # in the order in which a newcomer needs them; each is a module here with `main(arguments) -> status`
    "data": "prepare a data set: rendered or read once, loaded from then on",
    "train": "train a system on a data set, or go on with a training that was stopped",
    "sample": "make objects with a trained model: turntables, pictures, meshes, volumes",
    "study": "run the trainings of one study: ablations, resolutions, hash embeddings, ...",
    "report": "run a notebook and write its report, or collect the claims of all reports",
    "runs": "list the trained runs, or keep one in the repository",
}

SAID = (ConfigError, ImportError, OSError)  # errors that a user can mend, beside those of the rooms


def main(arguments: list[str] | None = None) -> int:
    """`vader COMMAND ...`: the exit status.

    0 finished, 1 an error, in one line on stderr, 2 a wrong command line, 75 (temporary failure) a training that was
    paused: run it again. 130 interrupted.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # a name that the terminal cannot show is no reason to stop
            stream.reconfigure(errors="backslashreplace")
    if not arguments or arguments[0] in ("-h", "--help"):
        print(overview())
        return 0 if arguments else 2
    name, *rest = arguments
    if name not in COMMANDS:
        known = list(COMMANDS)
        hint = nearest(name, known)
        print(f"vader: no command is called {name!r}{hint}; there are {', '.join(known)}", file=sys.stderr)
        return 2
    return _in_one_line(name, rest)


def overview() -> str:
    """What `vader --help` prints."""
    lines = [f"  {name:<8} {what}" for name, what in COMMANDS.items()]
    return "\n".join(["usage: vader COMMAND ...", "", *lines, "", "vader COMMAND --help says more of each."])


def _in_one_line(name: str, arguments: list[str]) -> int:
    """Run a command; what a user can mend is said without a traceback."""
    from ..data import DataError
    from ..evaluation.metrics import MetricError
    from ..generation.objects import ObjectError
    from ..report import ParameterError, ReportError
    from ..store.files import RunError
    from ..store.runs import Paused
    from ..store.weights import WeightsError
    from ..training import PAUSED

    try:
        return import_module(f".{name}", __name__).main(arguments)
    except Paused as pause:
        print(pause, file=sys.stderr)
        return PAUSED
    except (*SAID, DataError, MetricError, ObjectError, ParameterError, ReportError, RunError, WeightsError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; what was saved stays, and the same command goes on from there", file=sys.stderr)
        return 130
