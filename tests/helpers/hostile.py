"""Names and cards that a plugin might give itself to get into what shows them."""

from __future__ import annotations

#: What a defense may be called.
NAMES = {
    "script": "<script>alert(1)</script>",
    "upwards": "../../x",
    "long": "n" * 300,
    "nul": "a\0b",
    "escape": "a\x1b[2Jb\x1b]0;title\x07",
    "break": "a\nb\r\nc\u2028d",
    "formula": "=HYPERLINK(\"https://x.invalid\",\"1\")",
    "pipe": "a|b",
    "markup": "[red]a[/nothing]",
    "link": "![a](https://x.invalid/a.png)",
    "reversed": "r\u202eb",
    "attribute": "\"><img src=x onerror=alert(1)>",
    "template": "{{ 7 * 7 }}",
}

#: What no output may contain: it would steer a terminal, or turn the reading order round.
CONTROLS = [chr(code) for code in (*range(9), 11, 12, *range(14, 32), *range(127, 160), 0x2028, 0x202E)]
