"""What a bare GPU machine lacks, in one folder: `.ci/device --pack FOLDER [SET ...]`.

    data/<name>-<digest>/   views of a set, packed without loss (`vader.data.packed`): the digest stays the set's
    weights/                the perceptual network up to the layer that training reads, in float16
    wheels/*.whl            Python packages, where somebody has put some there
    bundle.json             written last: the sets, and what each part weighs

The folder and the code that travels with it must stay below a limit, `--limit-mib`. What is over it is not declared a
bundle: bundle.json is not written, and `.ci/device --from` refuses a folder without it.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from vader.data import SequenceSet, prepare
from vader.data.pipeline import pack_set
from vader.data.prepared import DataError
from vader.data.sequence import Sequence
from vader.data.sets.own import experiment_named
from vader.settings.checks import ConfigError, require
from vader.store.files import write_json
from vader.store.weights import WeightsError, load_state, resolve, vgg_relu_indices

ROOT = Path(__file__).parents[2]
LIMIT = 64.0  # MiB of code and bundle together that a machine takes
MIB = 2**20
NETWORK = "vgg16"
SETS = ["furniture_chairs", "furniture_tables"]  # of the first reference runs


def network_state() -> dict[str, torch.Tensor]:
    """The perceptual network up to relu5_1 in float16, which `vader.store.weights` reads as float32."""
    state, last = load_state(resolve(NETWORK), "features."), vgg_relu_indices(NETWORK)[-1]
    kept = {name: x for name, x in state.items() if name.partition(".")[0].isdigit() and int(name.split(".")[0]) < last}
    return {name: x.to(torch.float16).contiguous() for name, x in kept.items()}


def pack_views(name: str, profile: str, folder: Path, meshes: bool) -> SequenceSet:
    """The set of a profile, prepared if it is not, packed to `folder/<name>-<digest>`; every view is read back and
    compared. Raises ConfigError for a set of videos."""
    data = prepare(experiment_named(profile, name).data)
    pictures = isinstance(data, SequenceSet) and all(isinstance(one, Sequence) for one in data)
    require(pictures, f"data set {name!r} of profile {profile!r}: expected pictures of objects, which can be packed")
    if not meshes:
        bare = tuple(dataclasses.replace(one, mesh=None) for one in data)
        data = dataclasses.replace(data, sequences=bare)
    for one in data:
        earlier = folder / data.folder.name / "objects" / one.key
        if (earlier / "mesh.xz").exists() != (one.mesh is not None):  # packed with another --no-meshes
            shutil.rmtree(earlier, ignore_errors=True)
    return pack_set(data, folder)


def code_files(root: Path = ROOT) -> dict[str, int]:
    """Bytes of the files that travel with a checkout, by their path: tracked, or untracked and not ignored."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=root,
        capture_output=True,
        check=True,
    )
    files = {name: root / name for name in listed.stdout.decode().split("\0") if name}
    return {name: file.stat().st_size for name, file in files.items() if file.is_file()}  # a sparse checkout lacks some


def kind_of(file: Path) -> str:
    """What a file of a bundle is counted as."""
    if file.parts[0] != "data":
        return file.parts[0]
    what = {"views.webp": "views", "mesh.xz": "meshes"}.get(file.name, "cameras and facts")
    return f"{file.parts[1]}, {what}"


def weigh(folder: Path) -> dict[str, int]:
    """Bytes of each part of a bundle."""
    parts: dict[str, int] = {}
    for file in sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file()):
        if file != Path("bundle.json"):
            kind = kind_of(file)
            parts[kind] = parts.get(kind, 0) + (folder / file).stat().st_size
    return parts


def over_limit(parts: dict[str, int], code: dict[str, int], limit: float) -> str:
    """A sentence on what is too much, or '' where bundle and code are below the limit in MiB."""
    carried, travels = sum(parts.values()) / MIB, sum(code.values()) / MIB
    if carried + travels <= limit:
        return ""
    said = (
        f"the bundle has {carried:.1f} MiB and the code {travels:.1f}, together {carried + travels:.1f}, expected at "
        f"most {limit:g} (--limit-mib)"
    )
    hints = []
    if reports := sum(size for name, size in code.items() if name.startswith("reports/")) / MIB:
        hints.append(
            f"a checkout without reports is {reports:.1f} MiB smaller (git sparse-checkout set --no-cone '/*' "
            "'!/reports/')"
        )
    if meshes := sum(size for name, size in parts.items() if name.endswith("meshes")) / MIB:
        hints.append(f"--no-meshes saves {meshes:.1f}")
    hints.append("fewer sets can be packed at once")
    return f"{said}; {', '.join(hints)}"


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=".ci/device --pack", description="Gather what a bare GPU machine lacks.")
    parser.add_argument("folder", type=Path, help="the bundle; what an earlier call packed there is kept")
    parser.add_argument("sets", nargs="*", default=SETS, help=f"data sets (default: {' '.join(SETS)})")
    parser.add_argument("--profile", default="gpu", help="whose counts and resolution (default: %(default)s)")
    parser.add_argument(
        "--no-meshes", action="store_true", help="leave out reference meshes, which training never reads"
    )
    parser.add_argument(
        "--limit-mib", type=float, default=LIMIT, help="of bundle and code together (default: %(default)g)"
    )
    return parser


def main(arguments: list[str] | None = None) -> int:
    given = parser().parse_args(arguments)
    folder = given.folder
    (folder / "weights").mkdir(parents=True, exist_ok=True)
    (folder / "bundle.json").unlink(missing_ok=True)
    code = code_files()
    try:
        save_file(network_state(), folder / "weights" / f"{NETWORK}_features.safetensors")
        beside_views = {name: size for name, size in weigh(folder).items() if name in ("weights", "wheels")}
        if fault := over_limit(beside_views, code, given.limit_mib):  # before anything is rendered
            print(f"--pack: {fault}", file=sys.stderr)
            return 1
        packed = [pack_views(name, given.profile, folder / "data", not given.no_meshes) for name in given.sets]
    except (ConfigError, DataError, WeightsError) as error:
        print(f"--pack: {error}", file=sys.stderr)
        return 2
    parts = weigh(folder)
    for name, size in {**parts, "code": sum(code.values())}.items():
        print(f"{size / MIB:8.2f} MiB  {name}")
    if fault := over_limit(parts, code, given.limit_mib):
        print(f"--pack: {fault}", file=sys.stderr)
        return 1
    sets = {data.name: {"digest": data.digest, "pixels": data.pixel_checksum, "objects": len(data)} for data in packed}
    write_json(folder / "bundle.json", {"profile": given.profile, "sets": sets, "bytes": parts})
    print(f"{sum([*parts.values(), *code.values()]) / MIB:8.2f} MiB  together, of {given.limit_mib:g}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
