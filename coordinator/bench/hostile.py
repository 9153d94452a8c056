"""Those who mean harm, for `scripts/bench soak`: each message is one that a coordinator must not take for what it claims to be."""

import contextlib
import itertools
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509 import load_der_x509_certificate

from coordinator import authority
from coordinator.authority import Peer
from coordinator.fleet import Fleet
from coordinator.sqlite_store import SqliteStore
from zo import wire
from zo.errors import StorageError, UserError
from zo.ledger import short
from zo.messages import JoinRequest, Report, Verdict, WorkRequest
from zo.token import SERVER_NAME

OPTIONS = [("grpc.ssl_target_name_override", SERVER_NAME), ("grpc.max_reconnect_backoff_ms", 1000)]
PATIENCE = 5.0  # seconds, of a call


@dataclass(frozen=True)
class Holder:
    """Somebody with a key and a certificate (PEM). name: of the device, where it is one's."""

    key: bytes
    certificate: bytes
    name: str = ""


def enrolled(fleet: Fleet) -> Holder:
    """A device that has joined, as far as the fleet can tell."""
    token, key = fleet.create_token(1, 3600), ec.generate_private_key(ec.SECP256R1())
    hash_, _ = authority.token_root(token)
    made, _ = fleet.enrol(Peer(hash_, "", 0.0), *_coordinates(key), 1e6)
    certificate = load_der_x509_certificate(made).public_bytes(Encoding.PEM)
    return Holder(_pem(key), certificate, authority.read_peer(certificate, fleet.authority.certificate).device)


def stranger(name: str) -> Holder:
    """A certificate for a device of that name, by an authority of its own."""
    key = ec.generate_private_key(ec.SECP256R1())
    made = authority.device_certificate(authority.new_authority(), name, *_coordinates(key), time.time() + 1e6)
    return Holder(_pem(key), load_der_x509_certificate(made).public_bytes(Encoding.PEM))


