"""The contract of a report: allowed names, fields of rows and claims, and their check."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable
from typing import Any

from ..settings.checks import nearest
from ..store.files import canonical

SYSTEMS = {  # name in reports -> name in tables; variations of ours are called ours-<change>
    "ours": "Ours",
    "dls": "Direct latent sampling",
    "pi_gan": "π-GAN",
    "eg3d": "EG3D",
    "diffrf": "DiffRF",
    "real": "Real objects",  # held-out ones as if a system had made them: what bounds every metric
}
METRICS = {  # name in reports -> name in tables
    "fid": "FID ↓", "kid": "KID ↓", "fd": "FD ↓", "kd": "KD ↓",
    "cov": "COV ↑", "mmd": "MMD ↓", "mmd_smp": "MMD-smp ↓", "one_nna": "1-NNA",
    "psnr": "PSNR ↑", "lpips": "LPIPS ↓", "iou": "IoU ↑", "ari": "ARI ↑",
    "rotation_error_deg": "rotation error (°) ↓", "normal_error_deg": "normal error (°) ↓",
    "attribute_accuracy": "attribute accuracy ↑",
    "placed_share": "photographs placed ↑", "reprojection_px": "reprojection error (px) ↓",
    "parameters": "parameters", "flops": "FLOPs", "seconds": "seconds ↓",
    "bytes": "bytes ↓",
}  # fmt: skip
COUNTS = ("parameters", "flops", "bytes")  # exact, so they have no spread
VERDICTS = ("fails", "inconclusive", "holds", "not_tested")  # in the order in which a reader should see them
WITH_FEATURES = ("fid", "kid", "fd", "kd", "lpips")
SOURCES = ("measured", "paper")
FIELDS = ("notebook", "profile", "seed", "created", "commit", "digest", "environment", "wall_seconds", "rows", "claims")
ROW_FIELDS = (  # the first five are required
    *("system", "dataset", "metric", "value", "source"),
    "variant",  # which form of a system, e.g. the prior of direct latent sampling
    "scale",  # what value, std, low and high have been multiplied by
    *("std", "low", "high"),  # spread over, or interval from, ...
    "n",  # ... this many seeds, subsets, images or objects
    "features",  # network whose features the metric compares
    "resolution",  # of images in pixels, or of volumes in voxels
    "note",
)
NUMBERS = ("value", "scale", "std", "low", "high")
INTEGERS = ("n", "resolution")
NAME = r"[a-z0-9]+(?:_[a-z0-9]+)*"


class ReportError(ValueError):
    """A report that breaks the contract; the message names report, row or claim, field and what was expected."""


def validate(report: dict[str, Any], name: str | None = None) -> None:
    """Raise ReportError unless `report` keeps the contract. name: how to call it, e.g. its file."""
    name = name or f"{report.get('notebook')}.{report.get('profile')}"
    if report.keys() != set(FIELDS):
        raise ReportError(f"{name}: fields {sorted(report.keys() ^ set(FIELDS))} are missing or unknown")
    patterns = {"notebook": rf"{NAME}(-{NAME})?", "profile": NAME, "created": r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"}
    examples = {"notebook": "table1 or table1-furniture", "profile": "laptop", "created": "2026-01-31T12:00:00Z"}
    for field, pattern in patterns.items():
        if not re.fullmatch(pattern, str(report[field])):
            raise ReportError(f"{name}: {field} is {report[field]!r}, expected it to look like {examples[field]}")
    if type(report["seed"]) is not int:
        raise ReportError(f"{name}: seed is {report['seed']!r}, expected an integer")
    missing = {"python", "torch", "device"} - report["environment"].keys()
    if missing:
        raise ReportError(f"{name}: environment has no {', '.join(sorted(missing))}")
    for i, row in enumerate(report["rows"]):
        check_row(f"{name}, row {i}", row)
    for i, claim in enumerate(report["claims"]):
        check_claim(f"{name}, claim {i}", claim)
        if claim["id"].partition(".")[0] != report["notebook"].partition("-")[0]:
            raise ReportError(f"{name}, claim {i}: id is {claim['id']!r}, expected the notebook's name in front")
    identity = ("system", "variant", "dataset", "metric", "features", "resolution", "source")
    _refuse_twins(name, "rows", [tuple(row.get(key) for key in identity) for row in report["rows"]])
    _refuse_twins(name, "claims", [claim["id"] for claim in report["claims"]])
    if report["digest"] != report_digest(report):
        raise ReportError(f"{name}: digest is {report['digest']!r}, but rows and claims give {report_digest(report)!r}")


def check_row(name: str, row: dict[str, Any]) -> None:
    """Raise ReportError, with `name` in front, unless `row` is one."""
    missing = [field for field in ROW_FIELDS[:5] if field not in row]
    if missing:
        raise ReportError(f"{name}: {', '.join(missing)} missing")
    for field, value in row.items():
        if field not in ROW_FIELDS:
            raise ReportError(f"{name}: field {field!r} is unknown{nearest(field, list(ROW_FIELDS))}")
        if field in NUMBERS and not (type(value) in (int, float) and math.isfinite(value)):
            raise ReportError(f"{name}: {field} is {value!r}, expected a finite number")
        if field in INTEGERS and not (type(value) is int and value > 0):
            raise ReportError(f"{name}: {field} is {value!r}, expected a positive integer")
        if field not in NUMBERS and field not in INTEGERS and not (isinstance(value, str) and value):
            raise ReportError(f"{name}: {field} is {value!r}, expected a text")
    if not re.fullmatch(rf"ours-{NAME}", row["system"]):
        _require_known(name, "system", row["system"], SYSTEMS)
    _require_known(name, "metric", row["metric"], METRICS)
    _require_known(name, "source", row["source"], SOURCES)
    name = f"{name} ({row['system']}, {row['dataset']}, {row['metric']})"
    features = row.get("features")
    if row["metric"] in WITH_FEATURES and features is None:
        raise ReportError(f"{name}: features missing, expected the network that {row['metric']} uses")
    if row["metric"] in ("fid", "kid") and features != "inception-v3":
        raise ReportError(f"{name}: features are {features!r}; with other ones than inception-v3 it is called fd or kd")
    if row["metric"] in ("fd", "kd") and features == "inception-v3":
        raise ReportError(f"{name}: features are {features!r}; with these it is called fid or kid")
    if row["source"] == "measured" and "n" not in row:
        raise ReportError(f"{name}: n missing, expected what the measured value is over")
    if row["source"] == "measured" and "std" not in row and "low" not in row:
        raise ReportError(f"{name}: std missing, expected it or low and high beside a measured value")
    if ("low" in row) != ("high" in row) or row.get("low", 0) > row.get("high", 0):
        raise ReportError(f"{name}: low and high are {row.get('low')} and {row.get('high')}, expected low <= high")
    if row.get("std", 0) < 0:
        raise ReportError(f"{name}: std is {row['std']}, expected it not to be negative")


def check_claim(name: str, claim: dict[str, Any]) -> None:
    """Raise ReportError, with `name` in front, unless `claim` is one."""
    fields = ("id", "text", "where", "verdict", "evidence")
    if claim.keys() != set(fields):
        raise ReportError(f"{name}: fields {sorted(claim.keys() ^ set(fields))} are missing or unknown")
    for field in fields:
        if not isinstance(claim[field], str) or not claim[field].strip():
            raise ReportError(f"{name}: {field} is {claim[field]!r}, expected a text")
    if not re.fullmatch(rf"{NAME}(\.{NAME})+", claim["id"]):
        raise ReportError(f"{name}: id is {claim['id']!r}, expected it to look like table1.chairs.ours_beats_diffrf")
    _require_known(name, "verdict", claim["verdict"], VERDICTS)


def _require_known(name: str, field: str, value: str, known: Iterable[str]) -> None:
    if value not in known:
        hint = nearest(value, list(known))
        raise ReportError(f"{name}: {field} {value!r} is unknown{hint}, expected one of {', '.join(known)}")


def _refuse_twins(name: str, kind: str, identities: list[Any]) -> None:
    for i, identity in enumerate(identities):
        if identity in identities[:i]:
            raise ReportError(f"{name}: {kind} {identities.index(identity)} and {i} are both of {identity}")


def report_digest(report: dict[str, Any]) -> str:
    """SHA-256 of what a rerun on the same machine must reproduce: everything but times, evidence and provenance.

    Rows that measure seconds are left out, and the evidence of a claim, since that may quote them.
    """
    kept = {key: report[key] for key in ("notebook", "profile", "seed")}
    kept["rows"] = [row for row in report["rows"] if row["metric"] != "seconds"]
    kept["claims"] = [{k: v for k, v in claim.items() if k != "evidence"} for claim in report["claims"]]
    return hashlib.sha256(canonical(kept, "report").encode()).hexdigest()
