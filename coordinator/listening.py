"""The gRPC server: every call is let in by `Admission`, decoded, answered by `Service`, and refused by name."""

import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import grpc

from coordinator import endpoint
from coordinator.admission import UNKNOWN, Caller, Refusal
from coordinator.fleet import Fleet
from coordinator.service import Service
from zo import wire
from zo.address import is_loopback
from zo.errors import ConfigError, ConnectionFailed, StorageError
from zo.messages import ReportReply, Verdict

log = logging.getLogger(__name__)

PENDING = 10_000  # calls that have come, and not begun; beyond, some are refused

OPTIONS = [
    ("grpc.max_receive_message_length", 1 << 20),
    ("grpc.http2.bdp_probe", 0),
    ("grpc.so_reuseport", 0),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),  # agents ask after the line while they wait
    ("grpc.keepalive_time_ms", 60_000),  # devices that went away without a word hold no memory for long
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.server.max_pending_requests", PENDING),  # else a part of them is refused where a whole fleet calls at once
    ("grpc.server.max_pending_requests_hard_limit", 2 * PENDING),
]


def handlers(service: Service) -> grpc.GenericRpcHandler:
    """The service's methods as gRPC handlers."""
    answers: dict[str, Callable[[Any], Awaitable[Any]] | None] = {
        "Enrol": None,  # admission's own
        "Join": service.join,
        "FetchFile": service.fetch_file,
        "CatchUp": service.catch_up,
        "FetchCheckpoint": service.fetch_checkpoint,
        "RequestWork": service.request_work,
        "SendReport": service.send_report,
    }
    return grpc.method_handlers_generic_handler(wire.SERVICE, {m.name: _handler(service, m, answers[m.name]) for m in wire.METHODS})


def _handler(service: Service, method: wire.Method, answer: Callable[[Any], Awaitable[Any]] | None) -> Any:
    decode: Callable[[bytes], Any] = wire.decoder(method.request)
    admission = service.admission

    async def reply(data: bytes, caller: Caller, context: grpc.aio.ServicerContext) -> Any:
        admission.begin(caller, method.request, len(data))
        context.add_done_callback(lambda _: admission.end(caller))  # when the reply is out, or nobody waits for it
        request = caller.identified(decode(data))
        if answer is None:
            return admission.enrol(caller, request)
        service.check_device(caller, request)
        return await answer(request)

    async def handle(data: bytes, context: grpc.aio.ServicerContext) -> bytes:
        name = UNKNOWN
        try:
            caller = admission.caller(context, method.request)
            name = caller.name
            found = await reply(data, caller, context)
            admission.caller(context, method.request)  # again: it may have been revoked while it waited
            if isinstance(found, ReportReply) and found.verdict is not Verdict.ACCEPTED:
                service.count(name, found.verdict.name.lower().replace("_", "-"))
            return wire.encode(admission.reminded(caller, found))
        except wire.WireError as error:
            service.count(name, "garbage", str(error))
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except Refusal as error:
            service.count(name, error.name or error.code.name.lower().replace("_", "-"), str(error) if error.name else "")
            await context.abort(error.code, str(error))
        except StorageError as error:
            log.error("%s", error)
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the coordinator cannot write its store; ask again later")
        except Exception as error:
            log.error("%s: internal error: %s: %s", method.name, type(error).__name__, error, exc_info=log.isEnabledFor(logging.DEBUG))
            await context.abort(grpc.StatusCode.INTERNAL, "an error in the coordinator itself; its log says which")
        raise AssertionError("abort returns no value")

    return grpc.unary_unary_rpc_method_handler(handle)


def check(listen: str, insecure_loopback: bool) -> tuple[str, int]:
    """The host and port that `listen` ("address:port") names. ConfigError where it names none, or would be plaintext beyond loopback."""
    host, port = endpoint.parse("listen", listen)
    if insecure_loopback and not is_loopback(listen):
        raise ConfigError(f"listen = {listen!r} is no loopback address; plaintext is served on 127.0.0.1 or [::1] only")
    endpoint.check_free(listen, host, port)
    return host, port


async def start(service: Service, listen: str, insecure_loopback: bool) -> tuple[grpc.aio.Server, str]:
    """Serve on `listen` ("address:port"), to devices with a certificate. With the address, and the port that it has.

    ConfigError where `check` says so, ConnectionFailed where it is not to be had.
    """
    fleet = service.admission.fleet
    host, _ = check(listen, insecure_loopback)
    if insecure_loopback == bool(fleet):
        raise ConfigError("serve either a fleet, or plaintext on a loopback address with --insecure-loopback")
    server = grpc.aio.server(options=OPTIONS, maximum_concurrent_rpcs=None)
    server.add_generic_rpc_handlers((handlers(service),))
    try:
        port = server.add_secure_port(listen, credentials(fleet)) if fleet else server.add_insecure_port(listen)
    except RuntimeError:
        port = 0
    if port == 0:
        raise ConnectionFailed(f"cannot listen on {listen}: the port is in use or not allowed; choose another with --listen")
    await server.start()
    return server, f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def credentials(fleet: Fleet) -> grpc.ServerCredentials:
    """TLS with certificates on both sides; a new token is trusted from the next handshake on."""
    last = b""

    def fetch() -> Any:
        nonlocal last
        with contextlib.suppress(StorageError):
            roots = fleet.roots()
            if roots != last:
                last = roots
                return grpc.ssl_server_certificate_configuration([(fleet.server.key, fleet.server.certificate)], roots)
        return None

    return grpc.dynamic_ssl_server_credentials(fetch(), fetch, require_client_authentication=True)
