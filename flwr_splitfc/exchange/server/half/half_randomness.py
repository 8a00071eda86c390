"""The randomness of a half's steps; torch's own generators stay as they were."""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from threading import Lock

import torch

from flwr_splitfc.exchange.protocol.seeds import SeedPart, derive_seed

_CPU = Lock()
"""Of torch's generator, which is one for all threads: copies of a half share it."""

_GPUS: defaultdict[int, Lock] = defaultdict(Lock)
"""Of each GPU's, by its index."""


class HalfRandomness:
    """Gives each step of a half a generator state of its own, by the step's name.

    Sessions at the same time leave each other's draws alone.

    Parameters
    ----------
    seed : int
    device : torch.device
        Where the half trains, a GPU with its index.

    Attributes
    ----------
    draws_on_cpu : bool
        Whether a half on a GPU may draw on the CPU, too, as it may at first. Halves
        that train on several GPUs at the same time may not: the CPU's generator is one
        for all.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self.seed = seed
        self._device = device
        self.draws_on_cpu = True

    def of(self, *name: SeedPart) -> AbstractContextManager[None]:
        """Seed torch's generators by the name meanwhile."""
        seed = derive_seed(self.seed, *name)
        on_cpu = _seeded(torch.default_generator, _CPU, seed)
        if self._device.type != "cuda":
            return on_cpu
        index = self._device.index
        on_gpu = _seeded(torch.cuda.default_generators[index], _GPUS[index], seed)
        return _both(on_cpu, on_gpu) if self.draws_on_cpu else on_gpu

    def of_step(self, number: int) -> AbstractContextManager[None]:
        """Seed torch's generators by a step's number meanwhile, from 0."""
        return self.of("server-half", number)


@contextmanager
def _seeded(generator: torch.Generator, lock: Lock, seed: int) -> Iterator[None]:
    """Seed a generator of torch's own, and leave it as it was."""
    with lock:
        state = generator.get_state()
        # not by `torch.manual_seed`, which takes as long as a small layer
        generator.manual_seed(seed)
        try:
            yield
        finally:
            generator.set_state(state)


@contextmanager
def _both(
    one: AbstractContextManager[None], other: AbstractContextManager[None]
) -> Iterator[None]:
    with one, other:
        yield
