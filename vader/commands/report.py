"""`python -m vader.report`: run a notebook, renew its stored outputs, or collect the claims."""

from __future__ import annotations

import argparse
import sys

from ..report.claims import write_claims
from ..report.contract import ReportError
from ..report.notebook import ParameterError, refresh, run
from ..report.readme import write_readme


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m vader.report",
        description="Run a notebook and leave its report; or 'refresh NOTEBOOK ...': renew the outputs stored in "
        "notebooks; or 'claims': collect the claims of all reports, and renew README's excerpt of Table 1.",
    )
    parser.add_argument("what", help="a notebook by name, e.g. table1, or 'refresh', or 'claims'")
    parser.add_argument("notebooks", nargs="*", help="with 'refresh': notebooks by name")
    parser.add_argument("--profile", default="smoke", help="size of the experiment (default: %(default)s)")
    parser.add_argument("-p", dest="parameters", metavar="NAME=VALUE", action="append", default=[], help="a parameter")
    options = parser.parse_args(arguments)

    try:
        if options.what == "claims":
            files = [*write_claims(), *write_readme()]
        elif options.what == "refresh":
            files = [refresh(name) for name in options.notebooks]
        else:
            pairs = [parameter.partition("=") for parameter in options.parameters]
            if any(not separator for _, separator, _ in pairs):
                parser.error("-p takes NAME=VALUE")
            files = run(options.what, options.profile, {name: value for name, _, value in pairs})
    except (ParameterError, ReportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print("\n".join(map(str, files)))
    return 0
