from __future__ import annotations

import ctypes
import platform
import subprocess
import sys
from typing import Any

import pytest

from fewstep.memory import keep_freed_memory

FAULTS = """
import resource, sys, torch
from fewstep.memory import keep_freed_memory

def passes():
    tensor = torch.ones(10 * 2**20)  # 40 MB
    for _ in range(8):
        tensor = tensor + 1

if sys.argv[1] == "keep":
    keep_freed_memory()
for _ in range(6):  # where the system lays the heap, by chance, decides how many passes it takes to find its size
    passes()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    passes()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left as they are")
def test_large_tensors_after_others_need_few_new_pages() -> None:
    def faults(how: str) -> int:
        command = [sys.executable, "-c", FAULTS, how]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    assert 10 * faults("keep") < faults("leave")


@pytest.mark.parametrize("missing", [AttributeError, OSError, TypeError])
def test_another_c_library_is_left_as_it_is(missing: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    def without(_: Any) -> Any:
        raise missing

    monkeypatch.setattr(ctypes, "CDLL", without)
    keep_freed_memory()
