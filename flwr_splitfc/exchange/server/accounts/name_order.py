"""The order in which devices are listed and take their turns."""


def name_order(name: str) -> tuple[bool, int, str]:
    """Return the sort key of a device name: numbers come first, as numbers."""
    if name.isdecimal():
        return False, int(name), name
    return True, 0, name
