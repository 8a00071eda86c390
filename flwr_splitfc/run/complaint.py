"""What a command says of what it cannot do, or of what differs."""

import sys

from flwr_splitfc.exchange.protocol.told_text import one_line

_MOST_OF_A_LINE = 10_000  # characters


def complain(what: str) -> None:
    """Write what this command complains of on stderr; no terminal obeys it.

    It may quote a key of somebody else's file.
    """
    # torch indents the lines of its own errors by tabs
    lines = what.expandtabs(4).splitlines()
    text = "\n".join(one_line(line, _MOST_OF_A_LINE) for line in lines)
    print(f"flwr-splitfc: {text}", file=sys.stderr)
