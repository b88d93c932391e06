"""pytest tests/test_names.py"""

import os

import pytest

from cnnlab.names import shown


@pytest.mark.parametrize(
    "name",
    [
        *(r"$a$ \foo_bar^2", "it's", 'a "b", c', "a|b", "a: b", "[bold]x[/]", "100 %", "{0}", "#1", "*x*", "<b>"),
        *("=1+1", "-1", "+a", "@b", "1e5", "", " two  spaces ", "a" * 240, "non\u00a0breaking"),
        *("猫", "قطة", "e\u0301", "👩‍👩‍👧", "🏴󠁧󠁢󠁥󠁮󠁧󠁿", "می‌خواهم"),
    ],
)
def test_names_are_shown_as_they_are(name):
    assert shown(name) == name


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
    assert shown(name) == expected
    assert shown(expected) == expected
    shown(name).encode("utf-8")
