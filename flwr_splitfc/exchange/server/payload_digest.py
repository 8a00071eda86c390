"""A digest of the payloads of a session, by which two runs are compared."""

import hashlib

DIGEST_BITS = 128

_LENGTH_BYTES = 8


class PayloadDigest:
    """A BLAKE2b digest of all payloads of a session, in their order.

    The last step's wait: to take them in costs a tenth of a step, and nobody waits for
    it.

    Parameters
    ----------
    session : str
        Which session it is; two sessions with the same payloads differ in their digest.
    """

    def __init__(self, session: str) -> None:
        self._hash = hashlib.blake2b(session.encode(), digest_size=DIGEST_BITS // 8)
        self._waiting: tuple[bytes, ...] = ()

    def add(self, *payloads: bytes) -> None:
        """Add the payloads of a step."""
        if self._waiting:
            self.catch_up()
        self._waiting = payloads

    def catch_up(self) -> None:
        """Take in what waits."""
        waiting, self._waiting = self._waiting, ()
        for payload in waiting:
            # with its length, or bytes could move from one payload to the next unseen
            self._hash.update(len(payload).to_bytes(_LENGTH_BYTES, "little"))
            self._hash.update(payload)

    @property
    def value(self) -> int:
        """The digest of all payloads so far, as an unsigned integer."""
        self.catch_up()
        return int.from_bytes(self._hash.digest(), "little")
