"""What a mini-batch costs a server half that merges the batches that wait together.

    python benchmarks/merging.py

Times are the CPU's, of one thread, so that a busy machine shows less in them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median

import torch
from digits import batch, halves
from sessions import trainer

from flwr_splitfc.exchange.server.half.step_merger import WaitingBatch

MERGED = (1, 2, 4, 8, 16)


def cpu_ms(step: Callable[[], None], rounds: int) -> float:
    """Return the median time of a step, after two that are not counted."""
    times = []
    for _ in range(rounds + 2):
        started = time.thread_time()
        step()
        times.append(1e3 * (time.thread_time() - started))
    return median(times[2:])


def step_of(merged: int, rows: int) -> Callable[[], None]:
    """Return a step of so many mini-batches on the digits' server half."""
    device_half, _ = halves()
    images, labels = batch(rows)
    features = device_half(images).detach()
    half = trainer(merge_steps=max(MERGED))

    def one_by_one() -> None:
        half._begin_alone(WaitingBatch(features, labels, None, None)).finish()

    def together() -> None:
        batches = [
            WaitingBatch(features.clone(), labels, None, None) for _ in range(merged)
        ]
        half._step_together(batches)

    return one_by_one if merged == 1 else together


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", default="1,8,64", help="samples of a mini-batch")
    parser.add_argument("--rounds", type=int, default=50)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("rows  merged  ms a mini-batch  speed-up")
    for rows in map(int, options.rows.split(",")):
        alone = 0.0
        for merged in MERGED:
            each = cpu_ms(step_of(merged, rows), options.rounds) / merged
            alone = alone or each
            print(f"{rows:>4} {merged:>7} {each:>16.3f} {alone / each:>9.2f}")


if __name__ == "__main__":
    main()
