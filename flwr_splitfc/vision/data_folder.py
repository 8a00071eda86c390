"""The folder in which a machine has its data sets."""

from pathlib import Path


def data_folder(name: str, data_dir: str, download: bool) -> Path:
    """Return the run-config's ``data-dir``, checked.

    Raises
    ------
    ValueError
        If it is not an absolute path.
    FileNotFoundError
        If there is no such folder, and `download` may not make it.
    """
    root = Path(data_dir).expanduser()
    if not root.is_absolute():
        raise ValueError(
            f"data-dir is {data_dir!r}; "
            f"dataset {name!r} needs the absolute path of its data folder"
        )
    if not download and not root.is_dir():
        raise FileNotFoundError(
            f"data-dir {root} does not exist; create it or set download=true"
        )
    return root
