"""Drawn faces in the files of CelebA's download, to run the real example without CelebA's pictures.

``python -m tests.examples.drawn_faces FOLDER`` makes such a folder, the run-config's
``data-dir``.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

WIDTH, HEIGHT = 178, 218  # of CelebA's aligned pictures
ATTRIBUTES = ("Bald", "Smiling", "Young")  # three of its forty, in its order
SPLITS = {"train": 0, "valid": 1, "test": 2}


def draw_face(
    rng: np.random.Generator, skin: tuple[int, int, int], *, smiling: bool
) -> Image.Image:
    """A face on a plain background; a smile is a mouth turned up, with teeth."""
    face = Image.new("RGB", (WIDTH, HEIGHT), tuple(rng.integers(0, 256, 3).tolist()))
    pen = ImageDraw.Draw(face)
    x, y = 89 + int(rng.integers(-5, 6)), 120 + int(rng.integers(-5, 6))
    pen.ellipse((x - 60, y - 80, x + 60, y + 80), fill=skin)
    for side in (-25, 25):
        pen.ellipse((x + side - 9, y - 26, x + side + 9, y - 14), fill="white")
        pen.ellipse((x + side - 4, y - 24, x + side + 4, y - 16), fill="black")
    if smiling:
        pen.chord(
            (x - 34, y - 4, x + 34, y + 56),
            0,
            180,
            fill="white",
            outline="darkred",
            width=4,
        )
    else:
        pen.arc((x - 24, y + 34, x + 24, y + 62), 180, 360, fill="darkred", width=5)
    return face


def write_faces(
    root: Path,
    *,
    train_identities: int = 16,
    test_identities: int = 4,
    pictures: int = 10,
    seed: int = 0,
) -> Path:
    """Write ``celeba/`` below `root`, with `pictures` of each identity (one fewer of every third); gives `root`."""
    rng = np.random.default_rng(seed)
    folder = root / "celeba"
    (folder / "img_align_celeba").mkdir(parents=True)
    lists: dict[str, list[str]] = {
        name: [] for name in ("attr", "identity", "partition", "bbox", "landmarks")
    }
    people = _people(train_identities, test_identities, pictures)
    for number, (identity, split) in enumerate(people, start=1):
        name, smiling = f"{number:06d}.jpg", bool(rng.integers(2))
        skin = (
            140 + identity * 37 % 100,
            100 + identity * 53 % 80,
            80 + identity * 71 % 60,
        )
        draw_face(rng, skin, smiling=smiling).save(folder / "img_align_celeba" / name)
        lists["attr"].append(f"{name} {-1:2d} {1 if smiling else -1:2d} {1:2d}")
        lists["identity"].append(f"{name} {identity}")
        lists["partition"].append(f"{name} {SPLITS[split]}")
        lists["bbox"].append(f"{name}    95  71 226 313")
        lists["landmarks"].append(
            f"{name} 69  109  106  113   77  142   73  152  108  154"
        )
    _write(folder / "list_attr_celeba.txt", lists["attr"], " ".join(ATTRIBUTES) + " ")
    _write(folder / "identity_CelebA.txt", lists["identity"])
    _write(folder / "list_eval_partition.txt", lists["partition"])
    _write(
        folder / "list_bbox_celeba.txt", lists["bbox"], "image_id x_1 y_1 width height"
    )
    eyes = "lefteye_x lefteye_y righteye_x righteye_y nose_x nose_y"
    mouth = "leftmouth_x leftmouth_y rightmouth_x rightmouth_y"
    _write(
        folder / "list_landmarks_align_celeba.txt",
        lists["landmarks"],
        f"{eyes} {mouth}",
    )
    return root


def _people(
    train_identities: int, test_identities: int, pictures: int
) -> Iterator[tuple[int, str]]:
    """(identity, split) of each picture; one identity's are not next to one another, as in CelebA."""
    splits = train_identities * ["train"] + ["valid"] + test_identities * ["test"]
    for split in SPLITS:
        for turn in range(pictures):
            for identity, own in enumerate(splits, start=1):
                if own == split and not (turn == 0 and identity % 3 == 0):
                    yield identity, split


def _write(path: Path, lines: list[str], header: str | None = None) -> None:
    """As CelebA's lists are: where there is a header, the number of pictures stands above it."""
    above = [] if header is None else [str(len(lines)), header]
    path.write_text("\n".join([*above, *lines]) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--train-identities", type=int, default=300)
    parser.add_argument("--test-identities", type=int, default=20)
    arguments = parser.parse_args()
    write_faces(
        arguments.folder,
        train_identities=arguments.train_identities,
        test_identities=arguments.test_identities,
    )
    print(
        f'Wrote {arguments.folder / "celeba"}: give data-dir="{arguments.folder.resolve()}"'
    )
