"""Why a device failed, as a run of a comparison tells it."""

from collections.abc import Iterable

import pytest
from flwr.app import Error, Message, RecordDict

from flwr_splitfc.compare.workers.run_grid import DeviceFailed, RunGrid
from tests.local_grid import LocalGrid

# as Flower's simulation engine has it from Ray, without lines of the traceback
OF_RAY = """<class 'ray.exceptions.RayTaskError(ClientAppException)'>:<'\x1b[36mray::\
ClientAppActor.run()\x1b[39m (pid=1, ip=127.0.0.1, actor_id=1, repr=<ClientAppActor>)
    ^^^^^
  File "batchnorm.py", line 210, in forward
    raise ValueError(
ValueError: Expected more than 1 value per channel

The above exception was the direct cause of the following exception:

\x1b[36mray::ClientAppActor.run()\x1b[39m (pid=1, ip=127.0.0.1, actor_id=1)
  File "ray_actor.py", line 65, in run
    raise ClientAppException(str(ex)) from ex
flwr.clientapp.client_app.ClientAppException:\x20
Exception ClientAppException occurred. Message: Expected more than 1 value per channel\
'>"""


class Failing(LocalGrid):
    """All its devices fail, for one reason."""

    def __init__(self, reason: str | None) -> None:
        super().__init__(lambda message, context: message, 1)
        self.reason = reason

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        return [Message(Error(1, self.reason), reply_to=one) for one in messages]


@pytest.mark.parametrize(
    ("reason", "told"),
    [
        (OF_RAY, "ValueError: Expected more than 1 value per channel"),
        ("it\n\x1b[31mbroke", "it \\x1b[31mbroke"),
        (None, "no reason given"),
    ],
    ids=["Ray", "control characters", "none"],
)
def test_a_device_that_failed_is_told_by_its_error(
    reason: str | None, told: str
) -> None:
    grid = RunGrid(Failing(reason), "a", {})
    with pytest.raises(DeviceFailed) as failed:
        grid.send_and_receive([Message(RecordDict(), 1000, "train")])
    assert str(failed.value) == f"a device failed: {told}"
