"""Names that people gave to folders and files, made fit to be shown: names are data, whatever is in them."""

import unicodedata

# Characters that end a line, command a terminal, or are no text in UTF-8 (bytes of a name in another encoding).
HIDDEN = ("Cc", "Cs", "Zl", "Zp")
# They turn the order of all that is shown after them.
TURNING = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")


def shown(text) -> str:
    r"""A text on one line that can be written in UTF-8: `\x1b`, `\n`, `\udce9` in place of what cannot be shown.

    Everything else stays, also what has a meaning to some program that it is shown in.
    """
    return "".join(
        character.encode("unicode_escape").decode()
        if unicodedata.category(character) in HIDDEN or unicodedata.bidirectional(character) in TURNING
        else character
        for character in str(text)
    )
