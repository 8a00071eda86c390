"""Two machines on this one: network namespaces that are joined by a cable."""

import os
import shutil
import subprocess
from collections.abc import Sequence

ADDRESSES = ("10.77.0.1", "10.77.0.2")


class TwoMachines:
    """Two network namespaces, each with its own loopback, and a veth pair between.

    They reach each other at `ADDRESSES`, and nothing else.

    Raises
    ------
    PermissionError
        If this process may not make them.
    """

    def __init__(self) -> None:
        self.names = tuple(f"split{os.getpid()}{end}" for end in "ab")
        if shutil.which("ip") is None:
            raise PermissionError("there is no command `ip`")
        try:
            self._make()
        except subprocess.CalledProcessError as error:
            self.end()
            raise PermissionError(error.stderr.decode()) from error

    def _make(self) -> None:
        first, second = self.names
        for name in self.names:
            _ip("netns", "add", name)
        cable = ("type", "veth", "peer", "name", "eth0", "netns", second)
        _ip("link", "add", "eth0", "netns", first, *cable)
        for name, address in zip(self.names, ADDRESSES, strict=True):
            _ip("-n", name, "address", "add", f"{address}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                _ip("-n", name, "link", "set", device, "up")

    def on(self, index: int, command: Sequence[str]) -> list[str]:
        """Return a command as it runs on one of the two."""
        return ["ip", "netns", "exec", self.names[index], *command]

    def end(self) -> None:
        """Take both away, as far as they are there."""
        for name in self.names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
