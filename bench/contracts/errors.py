"""The errors a user can meet. Each message is one line that names the offending value and the rule."""

from __future__ import annotations

import difflib
import re
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

#: Set to anything, the command line shows the whole traceback behind an error of one line.
TRACEBACK = "BENCH_TRACEBACK"
#: How the error of a plugin ends.
ADVICE = f"; {TRACEBACK}=1 shows the whole traceback"
#: Frames in these folders are not where a plugin's author has to look.
_OURS = Path(__file__).resolve().parents[1]
_STDLIB = Path(traceback.__file__).resolve().parent


class InputError(ValueError):
    """Something the user gave is wrong. The command line prints the message and exits with code 2."""


class PluginError(InputError):
    """Code of a plugin raised; the message carries its own error, and where it was raised, on one line."""


class NewerSchemaError(InputError):
    """A results file was written by a newer version of the harness."""


class KnowledgeError(RuntimeError):
    """An attack asked its target for something that its declared knowledge does not include."""


class NotApplicable(RuntimeError):
    """An attack cannot be run in this setting (for example a norm it lacks); the message says why."""


#: Breaks of a line or a cell, with the white space around them. (Not every white space: numbers have no-break spaces.)
_BREAKS = re.compile(r"\s*[\t-\r\x1c-\x1f\x85\u2028\u2029]\s*")
#: What would steer a terminal, end a string, turn the reading order round, or be no character at all.
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def one_line(text: str) -> str:
    """Text of a plugin as it can be shown anywhere: on one line, each control character a U+FFFD."""
    return _CONTROLS.sub("\N{REPLACEMENT CHARACTER}", _BREAKS.sub(" ", text))


def raised(what: str, error: BaseException, hint: str = "") -> PluginError:
    """The one-line error for ``error`` of a plugin: ``what`` ("mine.py raised"), its type, message and place.

    Raise it ``from error``: the command line shows the traceback of that where :data:`TRACEBACK` is set.
    """
    message = " ".join(str(error).split())
    parts = [f"{what} {type(error).__name__}", f": {message}" if message else "", _place(error), hint and f"; {hint}"]
    return PluginError("".join(parts) + ADVICE)


@contextmanager
def in_one_line(what: str, hint: Callable[[], str] = str) -> Iterator[None]:
    """Run code of a plugin: whatever it raises becomes the :func:`raised` error, an :class:`InputError` stays one.

    Args:
        what: the plugin and what it did, such as ``mine.py raised``.
        hint: asked for what usually helps, once something has been raised.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise raised(what, error, hint()) from error


def _place(error: BaseException) -> str:
    """`` (mine.py:12)``: the innermost line that is neither the harness's nor an installed package's."""
    if isinstance(error, SyntaxError) and error.filename and error.lineno:
        return f" ({_short(error.filename)}:{error.lineno})"
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if not _is_foreign(frame.filename)]
    return f" ({_short(own[-1].filename)}:{own[-1].lineno})" if own else ""


def _is_foreign(file: str) -> bool:
    path = Path(file)
    installed = {"site-packages", "dist-packages"} & set(path.parts)
    return bool(installed) or file.startswith("<") or path.is_relative_to(_OURS) or path.is_relative_to(_STDLIB)


def _short(file: str) -> str:
    path = Path(file)
    return path.relative_to(Path.cwd()).as_posix() if path.is_relative_to(Path.cwd()) else path.name


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `` (did you mean 'x'?)``, or the list of known names when nothing is close."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f" (did you mean {close[0]!r}?)"
    return f" (known: {', '.join(known)})" if known else ""
