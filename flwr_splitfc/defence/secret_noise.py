"""Normal noise that nobody else can draw again.

A run's seed travels in tickets, so the server could take off noise that follows from
it. Torch's generator has 32 bits of a seed, which can be tried one by one. Here a key
of 256 bits from the operating system makes a stream of ChaCha20, which becomes numbers:
the inverse of the normal distribution function at ``(k + 1/2) / 2^52``.
"""

import secrets

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from torch import Tensor

KEY_BYTES = 32
_NONCE_BYTES = 16
_WORD_BYTES = 8
_USED_BITS = 52  # of a word: with the half there are 53, as a double has

LONGEST_NOISE = 8.21
"""Standard deviations: the inverse at ``2^-53``, the first of the places."""


class SecretNoise:
    """A source of normal noise, seeded by the operating system.

    Parameters
    ----------
    key : bytes, optional
        As for `begin`.

    Attributes
    ----------
    key : bytes
        With it the same noise can be drawn again; it must not leave the device.

    Raises
    ------
    ValueError
        If `key` is of another length.

    Examples
    --------
    >>> SecretNoise().normal((2, 3)).shape
    torch.Size([2, 3])
    """

    def __init__(self, key: bytes | None = None) -> None:
        self.begin(key)

    def begin(self, key: bytes | None = None) -> None:
        """Start anew.

        Parameters
        ----------
        key : bytes, optional
            32 bytes, for what is made again and not sent again: two releases with the
            same noise differ by their features alone. Default: a new one.

        Raises
        ------
        ValueError
            If `key` is of another length.
        """
        self.key = secrets.token_bytes(KEY_BYTES) if key is None else key
        if len(self.key) != KEY_BYTES:
            raise ValueError(f"the key has {len(self.key)} bytes, wanted {KEY_BYTES}")
        # each key has one stream, so none needs a nonce
        cipher = Cipher(ChaCha20(self.key, bytes(_NONCE_BYTES)), mode=None)
        self._stream = cipher.encryptor()

    def normal(self, shape: tuple[int, ...] | torch.Size) -> Tensor:
        """Return float64 noise of mean 0 and standard deviation 1, on the CPU.

        No entry is further from 0 than `LONGEST_NOISE`.
        """
        count = int(np.prod(shape))
        stream = self._stream.update(bytes(_WORD_BYTES * count))
        words = np.frombuffer(stream, dtype="<u8") >> (8 * _WORD_BYTES - _USED_BITS)
        places = (words + 0.5) / 2**_USED_BITS
        noise: Tensor = torch.special.ndtri(torch.from_numpy(places))
        return noise.reshape(shape)
