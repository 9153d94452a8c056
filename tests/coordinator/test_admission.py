"""Nobody gets beyond the handshake, or enrolment, without a certificate that the fleet has issued and not revoked."""

import contextlib
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from fleets import Serving, forged, joined, linked, serving, status_of
from local_coordinator import settings

from coordinator import authority
from coordinator.admission import LARGEST, LARGEST_OTHER, UNIT, Admission, Caller, Refusal
from coordinator.authority import Pair, Peer
from coordinator.config import Limits
from coordinator.fleet import Fleet, NotAdmitted
from coordinator.planner import MOST_SCALARS
from edge_agent import join
from edge_agent.identity import Identity, NewKey, pem
from edge_agent.link import Rejoin, Unreachable
from zo import wire
from zo.bundle import Bundle
from zo.errors import ConfigError, RunRefused
from zo.messages import PROTOCOL, EnrolRequest, JoinRequest, Report, WorkRequest

OTHERS = [method.name for method in wire.METHODS if method.name != "Enrol"]


@pytest.fixture(scope="module")
def served(bert_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    with serving(tmp_path_factory.mktemp("fleet"), bert_bundle) as made:
        yield made


@pytest.fixture(scope="module")
def device(served: Serving, tmp_path_factory: pytest.TempPathFactory) -> Identity:
    return joined(served[0], tmp_path_factory.mktemp("device"))


def guest(fleet: Fleet, **token: int) -> Identity:
    """Who holds a fresh token."""
    made = fleet.create_token(token.get("uses", 1), token.get("seconds", 60))
    return join.guest(made, fleet.address, fleet.authority.certificate.decode())


def issued(by: Pair, name: str, seconds: float = 1e6) -> tuple[str, str]:
    """A certificate of a device and its key, signed by any authority."""
    key = NewKey()
    request = key.request
    made = authority.device_certificate(by, name, request.x, request.y, time.time() + seconds)
    return pem(made), join.private_pem(key._key).decode()


# --- the door ---


@pytest.mark.parametrize("method", [method.name for method in wire.METHODS])
def test_without_a_certificate_no_call_gets_through(served: Serving, device: Identity, method: str) -> None:
    assert status_of(device, method, anonymous=True)[0] is grpc.StatusCode.UNAVAILABLE  # the handshake fails


@pytest.mark.parametrize("method", OTHERS)
def test_a_token_opens_enrolment_and_nothing_else(served: Serving, method: str) -> None:
    code, text = status_of(guest(served[0]), method)
    assert (code, text) == (grpc.StatusCode.UNAUTHENTICATED, "this certificate is no device's of this fleet; join with a token")


@pytest.mark.parametrize("method", [method.name for method in wire.METHODS])
def test_a_certificate_of_another_fleet_is_not_accepted(served: Serving, device: Identity, method: str) -> None:
    certificate, key = issued(authority.new_authority(), served[0].devices()[0].id)
    assert status_of(forged(device, certificate=certificate, key=key), method)[0] is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("method", OTHERS)
def test_a_certificate_that_a_token_has_signed_is_no_devices(served: Serving, device: Identity, method: str) -> None:
    fleet = served[0]
    token = fleet.create_token(1, 60)
    root = authority.token_root(token)[1]
    certificate, key = issued(Pair(root, join.private_pem(token.key())), fleet.devices()[0].id)
    code, _ = status_of(forged(device, certificate=certificate, key=key), method)
    assert code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.UNAVAILABLE)
    with pytest.raises(Refusal, match="no device's of this fleet"):
        Admission(fleet, Limits()).caller(Context(certificate.encode()), WorkRequest)


def test_the_certificate_of_a_device_that_the_list_does_not_hold_is_not_accepted(served: Serving, device: Identity) -> None:
    certificate, key = issued(served[0].authority, "0123456789abcdef")
    code, text = status_of(forged(device, certificate=certificate, key=key), "Join")
    assert code is grpc.StatusCode.UNAUTHENTICATED
    assert "device 0123456789abcdef is not in the list" in text


def test_the_coordinators_own_certificate_is_no_devices(served: Serving, device: Identity) -> None:
    server = served[0].server
    mine = forged(device, certificate=server.certificate.decode(), key=server.key.decode())
    assert status_of(mine, "Join")[0] in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.UNAVAILABLE)
    assert authority.read_peer(server.certificate, served[0].authority.certificate).device == ""


def test_a_certificate_that_has_run_out_is_not_accepted(served: Serving, device: Identity) -> None:
    fleet = served[0]
    certificate, key = issued(fleet.authority, fleet.devices()[0].id, -10)
    assert status_of(forged(device, certificate=certificate, key=key), "Join")[0] is grpc.StatusCode.UNAVAILABLE
    with pytest.raises(NotAdmitted, match="has run out"):
        fleet.admit(authority.read_peer(certificate.encode(), fleet.authority.certificate))