class Attack:
    """Messages at a rate a second, until `stop`. store: of the run, from which an insider knows where it stands.

    `accepted` counts those that were taken, `refused` the others, by kind of message.
    """

    def __init__(self, fleet: Fleet, store: Path, run: int, rate: float) -> None:
        self._fleet, self._store_path, self._run, self._rate = fleet, store, run, rate
        self.accepted, self.refused = Counter[str](), Counter[str]()
        self.revoked: list[Holder] = []
        self.stop, self._lock, self._random = threading.Event(), threading.Lock(), random.Random(0)
        self._channels: dict[Holder | None, grpc.Channel] = {}
        self._insider, self._victim = enrolled(fleet), enrolled(fleet)
        self._stranger = stranger(self._victim.name)
        self._thread = threading.Thread(target=self._go_on)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def end(self) -> None:
        """Stop, and wait for the calls under way."""
        if not self._thread.is_alive():
            raise UserError("the attack has ended by itself: what was measured is no soak")
        self.stop.set()
        self._thread.join()
        time.sleep(PATIENCE)
        for channel in self._channels.values():
            channel.close()

    def _go_on(self) -> None:
        kinds: list[Callable[[], None]] = [self._garbage] * 4 + [self._beyond_clip, self._anothers, self._replayed, self._too_large]
        kinds += [self._without_certificate, self._of_another_fleet, self._as_revoked, self._plain_bytes]
        self._store = SqliteStore(self._store_path)  # here, since it is this thread's
        began = time.monotonic()
        for number, kind in enumerate(itertools.cycle(kinds)):
            if self.stop.wait(max(0.0, began + number / self._rate - time.monotonic())):
                return
            with contextlib.suppress(OSError, ValueError, StorageError):
                kind()

    def _garbage(self) -> None:
        method = self._random.choice(wire.METHODS)
        content = self._random.randbytes(self._random.randint(1, 2000))
        with contextlib.suppress(wire.WireError):
            wire.decoder(method.request)(content)
            return  # by chance it is a message
        self._call("garbage", self._insider, method, content)

    def _beyond_clip(self) -> None:
        """An answer to the plan that it has, in all but the scalars."""
        entry, head = self._store.head(self._run)
        joined = self._ask(JOIN, JoinRequest(1, 0))
        reply = joined and self._ask(WORK, WorkRequest(self._run, joined.device, entry, short(head), "fp32"))
        plan = reply and reply.plan
        if not plan:
            return
        scalars, shape = np.full(plan.root.scalars, 2**31 - 1), plan.root.shape
        report = Report(self._run, joined.device, plan.round, scalars, plan.examples, "fp32", plan=plan.id, shape=shape)
        self._call("beyond the clip", self._insider, SEND, wire.encode(report), _taken)

    def _anothers(self) -> None:
        """Reports and questions in the name of other devices."""
        device = self._random.randrange(1000, 2000)
        if self._random.random() < 0.5:
            self._call("another's report", self._insider, SEND, wire.encode(self._report(device, np.array([1, 2]))))
        else:
            self._call("another's work", self._insider, WORK, wire.encode(WorkRequest(self._run, device, 0, 0, "fp32")))

    def _replayed(self) -> None:
        """Old rounds, and rounds that have not been."""
        number = self._random.choice([0, 1, 2, 2**40])
        self._call("another round", self._insider, SEND, wire.encode(self._report(0, np.array([1, 2]), number)), _taken)

    def _too_large(self) -> None:
        self._call("too large", self._insider, WORK, bytes(8192))

    def _without_certificate(self) -> None:
        self._call("no certificate", None, JOIN, wire.encode(JoinRequest(1, int(self._victim.name, 16))))

    def _of_another_fleet(self) -> None:
        self._call("another fleet", self._stranger, JOIN, wire.encode(JoinRequest(1, int(self._victim.name, 16))))

    def _as_revoked(self) -> None:
        if self.revoked:
            holder = self._random.choice(self.revoked)
            method, request = self._random.choice(
                [(JOIN, JoinRequest(1, int(holder.name, 16))), (WORK, WorkRequest(self._run, 0, 0, 0, "fp32"))]
            )
            self._call("revoked", holder, method, wire.encode(request))

    def _plain_bytes(self) -> None:
        """No TLS at all."""
        host, _, port = self._fleet.address.rpartition(":")
        with socket.create_connection((host, int(port)), 1) as line:
            line.sendall(self._random.randbytes(200))
        self.refused["no TLS"] += 1

    def _ask(self, method: wire.Method, request: Any) -> Any:
        """As the insider; None where there is no answer."""
        with contextlib.suppress(grpc.RpcError):
            call = self._channel(self._insider).unary_unary(method.path, wire.encode, wire.decoder(method.reply))
            return call(request, timeout=0.2)

    def _report(self, device: int, scalars: np.ndarray, number: int = 1) -> Report:
        return Report(self._run, device, number, scalars, 2, "fp32")

    def _call(
        self, kind: str, holder: Holder | None, method: wire.Method, content: bytes, taken: Callable[[Any], bool] = lambda _: True
    ) -> None:
        call = self._channel(holder).unary_unary(method.path, None, wire.decoder(method.reply)).future(content, timeout=PATIENCE)

        def done(ended: Any) -> None:
            accepted = ended.code() is grpc.StatusCode.OK and taken(ended.result())
            with self._lock:
                (self.accepted if accepted else self.refused)[kind] += 1

        call.add_done_callback(done)

    def _channel(self, holder: Holder | None) -> grpc.Channel:
        if holder not in self._channels:
            given = (holder.key, holder.certificate) if holder else ()
            credentials = grpc.ssl_channel_credentials(self._fleet.authority.certificate, *given)
            self._channels[holder] = grpc.secure_channel(self._fleet.address, credentials, OPTIONS)
        return self._channels[holder]


def _taken(reply: Any) -> bool:
    return bool(reply.verdict is Verdict.ACCEPTED)


def _coordinates(key: ec.EllipticCurvePrivateKey) -> tuple[bytes, bytes]:
    numbers = key.public_key().public_numbers()
    return numbers.x.to_bytes(32, "big"), numbers.y.to_bytes(32, "big")


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


JOIN, WORK, SEND = (next(each for each in wire.METHODS if each.name == name) for name in ("Join", "RequestWork", "SendReport"))
