"""`Report`, which a notebook fills and saves; and all reports of a folder, read and checked."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..store.files import RunError, read_json, write_file, write_json
from ..store.paths import reports_dir
from ..store.provenance import environment
from ..store.runs import Run, utc_now
from ..store.weights import taken
from .png import SAVED_AS, figure_png
from .schema import COUNTS, ReportError, check_claim, check_row, report_digest, validate
from .tables import table

if TYPE_CHECKING:
    import torch
    from matplotlib.figure import Figure
    from pandas.io.formats.style import Styler


class Report:
    """The result of one notebook in one profile."""

    def __init__(
        self, notebook: str, profile: str, seed: int, data: str = "procedural", device: torch.device | str = "cpu"
    ) -> None:
        """data: the notebook's parameter of that name; 'procedural', the default, is no part of the report's name."""
        self.notebook, self.profile, self.seed = notebook_part(notebook, data), profile, seed
        self.rows: list[dict[str, Any]] = []
        self.claims: list[dict[str, Any]] = []
        self.weights: list[dict[str, str]] = []
        self.runs: list[dict[str, Any]] = []
        self._device, self._start = device, time.monotonic()
        self._weights_before = len(taken())

    def row(self, *, system: str, dataset: str, metric: str, value: float, source: str, **fields: Any) -> None:
        """Add a number. fields: see `schema.ROW_FIELDS`; numpy and torch scalars are taken as numbers."""
        row = {"system": system, "dataset": dataset, "metric": metric, "value": value, "source": source, **fields}
        row = {key: item.item() if hasattr(item, "item") else item for key, item in row.items() if item is not None}
        if source == "measured" and metric in COUNTS:
            row = {**row, "n": 1, "std": 0.0}
        check_row(f"{self.notebook}.{self.profile}, row {len(self.rows)}", row)
        self.rows.append(row)

    def claim(self, id: str, text: str, *, where: str, verdict: str, evidence: str) -> None:
        """Add a claim of the paper (id: <notebook>.<what>), where it is made, and what was found. See `decide`."""
        claim = {"id": id, "text": text, "where": where, "verdict": verdict, "evidence": evidence}
        check_claim(f"{self.notebook}.{self.profile}, claim {len(self.claims)}", claim)
        self.claims.append(claim)

    def claim_each(self, asked: Mapping[str, tuple[str, str, tuple[str, str]]], of: str) -> None:
        """Add and print claims {what: (text, where, (verdict, evidence))}; of: data and profile, for the evidence."""
        for name, (text, where, (verdict, evidence)) in asked.items():
            id = f"{self.notebook.partition('-')[0]}.{name}"  # the same on whatever data
            self.claim(id, text, where=where, verdict=verdict, evidence=f"{evidence}; {of}")
            print(f"{name}: {verdict}; {evidence}")

    def used(self, what: Run | Any) -> None:
        """Note a run, or pretrained weights, that the numbers rest on. Weights that `vader.store.weights.resolve` finds
        from the report's beginning on, for metrics say, are noted by themselves."""
        if isinstance(what, Run):
            facts = {key: what.record.get(key) for key in ("seed", "device", "seconds", "peak_memory_bytes")}
            self.runs.append({"run": what.folder.name, "digest": what.digest, "origin": what.origin, **facts})
        else:
            self.weights.append(what.describe())

    def picture(self, name: str, figure: Figure) -> Path:
        """Save a matplotlib figure beside the report as `<notebook>.<profile>.<name>.png` and return where.

        Shown in the notebook after that, it is a link to this file in the notebook's page.
        """
        file = reports_dir() / f"{self.notebook}.{self.profile}.{name}.png"
        self._write(file, lambda: write_file(file, figure_png(figure, bbox_inches="tight")))
        setattr(figure, SAVED_AS, file.name)  # so that where it is shown, a page links the file
        return file

    def as_dict(self) -> dict[str, Any]:
        """The report as it is written. Raises ReportError where it breaks the contract."""
        facts = environment(self._device)
        weights = [*self.weights, *(found.describe() for found in taken(self._weights_before))]
        weights = [entry for n, entry in enumerate(weights) if entry not in weights[:n]]
        report = {
            "notebook": self.notebook,
            "profile": self.profile,
            "seed": self.seed,
            "created": utc_now(),
            "commit": facts.pop("commit"),
            "environment": {**facts, "weights": weights, "runs": self.runs},
            "wall_seconds": round(time.monotonic() - self._start, 1),
            "rows": self.rows,
            "claims": self.claims,
        }
        report = {**report, "digest": report_digest(report)}
        validate(report)
        return report

    def save(self) -> Path:
        """Write `<notebook>.<profile>.json` into the reports folder and return where."""
        report = self.as_dict()
        file = reports_dir() / f"{self.notebook}.{self.profile}.json"
        self._write(file, lambda: write_json(file, report))
        return file

    @staticmethod
    def _write(file: Path, write: Callable[[], None]) -> None:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            write()
        except OSError as error:
            raise ReportError(f"{file}: cannot be written ({error}); set VADER_REPORTS to a folder that can") from error

    def table(self, metrics: Sequence[str] = ()) -> Styler:
        """The rows as a table to show in the notebook, see `tables.table`."""
        return table([{"profile": self.profile, **row} for row in self.rows], metrics, uuid=self.notebook)


def notebook_part(notebook: str, data: str = "procedural") -> str:
    """The first part of a report's file name: the notebook, and the data where they are not its default."""
    return notebook if data == "procedural" else f"{notebook}-{data}"


# ------------------------------------------------------------------------------------------------ all reports


def read_reports(folder: Path | None = None) -> list[dict[str, Any]]:
    """The reports of notebooks in a folder (default: the reports folder), each checked, sorted by file name.

    Those of the smoke profile are left out: they show that the code runs, and git ignores them.
    """
    files = sorted((folder or reports_dir()).glob("*.*.json"))
    return [_read(f) for f in files if not f.name.startswith("benchmarks.") and not f.name.endswith(".smoke.json")]


def load(notebook: str, profile: str, data: str = "procedural") -> dict[str, Any]:
    """One report as written. Raises ReportError if it is not there or breaks the contract."""
    file = reports_dir() / f"{notebook_part(notebook, data)}.{profile}.json"
    if not file.is_file():
        raise ReportError(f"{file}: no such report; `vader report {notebook} --profile {profile}` makes it")
    return _read(file)


def _read(file: Path) -> dict[str, Any]:
    try:
        report = read_json(file)
    except RunError as error:
        raise ReportError(str(error)) from error
    validate(report, str(file))
    if file.name != f"{report['notebook']}.{report['profile']}.json":
        raise ReportError(f"{file}: holds the report {report['notebook']}.{report['profile']}")
    return report
