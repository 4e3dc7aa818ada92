"""The leaderboard: results files in, a static site out."""

from __future__ import annotations

from leaderboard.server import serve
from leaderboard.site import build, render

__all__ = ["build", "render", "serve"]
