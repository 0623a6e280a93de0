"""Ports: how gRPC treats the connections of a server, and their TLS."""

from typing import Any

import grpc

from runtime import logs
from runtime.errors import ConfigError
from runtime.serve.auth import TlsFiles

__all__ = ["MESSAGE_BYTES", "channel_options", "credentials"]

log = logs.of(__name__)

MESSAGE_BYTES = 16 << 20  # a raw 4096x2304 yuv420p picture takes 13.5 MiB


def channel_options() -> list[tuple[str, int]]:
    """How gRPC treats connections. See https://grpc.github.io/grpc/core/group__grpc__arg__keys.html."""
    return [
        # One message holds at most one large raw picture; 100 MB are refused before they are read to the end.
        ("grpc.max_receive_message_length", MESSAGE_BYTES),
        ("grpc.max_send_message_length", 1 << 20),  # answers have some kB; more is a mistake of ours
        ("grpc.max_metadata_size", 16 << 10),  # a token has 50 bytes
        # A phone that left its network says nothing: ask after 20 s, give up 10 s later, and keep the stream's state.
        ("grpc.keepalive_time_ms", 20_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),  # clients may hold a connection for the next stream
        ("grpc.http2.min_ping_interval_without_data_ms", 5_000),  # a client that pings more often is a nuisance
        ("grpc.http2.max_ping_strikes", 2),
        ("grpc.max_connection_idle_ms", 300_000),  # a connection without a call for five minutes is let go
        ("grpc.server_handshake_timeout_ms", 10_000),  # TLS and settings, a byte a second or not
        ("grpc.max_concurrent_streams", 128),  # calls on one connection
        # A fixed window: what one client can make us hold. 1 MiB carries 80 Mbit/s over 100 ms.
        ("grpc.http2.lookahead_bytes", 1 << 20),
        ("grpc.http2.bdp_probe", 0),
    ]


def credentials(files: TlsFiles) -> Any:
    """TLS whose certificate may be renewed while the server runs: new handshakes use what the files hold then."""
    seen = {"stamp": files.stamp()}

    def configuration() -> Any:
        key, chain, authority = files.read()
        return grpc.ssl_server_certificate_configuration([(key, chain)], root_certificates=authority)

    def renewed() -> Any:
        try:
            stamp = files.stamp()
            if stamp == seen["stamp"]:
                return None
            files.check()
            fresh = configuration()
        except (OSError, ConfigError) as error:
            log.warning("renewed certificate not used", why=str(error))
            return None
        seen["stamp"] = stamp
        log.info("certificate renewed")
        return fresh

    return grpc.dynamic_ssl_server_credentials(
        configuration(), renewed, require_client_authentication=files.client_ca is not None
    )
