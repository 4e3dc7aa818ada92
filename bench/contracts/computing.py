"""How a process computes."""

from __future__ import annotations

import contextlib

#: Parameters of glibc's ``mallopt`` (malloc.h), and the bytes that they are set to.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_KEPT, _LARGE = 1 << 28, 1 << 25


def settle() -> None:
    """Let this process, and those forked from it, compute with one thread and keep the memory of one pass for the next.

    The number of threads decides in which order numbers are added, and so their last digits. Memory that glibc gives
    back after every pass has its pages mapped anew in the next, which is up to a third of the time; elsewhere than on
    glibc memory is left as it is.
    """
    import ctypes  # here, as torch is: every command imports this module, and few of them compute

    import torch

    torch.set_num_threads(1)
    with contextlib.suppress(AttributeError, OSError, TypeError):  # not on Linux, or another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_TRIM_THRESHOLD, _KEPT)
        mallopt(_MMAP_THRESHOLD, _LARGE)
