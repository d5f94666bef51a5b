"""README's excerpt of Table 1, drawn from the committed reports so that no number in it is typed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..store.paths import project_root, reports_dir
from .report import read_reports
from .schema import SYSTEMS

START, END = "<!-- table1 -->", "<!-- /table1 -->"
ROWS = (  # system, variant in reports, status
    ("ours", None, "scaled down"),
    ("dls", "fitted", "scaled down, same autodecoder"),
    ("dls", "standard", "scaled down, same autodecoder"),
    ("diffrf", None, "scaled down"),
    ("eg3d", None, "scaled down"),
    ("pi_gan", None, "scaled down"),
)
TRAINED = ("diffrf", "eg3d", "pi_gan")  # apart from ours, whose autodecoder direct latent sampling takes
MEASURED = ("furniture_chairs", "furniture_tables")
PAPER = ("photoshape_chairs", "abo_tables")


def excerpt(reports: list[dict[str, Any]]) -> str:
    """Markdown: kernel distances measured in the laptop profile, and apart from them the paper's FID and KID."""
    tables = [r for r in reports if r["profile"] == "laptop" and r["notebook"].startswith("table1")]
    rows = [row for report in tables for row in report["rows"]]

    def value(system: str, variant: str | None, dataset: str, metric: str, source: str) -> str:
        wanted = (system, variant, dataset, metric, source)
        keys = ("system", "variant", "dataset", "metric", "source")
        found = [row for row in rows if tuple(row.get(key) for key in keys) == wanted]
        if not found:
            return "–"
        spread = f" ± {found[0]['std']:.2g}" if "std" in found[0] else ""
        if "low" in found[0]:
            spread = f" [{found[0]['low']:.4g}, {found[0]['high']:.4g}]"
        return f"{found[0]['value']:.4g}{spread}"

    def trained(system: str) -> str:
        """For how long, beside ours, on each set whose trainings were timed."""
        shares = {}
        for dataset in MEASURED:
            seconds = {
                name: sum(
                    r["value"] for r in rows if (r["system"], r["dataset"], r["metric"]) == (name, dataset, "seconds")
                )
                for name in ("ours", system)
            }
            if all(seconds.values()):
                shares[dataset.rpartition("_")[2]] = seconds[system] / seconds["ours"]
        told = " and ".join(f"{share:.2g} ({name})" for name, share in shares.items())
        return f", trained for {told} of our time" if told else ""

    header = ["", *(f"{d.replace('_', ' ')}: KD ×10³" for d in MEASURED)]
    header += [f"paper, {d.replace('_', ' ')}: FID / KID ×10³" for d in PAPER] + ["status"]
    lines = [header, ["---"] * len(header)]
    for system, variant, status in ROWS:
        measured = [value(system, variant, d, "kd", "measured") for d in MEASURED]
        stated = [" / ".join(value(system, variant, d, m, "paper") for m in ("fid", "kid")) for d in PAPER]
        status += trained(system) if system in TRAINED else ""
        name = SYSTEMS[system] + (f" ({variant} prior)" if variant else "")
        lines.append([name, *measured, *(s.replace("– / –", "–") for s in stated), status])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write_readme() -> list[Path]:
    """Renew the excerpt between README's markers, unless reports are kept elsewhere. ValueError if they are gone."""
    if reports_dir() != project_root() / "reports":
        return []  # README shows the committed reports only
    file = project_root() / "README.md"
    text = file.read_text(encoding="utf-8")
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not (start and end):
        raise ValueError(f"{file}: no {START} … {END} to write the excerpt of Table 1 between")
    file.write_text(f"{before}{START}\n{excerpt(read_reports())}\n{END}{after}", encoding="utf-8")
    return [file]
