"""How the connection of a session is protected, as tickets say it."""

from typing import Literal

Tls = Literal["off", "pinned", "verified"]
"""How the endpoint proves itself to devices.

"off"
    Not at all, and nothing is encrypted.
"pinned"
    By the run's own certificate, which came with the ticket.
"verified"
    By a certificate for its host's name, signed by an authority.
"""

PINNED_NAME = "split-endpoint"
"""The name in the run's own certificate."""
