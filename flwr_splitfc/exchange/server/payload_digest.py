"""A digest of the payloads of a session, by which two runs are compared."""

import hashlib

DIGEST_BITS = 128

_LENGTH_BYTES = 8


class PayloadDigest:
    """A BLAKE2b digest of all payloads of a session, in their order.

    Parameters
    ----------
    session : str
        Which session it is; two sessions with the same payloads differ in their digest.
    """

    def __init__(self, session: str) -> None:
        self._hash = hashlib.blake2b(session.encode(), digest_size=DIGEST_BITS // 8)

    def update(self, *payloads: bytes) -> None:
        """Take in the payloads of a step."""
        for payload in payloads:
            # with its length, or bytes could move from one payload to the next unseen
            self._hash.update(len(payload).to_bytes(_LENGTH_BYTES, "little"))
            self._hash.update(payload)

    @property
    def value(self) -> int:
        """The digest of all payloads so far, as an unsigned integer."""
        return int.from_bytes(self._hash.digest(), "little")
