"""A seccomp filter: system calls that a model server has no use for fail with "operation not permitted".

Needs no privilege. What is denied: sockets of every kind (a pair of connected ones stays, it leads nowhere), looking
into other processes, namespaces and mounts, memory and queues that outlive a process, and the kernel's own upkeep.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct

_SET_NO_NEW_PRIVS, _SET_SECCOMP, _FILTER = 38, 22, 2
_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_ALLOW, _DENY, _KILL = 0x7FFF0000, 0x00050001, 0x80000000  # deny: errno EPERM
_NUMBER, _ARCHITECTURE = 0, 4  # offsets in struct seccomp_data
_X32 = 0x40000000

#: By architecture: what the kernel calls it, and the numbers of the calls, in the order of :data:`_NAMES`.
_NAMES = (
    "socket", "connect", "bind", "listen", "accept", "accept4", "ptrace", "process_vm_readv", "process_vm_writev",
    "kcmp", "mount", "umount2", "pivot_root", "chroot", "setns", "unshare", "bpf", "perf_event_open", "keyctl",
    "add_key", "request_key", "userfaultfd", "kexec_load", "kexec_file_load", "init_module", "finit_module",
    "delete_module", "reboot", "swapon", "swapoff", "open_by_handle_at", "shmget", "semget", "msgget", "mq_open",
    "clock_settime", "settimeofday", "syslog", "acct", "quotactl",
)  # fmt: skip
_TABLES = {
    "x86_64": (
        0xC000003E,
        (41, 42, 49, 50, 43, 288, 101, 310, 311, 312, 165, 166, 155, 161, 308, 272, 321, 298, 250, 248, 249, 323, 246,
         320, 175, 313, 176, 169, 167, 168, 304, 29, 64, 68, 240, 227, 164, 103, 163, 179),
    ),
    "aarch64": (
        0xC00000B7,
        (198, 203, 200, 201, 202, 242, 117, 270, 271, 272, 40, 39, 41, 51, 268, 97, 280, 241, 219, 217, 218, 282, 104,
         294, 105, 273, 106, 142, 224, 225, 265, 194, 190, 186, 180, 112, 170, 116, 89, 60),
    ),
}  # fmt: skip
#: Numbers that are the same everywhere: io_uring (which can open sockets), the newer mounts, pidfd_getfd.
_COMMON = (425, 426, 427, 428, 429, 430, 431, 432, 433, 438, 440, 442)


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def known() -> bool:
    """Whether this machine's architecture is one whose calls are known here."""
    return platform.system() == "Linux" and platform.machine() in _TABLES


def denied() -> dict[str, int]:
    """The denied calls with a name, by number on this machine."""
    return dict(zip(_NAMES, _TABLES[platform.machine()][1], strict=True))


def restrict() -> None:
    """Deny these calls to this process and all that it starts, for good.

    Raises:
        OSError: where the kernel has no seccomp, or the architecture is unknown here.
    """
    if not known():
        raise OSError(f"no list of system calls for {platform.machine()}")
    program = _program(*_TABLES[platform.machine()])
    libc = ctypes.CDLL(None, use_errno=True)
    given = _Program(len(program) // 8, program)
    zero = ctypes.c_ulong(0)
    if libc.prctl(_SET_NO_NEW_PRIVS, ctypes.c_ulong(1), zero, zero, zero) or libc.prctl(
        _SET_SECCOMP, ctypes.c_ulong(_FILTER), ctypes.byref(given), zero, zero
    ):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _program(architecture: int, numbers: tuple[int, ...]) -> bytes:
    """The filter: another architecture's calls end the process, each denied number jumps to the denial at the end."""
    calls = sorted({*numbers, *_COMMON})
    code = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
        (_AT_LEAST, len(calls) + 1, 0, _X32),  # the calls of x32 under x86-64
    ]
    code += [(_EQUAL, len(calls) - i, 0, number) for i, number in enumerate(calls)]
    code += [(_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _DENY)]
    return b"".join(struct.pack("<HBBI", *line) for line in code)
