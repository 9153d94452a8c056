"""Who may call, how much and how often; and a count, by name, of all that is refused.

A device is whoever proves, in the TLS handshake, the key of a certificate that the fleet has issued and not revoked; never what
a message says. A token opens one call, Enrol.
"""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import grpc

from coordinator import authority
from coordinator.authority import Peer
from coordinator.config import Limits
from coordinator.fleet import Fleet, NotAdmitted
from zo.messages import EnrolReply, EnrolRequest, JoinRequest, Report, WorkReply

UNIT = 1 << 14  # bytes that weigh as much as a call
LARGEST: dict[type, int] = {Report: 1_000_000}  # bytes of a request; a report has up to 5 a scalar
LARGEST_OTHER = 1 << 12
RENEWED = 1 / 3  # share of a certificate's life that is left when it is renewed
UNKNOWN = "unknown"  # callers of no name


class Refusal(Exception):
    """A call that is answered with a status and a sentence. name: under which it is counted, if an honest device never causes it."""

    def __init__(self, code: grpc.StatusCode, text: str, name: str = "") -> None:
        super().__init__(text)
        self.code, self.name = code, name


class Refusals:
    """What was refused, by caller and name: since the last `take`, and in all."""

    def __init__(self) -> None:
        self.totals: Counter[str] = Counter()
        self._recent: dict[str, Counter[str]] = {}

    def add(self, caller: str, name: str) -> bool:
        """Count one; whether it is the first of its kind since the last `take`."""
        self.totals[name] += 1
        counts = self._recent.setdefault(caller, Counter())
        counts[name] += 1
        return counts[name] == 1

    def take(self) -> dict[str, Counter[str]]:
        """Those since the last call."""
        found, self._recent = self._recent, {}
        return found


@dataclass(frozen=True)
class Caller:
    """Who calls: a device by its id, a token by its name, or, where the connection is plaintext, nobody in particular."""

    name: str
    peer: Peer | None = None

    def identified(self, request: Any) -> Any:
        """The request, as one of this caller's."""
        return replace(request, device_id=int(self.name, 16)) if self.peer and isinstance(request, JoinRequest) else request


@dataclass
class _Use:
    """What a caller has left of its rate, when that was, and its calls under way."""

    left: float
    at: float
    calls: int = 0


class Admission:
    """Decides about calls. fleet: None where plaintext is spoken, on loopback; there nobody can be told from others, or held to a rate.

    lifetime: of the certificates it gives out, seconds. clock: of rates, seconds.
    """

    def __init__(self, fleet: Fleet | None, limits: Limits, lifetime: float = 0.0, clock: Callable[[], float] = time.monotonic) -> None:
        self.fleet, self._limits, self._lifetime, self._clock = fleet, limits, lifetime, clock
        self.refusals = Refusals()
        self._seen: dict[str, float] = {}
        self._uses: dict[str, _Use] = {}

    def caller(self, context: Any, request: type) -> Caller:
        """Who calls. Refusal where they may not make that call."""
        if self.fleet is None:
            return Caller("")
        certificates = context.auth_context().get("x509_pem_cert", ())
        try:
            peer = authority.read_peer(certificates[0], self.fleet.authority.certificate)
            token = self.fleet.token_name(peer) if request is EnrolRequest else ""
            name = token or self.fleet.admit(peer)
        except (IndexError, ValueError):
            why = "a device needs a certificate of this fleet; join with a token"
            raise Refusal(grpc.StatusCode.UNAUTHENTICATED, why, "not-admitted") from None
        except NotAdmitted as error:
            raise Refusal(grpc.StatusCode.UNAUTHENTICATED, str(error), "not-admitted") from None
        self._seen[name] = time.time()
        return Caller(name, peer)

    def begin(self, caller: Caller, request: type, size: int) -> None:
        """A call with a request of `size` bytes, until its `end`. Refusal where it is too large, or one too many: then there is none."""
        most = LARGEST.get(request, LARGEST_OTHER)
        if size > most:
            raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, f"a {request.__name__} has at most {most} bytes, not {size}", "size")
        if caller.peer is None:
            return
        limits, now = self._limits, self._clock()
        use = self._uses.setdefault(caller.name, _Use(limits.burst, now))
        use.left, use.at = min(limits.burst, use.left + (now - use.at) * limits.rate), now
        weight = 1 + size / UNIT
        if use.left < weight:
            raise Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, f"more than {limits.rate:.0f} calls a second; ask again later", "rate")
        if use.calls >= limits.at_once:
            raise Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, f"more than {limits.at_once} calls at once; end one first", "at-once")
        use.left -= weight
        use.calls += 1

    def calls_of(self, name: str) -> int:
        """Those of a caller that have begun and not ended."""
        return self._uses[name].calls if name in self._uses else 0

    def end(self, caller: Caller) -> None:
        """Of a call that began. Its reply is memory until it has gone out: who reads none has no more calls before long."""
        if caller.peer is not None:
            self._uses[caller.name].calls -= 1

    def enrol(self, caller: Caller, request: EnrolRequest) -> EnrolReply:
        """A certificate for the caller's key. Refusal where it may have none."""
        if self.fleet is None or caller.peer is None:
            raise Refusal(grpc.StatusCode.FAILED_PRECONDITION, "this coordinator speaks plaintext, and knows no certificates")
        try:
            made, until = self.fleet.enrol(caller.peer, request.x, request.y, self._lifetime)
            return EnrolReply(made, int(until))
        except NotAdmitted as error:
            raise Refusal(grpc.StatusCode.UNAUTHENTICATED, str(error), "not-admitted") from None
        except ValueError:
            raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, "the numbers of the key are of no point on P-256", "garbage") from None

    def reminded(self, caller: Caller, reply: Any) -> Any:
        """The reply, with word for a device whose certificate runs out before long."""
        due = caller.peer and isinstance(reply, WorkReply) and caller.peer.expires - time.time() < RENEWED * self._lifetime
        return replace(reply, renew=True) if due else reply

    def flush(self) -> list[str]:
        """Keep what was counted in the fleet's list; a line for each caller who was refused anything since the last call."""
        found, seen = self.refusals.take(), self._seen
        self._seen = {}
        if self.fleet and (found or seen):
            self.fleet.note(seen, {caller: counts.total() for caller, counts in found.items()})
        return [f"{caller}: " + ", ".join(f"{name} {count}" for name, count in sorted(counts.items())) for caller, counts in found.items()]
