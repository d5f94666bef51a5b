"""`vader report`: run a notebook, renew its stored outputs, or collect the claims."""

from __future__ import annotations

import argparse

from ..report.claims import write_claims
from ..report.notebook import refresh, run
from ..report.readme import write_readme


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="vader report",
        description="Run a notebook and write its report. With 'refresh', renew the outputs stored in notebooks.\n"
        "With 'claims', collect the claims of all reports and renew README's excerpt of Table 1.",
        epilog="examples:\n"
        "  vader report table1 --profile laptop -p data=furniture\n"
        "  vader report refresh table1 table2\n"
        "  vader report claims",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", help="name of a notebook, e.g. table1, or 'refresh' or 'claims'")
    parser.add_argument("notebooks", nargs="*", help="names of notebooks to refresh")
    parser.add_argument("--profile", default="smoke", help="size of the experiment (default: %(default)s)")
    parser.add_argument(
        "-p", dest="parameters", metavar="NAME=VALUE", action="append", default=[], help="a parameter of the notebook"
    )
    options = parser.parse_args(arguments)

    if options.what == "claims":
        files = [*write_claims(), *write_readme()]
    elif options.what == "refresh":
        files = [refresh(name) for name in options.notebooks]
    else:
        pairs = [parameter.partition("=") for parameter in options.parameters]
        if any(not separator for _, separator, _ in pairs):
            parser.error("-p takes NAME=VALUE")
        files = run(options.what, options.profile, {name: value for name, _, value in pairs})
    print("\n".join(map(str, files)))
    return 0
