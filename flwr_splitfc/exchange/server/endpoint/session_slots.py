"""The slots of the sessions that are served at once, and the queue for them."""

from bisect import insort
from collections import Counter
from itertools import count
from threading import Event, Lock

from flwr_splitfc.exchange.protocol.split_errors import LimitExceeded


class NoRoom(LimitExceeded):
    """The queue is full; the device may come again."""


class Place:
    """A stream's place: in its session's slot, or in the queue for one.

    Attributes
    ----------
    session_id : str
    arrival : int
        When the session first came, in the order of all.
    number : int
        Which it was in the queue when it came, from 1; 0 if it got a slot at once.
    has_slot : bool
    """

    def __init__(self, session_id: str, arrival: int) -> None:
        self.session_id = session_id
        self.arrival = arrival
        self.number = 0
        self.has_slot = False
        self._woken = Event()

    def wait(self) -> None:
        """Wait for the slot, or for another reason to `wake`."""
        self._woken.wait()

    def wake(self) -> None:
        """End `wait`."""
        self._woken.set()


class SessionSlots:
    """So many sessions have a slot at once; others wait, first come, first served.

    All streams of a session share its slot. It keeps its rank until it is forgotten: a
    session whose connection broke comes back before all that came later, whether it had
    a slot or waited for one.

    It is safe to use from many threads.

    Parameters
    ----------
    slots : int
    most_waiting : int
        How many may wait.
    """

    def __init__(self, slots: int, most_waiting: int) -> None:
        self._slots = slots
        self._most_waiting = most_waiting
        self._lock = Lock()
        self._arrivals: dict[str, int] = {}
        self._numbers = count()
        # the streams that are in each session's slot
        self._streams: Counter[str] = Counter()
        self._queue: list[Place] = []

    @property
    def taken(self) -> int:
        """How many sessions have a slot."""
        return len(self._streams)

    def take(self, session_id: str) -> Place:
        """Return a place in a slot, or else at a session's rank in the queue.

        Raises
        ------
        NoRoom
            If too many wait already.
        """
        with self._lock:
            known = session_id in self._arrivals
            # one that comes back had its place when there were fewer
            if not known and len(self._queue) >= self._most_waiting:
                raise NoRoom(
                    f"{len(self._streams)} sessions are open and {len(self._queue)} "
                    "wait, and no more may"
                )
            if not known:
                self._arrivals[session_id] = next(self._numbers)
            place = Place(session_id, self._arrivals[session_id])
            insort(self._queue, place, key=_rank)
            self._fill()
            if not place.has_slot:
                place.number = self._queue.index(place) + 1
        return place

    def leave(self, place: Place) -> None:
        """Give a place back: the next in the queue gets the slot, if it is free."""
        with self._lock:
            if place.has_slot:
                self._streams[place.session_id] -= 1
                # what is not there takes no slot
                self._streams = +self._streams
            elif place in self._queue:
                self._queue.remove(place)
            self._fill()

    def forget(self, session_id: str) -> None:
        """Forget the rank of a session that is over, and wake its waiting streams."""
        with self._lock:
            self._arrivals.pop(session_id, None)
            for place in self._queue:
                if place.session_id == session_id:
                    place.wake()

    def _fill(self) -> None:
        """Give slots to the first, and to further streams of a session that has one."""
        waiting, self._queue = self._queue, []
        for place in waiting:
            shares_slot = place.session_id in self._streams
            if shares_slot or len(self._streams) < self._slots:
                self._streams[place.session_id] += 1
                place.has_slot = True
                place.wake()
            else:
                self._queue.append(place)


def _rank(place: Place) -> int:
    return place.arrival
