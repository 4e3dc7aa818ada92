"""Docstrings become Markdown that says the same."""

from __future__ import annotations

from bench.reference.markdown import first_paragraph, inline, split_docstring, table


def _example(parameter: str = "a thing") -> object:
    """Summary of it.

    More about ``x|y``
    on two lines.

    Args:
        target: given; x: given.
        first, second: explained together,
            on two lines: with a colon.
        third: another.

    Returns:
        nothing: of interest.
    """


def test_a_docstring_is_taken_apart() -> None:
    text, arguments = split_docstring(_example)
    assert text == ["Summary of it.", "More about ``x|y`` on two lines."]
    both = "explained together, on two lines: with a colon."
    assert arguments == {"target": "given; x: given.", "first": both, "second": both, "third": "another."}
    assert split_docstring(lambda: None) == ([], {})


def test_markup_in_docstrings_is_harmless() -> None:
    assert inline("2*a < ``b*c`` and `d`") == "2\\*a \\< `b*c` and `d`"
    assert inline("see :func:`f` and :class:`G`") == "see `f` and `G`"
    assert table(["Head"], [["a|b"]]) == "| Head |\n| --- |\n| a\\|b |\n"


def test_the_first_paragraph_is_one_line() -> None:
    assert first_paragraph(_example) == "Summary of it."
    assert first_paragraph(lambda: None) == ""
