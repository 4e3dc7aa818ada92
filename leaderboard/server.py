"""Show a built site in a browser on this machine."""

from __future__ import annotations

import logging
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from bench.contracts.errors import InputError

_log = logging.getLogger(__name__)


class _Handler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        _log.debug(format, *args)


def server(out: Path, port: int = 8000) -> ThreadingHTTPServer:
    """A server of the site at ``out`` on the loopback address; port 0 takes a free one.

    Raises:
        InputError: when there is no site at ``out`` or the port cannot be used.
    """
    if not (out / "index.html").is_file():
        raise InputError(f"{out}: holds no site (index.html is missing; build one with `bench leaderboard`)")
    try:
        return ThreadingHTTPServer(("127.0.0.1", port), partial(_Handler, directory=str(out)))
    except (OSError, OverflowError) as error:
        raise InputError(f"port {port}: cannot be used ({error})") from None


def serve(out: Path, port: int = 8000) -> None:
    """Serve the site at ``out`` on http://127.0.0.1:``port`` until interrupted with Ctrl-C.

    Raises:
        InputError: when there is no site at ``out`` or the port cannot be used.
    """
    with server(out, port) as running:
        try:
            running.serve_forever()
        except KeyboardInterrupt:
            return
