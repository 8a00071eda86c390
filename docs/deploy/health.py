"""Ask a Flower process whether it is healthy: ``python health.py 127.0.0.1:8090``."""

import sys

import grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

_TIMEOUT_S = 5.0


def is_healthy(address: str) -> bool:
    """Return whether the health server at ``host:port`` says that it serves."""
    with grpc.insecure_channel(address) as channel:
        try:
            answer = HealthStub(channel).Check(HealthCheckRequest(), timeout=_TIMEOUT_S)
        except grpc.RpcError:
            return False
    return bool(answer.status == HealthCheckResponse.SERVING)


if __name__ == "__main__":
    sys.exit(not is_healthy(sys.argv[1]))
