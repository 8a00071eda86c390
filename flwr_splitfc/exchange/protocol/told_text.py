"""Texts that the other side tells, before they reach a log, a table or a file."""

_MOST_LINES = 100

INDENT = "    "
"""Of all lines but the first, in what `indented` returns."""


def one_line(text: str, most: int) -> str:
    r"""Return a text in one line that no terminal obeys, of its last characters.

    Parameters
    ----------
    text : str
    most : int
        How many characters of it to keep, at most.

    Examples
    --------
    >>> one_line("broke\n\x1b[2J", most=20)
    'broke\\n\\x1b[2J'
    """
    # before it is escaped, which makes it longer: a peer may tell megabytes
    escaped = "".join(_escaped(character) for character in text[-most:])
    return escaped[-most:]


def indented(text: str, most: int) -> str:
    """Return a text whose lines, but for the first, cannot pass for a log's own.

    It keeps the last hundred lines, and `most` characters of each.
    """
    lines = text.strip().splitlines()[-_MOST_LINES:]
    return f"\n{INDENT}".join(one_line(line, most) for line in lines)


def _escaped(character: str) -> str:
    if character.isprintable():
        return character
    return repr(character)[1:-1]
