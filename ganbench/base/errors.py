"""Errors that a user can mend, with a message of one line.

Raise `UserError` for them; add `did_you_mean` to the message where a name is not known. `printable` makes a text safe
for a terminal.
"""

import re

# Control characters but tab and newline, marks that reorder a line, and halves of characters, which UTF-8 has not.
_NOT_PRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


class UserError(Exception):
    """A mistake that the user can mend.

    The message names the file or option, says what is wrong, and what to do. The command line prints it as one line and
    exits with code 2. A caller in Python can catch it.
    """


def did_you_mean(word: str, known: list[str], where: str = "") -> str:
    """Return the end of an error message about an unknown word, with a space before it.

    The end suggests the most similar known word. If no known word is similar, the end is `where`, which says where the
    known words are listed; without `where`, it lists them.

    >>> did_you_mean("mnits", ["cifar10", "mnist"])
    " Did you mean 'mnist'?"
    >>> did_you_mean("x", ["cifar10", "mnist"])
    ' Known: cifar10, mnist.'
    """
    import difflib

    close = difflib.get_close_matches(word, known, n=1)
    if close:
        return f" Did you mean '{close[0]}'?"
    if where:
        return f" {where}"
    return f" Known: {', '.join(sorted(known))}." if known else ""


def printable(text: str) -> str:
    r"""Return the text with characters that a terminal would obey, or could not print, as escapes.

    File names and texts in files that somebody else wrote may hold such characters.

    >>> print(printable("red \x1b[31m"))
    red \x1b[31m
    """
    return _NOT_PRINTABLE.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


def shortened(text: str, most: int = 200) -> str:
    """Return the text, or if it is longer than `most` characters, its beginning and end.

    >>> shortened("0123456789", 7)
    '01...89'
    """
    if len(text) <= most:
        return text
    half = (most - 3) // 2
    return f"{text[:half]}...{text[-half:]}"
