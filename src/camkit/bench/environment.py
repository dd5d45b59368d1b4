"""What figures were measured on: enough to judge them, and nothing that reveals who or where."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import camkit
from camkit.core import devices
from camkit.core.device_names import usable_cores

LIBRARIES = ("camkit", "torch", "torchvision", "timm", "numpy", "scipy", "scikit-image", "pillow")
# By nvidia-smi's names. The clocks' event reasons are those of throttling, as bits; 0 is none.
GPU_FACTS = {
    "driver_version": "driver",
    "clocks.sm": "clock_mhz",
    "clocks.max.sm": "clock_max_mhz",
    "clocks_throttle_reasons.active": "throttle_reasons",
    "temperature.gpu": "celsius",
}


def environment(device: torch.device, dtype: torch.dtype, packages: Iterable[str] = ()) -> dict[str, Any]:
    """Facts about machine, libraries and settings, JSON values only.

    packages: further distributions to list, with what they require. A fact that cannot be read is left
    out.
    """
    facts: dict[str, Any] = {
        "device": str(device),
        "device_name": cpu_name() if device.type == "cpu" else devices.name(device),
        "dtype": str(dtype).removeprefix("torch."),
        "precision": devices.float32_precision(device),
        "cpu": cpu_name(),
        "cores": usable_cores(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": versions(packages),
        "git": git_state(Path(camkit.__file__).parent),
    }
    if device.type != "cpu":
        facts["gpu"] = devices.facts(device)
    return facts


def conditions(device: torch.device) -> dict[str, Any]:
    """What changes during a run: load, clocks, throttling. To be read before and after it."""
    facts: dict[str, Any] = {}
    if hasattr(os, "getloadavg"):
        facts["load"] = os.getloadavg()[0]
    if clocks := re.findall(r"^cpu MHz\s*: ([\d.]+)$", _text(Path("/proc/cpuinfo")), re.MULTILINE):
        facts["cpu_mhz"] = max(map(float, clocks))
    if known := devices.tool_index(device):
        facts |= nvidia_smi(known)
    return facts


def cpu_name() -> str:
    """The model of the CPU."""
    found = re.search(r"^model name\s*: (.+)$", _text(Path("/proc/cpuinfo")), re.MULTILINE)
    return found[1].strip() if found else platform.processor() or platform.machine()


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Versions of Python, and of camkit's libraries and `packages` with their needs, if installed."""
    names = list(LIBRARIES)
    for package in packages:
        needs = metadata.requires(package) if _version(package) else None
        # Not those of extras, which are for tests.
        names += [package, *(re.split(r"[^\w.-]", need)[0] for need in needs or () if "extra" not in need)]
    found = {"python": platform.python_version()} | {name: _version(name) for name in names}
    return {name: version for name, version in found.items() if version}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit, and whether files differ from it, if the sources in `folder` are under git."""
    # An environment may lie in somebody else's repository: the sources themselves must be tracked.
    if _output("git", "-C", str(folder), "ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    commit = _output("git", "-C", str(folder), "rev-parse", "--short=12", "HEAD")
    changed = _output("git", "-C", str(folder), "status", "--porcelain", "--", ".")
    return {"commit": commit.strip(), "changed": bool(changed)} if commit else None


def nvidia_smi(index: str) -> dict[str, str]:
    """Driver, clocks and throttling of a GPU from its tool; empty where there is no such tool."""
    query = f"--query-gpu={','.join(GPU_FACTS)}"
    line = _output("nvidia-smi", query, "--format=csv,noheader,nounits", f"--id={index}")
    return parsed_gpu_facts(line or "")


def parsed_gpu_facts(line: str) -> dict[str, str]:
    """Facts from the line that the tool prints, without those it does not know."""
    values = [value.strip() for value in line.strip().split(",")]
    if len(values) != len(GPU_FACTS):
        return {}
    facts = dict(zip(GPU_FACTS.values(), values, strict=True))
    return {name: value for name, value in facts.items() if value and not value.startswith("[")}


def _output(*command: str) -> str | None:
    """What a program prints, or `None` if it is not there or fails."""
    try:
        done = subprocess.run(command, shell=False, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
