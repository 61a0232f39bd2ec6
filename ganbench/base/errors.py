"""What a user can get wrong, said in one line."""


class UserError(Exception):
    """A mistake that the user can mend. The message names what is wrong, where, and what to do.

    The command line prints it as one line and exits with code 2; a library caller can catch it.
    """


def did_you_mean(word: str, known: list[str], where: str = "") -> str:
    """' Did you mean X?', else where all are named, else the list of what is known: to end an error message with."""
    import difflib

    close = difflib.get_close_matches(word, known, n=1)
    if close:
        return f" Did you mean '{close[0]}'?"
    if where:
        return f" {where}"
    return f" Known: {', '.join(sorted(known))}." if known else ""
