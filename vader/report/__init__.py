"""Results as data: a notebook's measurements, the paper's numbers beside them, and the claims that they decide.

A notebook fills a `Report`; `save` checks it against the contract below and writes
`reports/<notebook>.<profile>.json`. A notebook run on other data than its default is a report of its own:
`reports/table1-furniture.laptop.json`. Tables are drawn from reports, so that a number is measured once and
never typed, and numbers of one profile never stand in a column of another or of the paper.

    report = begin("table1", globals(), profile=("smoke", "laptop"), data=("procedural",), seed=range(2**31))
    report.row(system="ours", dataset="furniture_chairs", metric="kd", scale=1000, value=..., std=..., n=3,
               features="efficientnet-lite0", resolution=48, source="measured")
    report.claim("table1.chairs.ours_beats_dls", "…", where="Tab. 1", verdict=decide(gain, low, high), evidence="…")
    report.save()

Commands: `vader report table1 --profile laptop -p data=furniture` runs a notebook into
`reports/`, `… refresh table1` renews the outputs stored in it, `… claims` collects the claims.
"""

from .claims import decide, decide_equal, decide_ratio, seed_interval
from .notebook import ParameterError, begin, check_parameters
from .report import Report, load, read_reports
from .schema import ReportError, validate
from .tables import frame, table

__all__ = [
    "ParameterError", "Report", "ReportError", "begin", "check_parameters", "decide", "decide_equal",
    "decide_ratio", "frame", "load", "read_reports", "seed_interval", "table", "validate",
]  # fmt: skip
