"""camkit on an accelerator in CPU memory: `tests/fake_device/checks.py`, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CHECKS = Path(__file__).parent / "fake_device" / "checks.py"


@pytest.mark.slow
@pytest.mark.skipif(
    os.environ.get("CAMKIT_FAKE_DEVICE") != "1",
    reason="compiles a device for one or two minutes, once: CAMKIT_FAKE_DEVICE=1 runs it",
)
def test_on_a_device_in_cpu_memory() -> None:
    folder = Path(sys.executable).parent  # where `ninja` may lie
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(CHECKS)],
        cwd=CHECKS.parents[2],
        env=os.environ | {"MAX_JOBS": "1", "PATH": os.pathsep.join([str(folder), os.environ["PATH"]])},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
