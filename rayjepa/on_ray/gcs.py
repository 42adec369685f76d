"""What a cluster's head says of itself, asked by plain gRPC with a deadline.

Not by Ray's own client, which waits 40 s for a dead address and ends the process where a token is wanted and missing.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
from ray._common.tls_utils import load_certs_from_env
from ray.core.generated import autoscaler_pb2, autoscaler_pb2_grpc, gcs_service_pb2, gcs_service_pb2_grpc

from rayjepa.on_ray.head import Head, Node, autoscaler_of

GCS: Any = gcs_service_pb2  # generated, without types
AUTOSCALER: Any = autoscaler_pb2

DEADLINE_S = 5.0
ALIVE = 0
"""GcsNodeInfo.ALIVE."""
V2 = b"__autoscaler_v2_enabled"


def asks_token(address: str) -> bool:
    """Whether the head refuses whoever has no token.

    Raises:  ConnectionError if what listens there is no head of a Ray cluster.
    """
    with _channel(address) as channel:
        return not _admits(channel, None)


def admits(address: str, token: str) -> bool:
    """Whether the head takes this token."""
    with _channel(address) as channel:
        return _admits(channel, token)


def read_head(address: str, token: str | None) -> Head:
    """All that a doctor wants to know of the head, in five short questions."""
    more = _credentials(token)
    with _channel(address) as channel:
        values = gcs_service_pb2_grpc.InternalKVGcsServiceStub(channel)

        def value(key: bytes, namespace: bytes | None = None) -> bytes:
            request = GCS.InternalKVGetRequest(key=key, namespace=namespace)
            return values.InternalKVGet(request, timeout=DEADLINE_S, metadata=more).value

        versions = json.loads(value(b"CLUSTER_METADATA", b"cluster"))
        dashboard = value(b"dashboard", b"dashboard").decode() or None
        v2 = value(V2, b"__autoscaler") == b"1"
        v1_status = value(b"__autoscaling_status")
        infos = gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel).GetAllNodeInfo(
            GCS.GetAllNodeInfoRequest(), timeout=DEADLINE_S, metadata=more
        )
        status = autoscaler_pb2_grpc.AutoscalerStateServiceStub(channel).GetClusterStatus(
            AUTOSCALER.GetClusterStatusRequest(), timeout=DEADLINE_S, metadata=more
        )
    states = {state.node_id: state for state in status.cluster_resource_state.node_states}
    alive = [info for info in infos.node_info_list if info.state == ALIVE]
    return Head(
        ray=versions["ray_version"],
        python=versions["python_version"],
        dashboard=dashboard,
        autoscaler=autoscaler_of(v1_status, is_v2=v2),
        nodes=tuple(_node(info, states.get(info.node_id)) for info in alive),
    )


def _node(info: Any, state: Any) -> Node:
    return Node(
        id=info.node_id.hex(),
        address=info.node_manager_address,
        is_head=info.is_head_node,
        resources=dict(info.resources_total),
        available=dict(state.available_resources) if state is not None else {},
        labels=dict(info.labels),
        session=info.session_dir,
    )


def _admits(channel: grpc.Channel, token: str | None) -> bool:
    ask = gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel).GetClusterId
    try:
        ask(GCS.GetClusterIdRequest(), timeout=DEADLINE_S, metadata=_credentials(token))
    except grpc.RpcError as error:
        code: Any = error.code()
        if code == grpc.StatusCode.UNAUTHENTICATED:
            return False
        details: Any = error.details()
        said = "it speaks HTTP/1" if "http1" in details else f"{code.name}: {details[:200]}"
        raise ConnectionError(said) from None
    return True


def _credentials(token: str | None) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),) if token else ()


@contextmanager
def _channel(address: str) -> Iterator[grpc.Channel]:
    options = (("grpc.enable_http_proxy", 0), ("grpc.max_receive_message_length", 512 * 2**20))
    if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
        certificate, key, authority = load_certs_from_env()
        secret = grpc.ssl_channel_credentials(authority, key, certificate)
        channel = grpc.secure_channel(address, secret, options)
    else:
        channel = grpc.insecure_channel(address, options)
    with channel:
        yield channel
