"""The Ray cluster under Flower's simulation engine, where it has several nodes."""

import sys
from logging import getLogger

logger = getLogger("flwr")


def has_ray() -> bool:
    """Return whether this process runs Ray, as Flower's simulation engine does."""
    # not imported here: a process that did not import it is in no cluster
    ray = sys.modules.get("ray")
    # another thread may be in the midst of importing it
    is_initialized = getattr(ray, "is_initialized", None)
    return is_initialized is not None and bool(is_initialized())


def address_in_cluster() -> str | None:
    """Return the address by which the nodes of the Ray cluster reach this one.

    It is None where this process has no Ray cluster, as in a deployment, and where the
    cluster has no other node. A cluster may grow.
    """
    if not has_ray():
        return None
    ray = sys.modules["ray"]
    try:
        alive = [node for node in ray.nodes() if node["Alive"]]
        return str(ray.util.get_node_ip_address()) if len(alive) > 1 else None
    except Exception as error:  # whatever a cluster in trouble raises
        logger.warning("Ray does not tell which nodes it has: %r", error)
        return None
