"""Test escaping and shortening of text: pytest tests/utils/test_text.py"""

import csv
import html
import os
import re

import pytest
from markdown_it import MarkdownIt

from cnnlab.utils.text import csv_line, escape_control_characters, markdown, shortened

MARKDOWN = MarkdownIt("gfm-like", {"linkify": False})  # as CommonMark has it, with tables and strikethrough


@pytest.mark.parametrize(
    "name",
    [
        *(r"$a$ \foo_bar^2", "it's", 'a "b", c', "a|b", "a: b", "[bold]x[/]", "100 %", "{0}", "#1", "*x*", "<b>"),
        *("=1+1", "-1", "+a", "@b", "1e5", "", " two  spaces ", "a" * 240, "non\u00a0breaking"),
        *("猫", "قطة", "e\u0301", "👩‍👩‍👧", "🏴󠁧󠁢󠁥󠁮󠁧󠁿", "می‌خواهم"),
    ],
)
def test_names_are_shown_as_they_are(name):
    assert escape_control_characters(name) == name


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("\x1b[31mred", r"\x1b[31mred"),
        ("a\nb\r\tc", r"a\nb\r\tc"),
        ("a\x7f\x85\u2028b", r"a\x7f\x85\u2028b"),
        (os.fsdecode(b"caf\xe9"), r"caf\udce9"),
        ("cat\u202egnp.exe", r"cat\u202egnp.exe"),  # else shown as catexe.png
    ],
)
def test_what_cannot_be_shown_is_escaped(name, expected):
    assert escape_control_characters(name) == expected
    assert escape_control_characters(expected) == expected
    escape_control_characters(name).encode("utf-8")


def test_long_names_keep_both_ends():
    assert shortened("cat", 3) == "cat"
    assert shortened("a" * 200 + "_left", 20) == "a" * 13 + "…a_left"
    assert len(shortened("a" * 200, 20)) == 20


def test_markdown_shows_names_as_they_are():
    names = [r"$a$ \foo_bar^2", "a|b", "*x* `y`", "<b>y</b> &amp;", "[bold](x)", "#1", "~~z~~", "=1", "猫"]
    assert [MARKDOWN.renderInline(markdown(name)) for name in names] == [html.escape(name) for name in names]
    table = MARKDOWN.render("| class | n |\n| --- | --- |\n" + "".join(f"| {markdown(name)} | 1 |\n" for name in names))
    cells = [html.unescape(cell) for cell in re.findall("<td>(.*)</td>", table)]
    assert cells == [cell for name in names for cell in (name, "1")]
    assert markdown("new\nline") == r"new\\nline"


def test_a_line_of_csv_holds_no_formulas():
    names = ["=1+1", "+a", "-b", "@c", 'a "b", c', "a;b", "-1", "1e5", "ok", "\t=1", "\r=1", " =1"]
    text = csv_line([*names, -0.5, None])
    assert next(csv.reader([text])) == [
        *("'=1+1", "'+a", "'-b", "'@c", 'a "b", c', "a;b", "-1", "1e5", "ok", r"\t=1", r"\r=1", "' =1"),
        *("-0.5", ""),
    ]
    assert text.endswith("\n")
    assert text.count("\n") == 1
