"""How a session's connection is protected: the choices, and the pinned name."""

from typing import Literal

Tls = Literal["off", "pinned", "verified"]
"""No encryption; the run's own certificate, which came with the ticket; a certificate by name and authority."""

PINNED_NAME = "split-endpoint"
"""The name in the run's own certificate, by which devices ask for it."""
