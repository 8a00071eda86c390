import argparse
from pathlib import Path

import torch

from tests.soak.soak import soak


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.soak")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--folder", type=Path, default=Path("soak"), help="where soak.png is written"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    soak(options.minutes, options.seed, options.folder)


if __name__ == "__main__":
    main()
