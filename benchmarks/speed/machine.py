"""What it was measured on: names, versions, load, and the rate of matrix products.

python -m benchmarks.speed.machine 2 cpu      # prints the rate in products and sums per second
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "higher", "torchopt", "jax", "optax", "numpy")


def describe() -> dict[str, Any]:
    """The machine and the versions of every peer."""
    versions = {}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    return {
        "cpu": _cpu(),
        "gpu": _gpu(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": versions,
    }


def _gpu() -> str | None:
    with suppress(OSError, subprocess.CalledProcessError):
        command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        return subprocess.check_output(command, text=True).strip()
    return None


def _cpu() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def matmul_rate(threads: int, device: str) -> float:
    """Floating-point operations per second in float32, the best of several square products."""
    import torch  # here, because the harness describes a machine without torch's memory

    torch.set_num_threads(threads)
    best = 0.0
    for size in (1024, 2048):
        left, right = torch.rand(2, size, size, device=device)
        for _ in range(8):
            start = time.perf_counter()
            left @ right
            if device != "cpu":
                torch.cuda.synchronize()
            best = max(best, 2 * size**3 / (time.perf_counter() - start))
    return best


if __name__ == "__main__":
    print(matmul_rate(int(sys.argv[1]), sys.argv[2]))
