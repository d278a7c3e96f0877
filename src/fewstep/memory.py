"""Memory of the process that fewstep runs in."""

from __future__ import annotations

import ctypes
from contextlib import suppress

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there is not enough memory: Python's own, a GPU's, or what torch says of a CPU."""
    return type(error).__name__ in ("MemoryError", "OutOfMemoryError") or "allocate memory" in str(error)


def keep_freed_memory() -> None:
    """Have this process reuse the memory of tensors that are gone, where glibc would hand each large one back.

    The system clears every page before it gives it out again, which costs convolutional networks on the CPU part of
    their time, more on a busy machine. The command line calls this. It is a choice for a whole process, so the library
    leaves it to you: call it once, before the first computation. Does nothing where the C library is not glibc.
    """
    with suppress(AttributeError, OSError, TypeError):  # another C library
        allocator = ctypes.CDLL(None)
        allocator.mallopt(_M_MMAP_MAX, 0)
        allocator.mallopt(_M_TRIM_THRESHOLD, -1)
