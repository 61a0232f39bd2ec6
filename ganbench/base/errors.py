"""Errors that a user can mend, with a message of one line.

Raise `UserError` for them; add `did_you_mean` to the message where a name is not known.
"""


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
