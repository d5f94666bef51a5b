"""Tables of reports: data frames, and styled HTML to read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from .schema import COUNTS, METRICS, SYSTEMS

if TYPE_CHECKING:
    import pandas
    from pandas.io.formats.style import Styler


def frame(reports: Iterable[dict[str, Any]]) -> pandas.DataFrame:
    """The rows of reports (as read from their JSON), one line each, with the notebook and profile they come from."""
    import pandas

    return pandas.DataFrame(
        [{"notebook": r["notebook"], "profile": r["profile"], **row} for r in reports for row in r["rows"]]
    )


def table(rows: Iterable[dict[str, Any]], metrics: Sequence[str] = (), uuid: str = "report") -> Styler:
    """Systems by (source, data set, metric). Each row needs its 'profile'; metrics: those to show, default all.

    What the paper states has columns of its own, and so has each profile. The HTML has fixed ids made of `uuid`.
    Raises ValueError where there is no row to show, or two for one cell.
    """
    import pandas

    cells: dict[str, dict[tuple[str, str, str], str]] = {}
    for row in rows:
        if metrics and row["metric"] not in metrics:
            continue
        system, source = _system(row), "paper" if row["source"] == "paper" else f"measured, {row['profile']} profile"
        column = (source, row["dataset"].replace("_", " "), _metric(row))
        if column in cells.setdefault(system, {}):
            raise ValueError(f"two numbers for one cell of the table: {system}, {', '.join(column)}")
        cells[system][column] = _value(row)
    if not cells:
        raise ValueError(f"no rows to show{' of ' + ', '.join(metrics) if metrics else ''}")
    columns = list(dict.fromkeys(column for line in cells.values() for column in line))
    columns.sort(key=lambda column: (column[0] == "paper", column[:2]))  # stable: metrics keep their order
    grid = [[line.get(column, "–") for column in columns] for line in cells.values()]
    header = pandas.MultiIndex.from_tuples(columns, names=["source", "data", "metric"])
    styler = pandas.DataFrame(grid, index=list(cells), columns=header).style.set_uuid(uuid)
    return styler.set_table_styles([{"selector": "th, td", "props": "text-align: right; padding: 0.2em 0.8em;"}])


def _system(row: dict[str, Any]) -> str:
    name, _, change = row["system"].partition("-")
    details = [detail for detail in (change.replace("_", " "), row.get("variant", "")) if detail]
    return SYSTEMS[name] + (f" ({', '.join(details)})" if details else "")


def _metric(row: dict[str, Any]) -> str:
    features = row.get("features", "inception-v3")
    label = METRICS[row["metric"]] + (f" ({features})" if features != "inception-v3" else "")
    return label + (f" ×{row['scale']:g}" if row.get("scale", 1) != 1 else "")


def _value(row: dict[str, Any]) -> str:
    if row["metric"] in COUNTS:
        return f"{row['value']:,}" if isinstance(row["value"], int) else f"{row['value']:.4g}"
    text = f"{row['value']:.4g}"
    if "low" in row:
        return f"{text} [{row['low']:.4g}, {row['high']:.4g}]"
    return f"{text} ± {row['std']:.2g}" if "std" in row else text
