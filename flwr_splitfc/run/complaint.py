"""What a command says of what it cannot do, or of what differs."""

import sys


def complain(what: str) -> None:
    """Write a line of this command's on stderr."""
    print(f"flwr-splitfc: {what}", file=sys.stderr)