class Context:
    """What TLS tells of a caller."""

    def __init__(self, *certificates: bytes) -> None:
        self.certificates = certificates

    def auth_context(self) -> dict[str, tuple[bytes, ...]]:
        return {"x509_pem_cert": self.certificates} if self.certificates else {}


@pytest.mark.parametrize("certificates", [(), (b"",), (b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",)])
def test_even_if_the_handshake_let_anybody_in_they_would_be_turned_away(served: Serving, certificates: tuple[bytes, ...]) -> None:
    for method in wire.METHODS:
        with pytest.raises(Refusal, match="needs a certificate"):
            Admission(served[0], Limits()).caller(Context(*certificates), method.request)


# --- identity is the certificate ---


def test_what_a_message_says_of_the_device_does_not_count(served: Serving, device: Identity, tmp_path: Path) -> None:
    fleet, coordinator = served
    other = joined(fleet, tmp_path)
    with linked(device) as mine, linked(other) as theirs:
        number = mine.ask(JoinRequest(PROTOCOL, 5)).device
        assert mine.ask(JoinRequest(PROTOCOL, 6)).device == number
        assert theirs.ask(JoinRequest(PROTOCOL, 5)).device != number
        with pytest.raises(Rejoin, match="has another certificate"):
            theirs.ask(coordinator.answer(number))
        with pytest.raises(Rejoin, match="has another certificate"):
            theirs.ask(WorkRequest(1, number, 0, 0, "fp32"))
    assert coordinator.call(lambda s: s.admission.refusals.totals["other-device"]) == 2


def test_a_revoked_device_is_turned_away_on_the_connection_that_it_has(served: Serving, tmp_path: Path) -> None:
    fleet, coordinator = served
    mine = joined(fleet, tmp_path)
    with linked(mine) as link:
        number = link.ask(JoinRequest(PROTOCOL, 0)).device
        fleet.revoke(fleet.devices()[-1].id)
        for request in (JoinRequest(PROTOCOL, 0), WorkRequest(1, number, 0, 0, "fp32"), coordinator.answer(number), NewKey().request):
            with pytest.raises(RunRefused, match="was revoked"):
                link.ask(request)


def test_a_device_revoked_while_it_waits_gets_no_work(bert_bundle: Bundle, tmp_path: Path) -> None:
    with serving(tmp_path, bert_bundle) as (fleet, coordinator):
        mine = joined(fleet, tmp_path / "a")
        with linked(mine) as link:
            number = link.ask(JoinRequest(PROTOCOL, 0)).device
            assert link.ask(coordinator.answer(number)).verdict.name == "ACCEPTED"
            chain = coordinator.call(lambda s: s.rounds.ledger.replica.head)
            failures: list[str] = []

            def wait() -> None:
                try:
                    link.ask(WorkRequest(1, number, 0, int.from_bytes(chain[:8], "little"), "fp32"))
                except RunRefused as error:
                    failures.append(str(error))

            waiting = threading.Thread(target=wait)
            waiting.start()
            until = time.monotonic() + 10
            while not coordinator.call(lambda s: len(s.changed._lock._waiters or ()) or s.changed._waiters) and time.monotonic() < until:
                time.sleep(0.02)
            fleet.revoke(fleet.devices()[0].id)

            async def wake(service: object) -> None:
                await service._tell()  # type: ignore[attr-defined]

            coordinator.call(wake)
            waiting.join(30)
            assert len(failures) == 1
            assert "was revoked" in failures[0]


# --- tokens ---


def test_a_token_works_as_often_as_it_says(served: Serving, tmp_path: Path) -> None:
    fleet, before = served[0], len(served[0].devices())
    token = fleet.create_token(2, 60)
    for name in ("a", "b"):
        joined(fleet, tmp_path / name, token)
    with pytest.raises(RunRefused, match="has been used up"):
        joined(fleet, tmp_path / "c", token)
    assert len(fleet.devices()) == before + 2
    assert not (tmp_path / "c/identity.json").exists()


def test_a_token_ends_with_its_time_or_when_it_is_revoked(served: Serving, tmp_path: Path) -> None:
    fleet = served[0]
    short = fleet.create_token(1, 0.001)
    time.sleep(0.01)
    with pytest.raises(RunRefused, match="has run out"):
        joined(fleet, tmp_path, short)
    revoked = fleet.create_token(1, 60)
    assert revoked.name in [name for name, _, _ in fleet.tokens()]
    fleet.revoke_token(revoked.name)
    assert revoked.name not in [name for name, _, _ in fleet.tokens()]
    with pytest.raises(RunRefused, match="was revoked"):
        joined(fleet, tmp_path, revoked)
    with pytest.raises(ConfigError, match="there is no token"):
        fleet.revoke_token("nothing")


def test_a_lost_answer_costs_no_second_use(served: Serving) -> None:
    fleet = served[0]
    mine, request = guest(fleet), NewKey().request
    with linked(mine) as link:
        first, second = (link.ask(request) for _ in range(2))
        with pytest.raises(RunRefused, match="used up"):
            link.ask(NewKey().request)
    names = {authority.read_peer(pem(each.certificate).encode(), fleet.authority.certificate).device for each in (first, second)}
    assert len(names) == 1
    assert "" not in names


def test_a_key_that_is_no_point_is_refused_and_costs_nothing(served: Serving) -> None:
    fleet = served[0]
    mine = guest(fleet)
    with linked(mine) as link:
        with pytest.raises(RunRefused, match="no point on P-256"):
            link.ask(EnrolRequest(b"\x01" * 32, b"\x02" * 32))
        link.ask(NewKey().request)


def test_a_fleet_keeps_its_secrets_to_itself(served: Serving) -> None:
    folder = served[0].folder
    assert {stat.S_IMODE((folder / name).stat().st_mode) for name in ("authority.key", "server.key")} == {0o600}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    with pytest.raises(ConfigError, match="holds a fleet already"):
        Fleet.make(folder, "a:1")


@pytest.mark.parametrize("address", ["", "host", "host:", "http://host:1", "host:99999", "a b:1"])
def test_an_address_that_nobody_can_dial_is_refused_when_the_fleet_is_made(address: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no address that devices can dial"):
        Fleet.make(tmp_path / "fleet", address)
    assert not (tmp_path / "fleet").exists()


# --- limits ---


class Clock:
    """Seconds, moved by hand."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_device_that_calls_too_often_is_refused_until_time_has_passed_and_no_other_is(served: Serving) -> None:
    clock, limits = Clock(), Limits(rate=10.0, burst=100.0, at_once=2)
    admission = Admission(served[0], limits, clock=clock)
    mine, other = (Caller(name, Peer(b"", name, 0.0)) for name in ("a", "b"))

    def taken(caller: Caller, size: int = 0) -> int:
        count = 0
        with contextlib.suppress(Refusal):
            while count < 1000:
                admission.begin(caller, Report, size)
                admission.end(caller)
                count += 1
        return count

    assert taken(mine) == 100
    assert taken(other) == 100
    clock.now = 1.0
    assert taken(mine) == 10
    clock.now = 1e6
    assert taken(mine, LARGEST[Report]) == 1  # of 62
    clock.now = 2e6
    for caller in (mine, mine, other):
        admission.begin(caller, Report, 0)
    with pytest.raises(Refusal, match="at once"):
        admission.begin(mine, Report, 0)
    admission.end(mine)
    admission.begin(mine, Report, 0)
    assert (admission.calls_of("a"), admission.calls_of("b"), admission.calls_of("c")) == (2, 1, 0)


@pytest.mark.parametrize("method", wire.METHODS, ids=lambda method: method.name)
def test_a_request_that_is_too_large_is_refused_unread(served: Serving, device: Identity, method: wire.Method) -> None:
    most = LARGEST.get(method.request, LARGEST_OTHER)
    code, text = status_of(device, method.name, bytes(most + 1))
    assert (code, text) == (grpc.StatusCode.INVALID_ARGUMENT, f"a {method.request.__name__} has at most {most} bytes, not {most + 1}")


def test_a_report_of_as_many_scalars_as_a_round_may_hold_fits_and_is_within_the_burst() -> None:
    assert LARGEST[Report] >= 3 * MOST_SCALARS  # 8-bit scalars and the usual 15-bit ones take up to 3 bytes each
    assert 1 + LARGEST[Report] / UNIT <= 100  # the least burst that can be set


def test_what_is_refused_is_counted_and_kept_with_the_device(served: Serving, tmp_path: Path) -> None:
    fleet, coordinator = served
    mine = joined(fleet, tmp_path)
    name = fleet.devices()[-1].id
    coordinator.call(lambda s: s.flush())
    assert fleet.devices()[-1].seen is None  # a token enrolled it
    for _ in range(5):
        assert status_of(mine, "SendReport", b"\xff\xff")[0] is grpc.StatusCode.INVALID_ARGUMENT
    events = coordinator.call(lambda s: [text for _, kind, text in s.rounds.store.events(1) if kind == "garbage"])
    assert [text.split(":")[0] for text in events].count(name) == 1
    coordinator.call(lambda s: s.flush())
    row = next(each for each in fleet.devices() if each.id == name)
    assert row.refused == 5
    assert row.seen is not None
    assert abs(row.seen - time.time()) < 60


def test_settings_of_a_run_know_the_limits(bert_bundle: Bundle) -> None:
    assert settings(bert_bundle).limits == Limits()
    with pytest.raises(ValueError, match="rate must be positive"):
        Limits(rate=0)


def test_where_nobody_answers_the_link_says_at_which_step(served: Serving, device: Identity) -> None:
    from edge_agent.link import Link

    link = Link("127.0.0.1:1", threading.Event(), identity=device)
    with pytest.raises(Unreachable) as caught:
        link.ask(JoinRequest(PROTOCOL, 0))
    assert link.why(caught.value).startswith("no connection to 127.0.0.1:1: Connection refused; check that the coordinator runs")
    link.close()
