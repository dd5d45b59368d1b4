"""Accelerators in CPU memory, on which mistakes that need a GPU to be seen are seen without one.

`start()` compiles a backend of torch for the devices `fake:0` and `fake:1`, which takes one or two minutes
once; what is compiled is kept in camkit's cache. Tensors of two devices must not meet there. Host waits are
counted (`waits`) or refused, float64 can be missing, allocations can be limited, and graphs are recorded
and replayed operation by operation (`graphs`). A process has them for good, so tests run in one of their
own: `CAMKIT_FAKE_DEVICE=1 python -m pytest tests/test_fake_device.py`.
"""

from __future__ import annotations

import hashlib
import types
from pathlib import Path
from typing import Any

import torch
from tests.fake_device import graphs
from torch.utils import cpp_extension

from camkit.native import cache

SOURCE = Path(__file__).with_name("device.cpp")


def start() -> Any:
    """The compiled module, after its devices have become torch's; see the end of `device.cpp`."""
    digest = hashlib.sha256(SOURCE.read_bytes() + torch.__version__.encode()).hexdigest()[:12]
    folder = cache.folder() / f"fake-device-{digest}"
    folder.mkdir(exist_ok=True)
    native = cpp_extension.load(
        "camkit_fake_device", [str(SOURCE)], extra_cflags=["-O0", "-g0"], build_directory=str(folder)
    )
    torch.utils.rename_privateuse1_backend("fake")
    torch._register_device_module("fake", _module(native))
    torch.utils.generate_methods_for_privateuse1_backend(for_storage=True)
    return native


def _module(native: Any) -> types.ModuleType:
    """What `torch.cuda` is for CUDA."""
    module: Any = types.ModuleType("torch.fake")
    module.is_available = lambda: True
    module.is_initialized = lambda: True
    module._is_in_bad_fork = lambda: False
    module.device_count = lambda: 2
    module.current_device = torch.accelerator.current_device_index
    module.get_device_name = lambda device=None: "Fake accelerator"
    module.manual_seed = module.manual_seed_all = lambda seed: None
    module.get_amp_supported_dtype = lambda: [torch.float16, torch.bfloat16, torch.float32]
    module.get_rng_state = lambda device="fake": torch.get_rng_state()
    module.set_rng_state = lambda state, device="fake": torch.set_rng_state(state)
    graphs.add_to(module, native)
    return module
