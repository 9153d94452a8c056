"""Contact with a coordinator: asked until it answers, given up or stopped; its bytes are counted, and who has not joined makes none."""

import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from local_coordinator import LocalCoordinator

from coordinator import authority
from edge_agent import join
from edge_agent.config import AgentConfig
from edge_agent.contact import Contact
from edge_agent.flash import DailyBudget
from edge_agent.guest import Guest
from edge_agent.state import State
from edge_agent.status import Status
from edge_agent.stopping import Stopped
from zo.address import free_port
from zo.bundle import Bundle
from zo.config import from_texts
from zo.errors import ConfigError, ConnectionFailed
from zo.messages import PROTOCOL, JoinRequest
from zo.token import Token

Make = Callable[..., Contact]


@pytest.fixture
def stop() -> threading.Event:
    return threading.Event()


@pytest.fixture
def facts() -> dict[str, Any]:
    """What the status tells."""
    return {}


@pytest.fixture
def make(tmp_path: Path, stop: threading.Event, facts: dict[str, Any]) -> Iterator[Make]:
    """make(address, **settings): plaintext where nothing else is set."""
    state = State(tmp_path / "state", 1e9)
    status, made = Status(state), list[Contact]()
    status.facts = facts
    facts["state"] = "joining"

    def contact(address: str, **changed: Any) -> Contact:
        config = AgentConfig("data", coordinator=address, state=str(state.folder), **{"insecure_loopback": True} | changed)
        made.append(Contact(config, stop, state, status, Guest(stop), DailyBudget(0.0)))
        return made[-1]

    yield contact
    for each in made:
        each.close()
    state.close()


def test_the_reply_comes_and_its_bytes_are_told(bert_bundle: Bundle, make: Make, facts: dict[str, Any], tmp_path: Path) -> None:
    with LocalCoordinator(bert_bundle, tmp_path / "run.sqlite") as coordinator:
        assert make(coordinator.address).ask(JoinRequest(PROTOCOL, 77)).device == 0
    assert facts["traffic"]["spent"] > 300


def test_it_asks_until_somebody_is_there(bert_bundle: Bundle, make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    port, found = free_port(), list[int]()
    contact = make(f"127.0.0.1:{port}")
    asking = threading.Thread(target=lambda: found.append(contact.ask(JoinRequest(PROTOCOL, 77)).device))
    asking.start()
    while not caplog.records:
        asking.join(0.05)
    with LocalCoordinator(bert_bundle, tmp_path / "run.sqlite", port=port):
        asking.join(30)
    assert found == [0]
    assert len([each for each in caplog.messages if "does not answer" in each]) == 1  # however often it was tried


def test_patience_has_an_end_and_the_status_says_who_does_not_answer(make: Make, facts: dict[str, Any]) -> None:
    address = f"127.0.0.1:{free_port()}"
    with pytest.raises(ConnectionFailed, match=f"{address} did not answer for 0 s .*check the address with --coordinator"):
        make(address, patience=0.3).ask(JoinRequest(PROTOCOL, 77))
    assert (facts["state"], facts["reason"]) == ("unreachable", f"coordinator {address} does not answer")


@pytest.mark.parametrize("insecure", [True, False], ids=["plaintext", "TLS"])
def test_patience_ends_also_with_who_takes_the_connection_and_says_nothing(insecure: bool, make: Make, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        address = f"127.0.0.1:{mute.getsockname()[1]}"
        root = authority.new_authority().certificate.decode()
        join.guest(Token(address, bytes(32), bytes(16)), address, root).save(tmp_path / "state")
        began = time.monotonic()
        with pytest.raises(ConnectionFailed, match="did not answer for 1 s"):
            make(address, patience=1.0, insecure_loopback=insecure).ask(JoinRequest(PROTOCOL, 77))
        assert time.monotonic() - began < 8


@pytest.mark.parametrize("address", ["foo", "127.0.0.1:", "127.0.0.1:99999", "127.0.0.1:0", ":7600", "::1:7600", "http://a:1"])
def test_what_is_no_address_is_refused_before_anything_is_sent(address: str) -> None:
    with pytest.raises(ConfigError, match=r"coordinator = .* must be host:port or \[address\]:port, with a port from 1 to 65535"):
        from_texts(AgentConfig, {"data": "d", "coordinator": address})


@pytest.mark.parametrize("patience", ["-1", "NaN", "Infinity"])
def test_a_patience_that_is_none_is_refused(patience: str) -> None:
    with pytest.raises(ConfigError, match="patience"):
        from_texts(AgentConfig, {"data": "d", "patience": patience})


def test_a_stop_ends_the_trying(make: Make, stop: threading.Event) -> None:
    threading.Timer(0.3, stop.set).start()
    with pytest.raises(Stopped):
        make(f"127.0.0.1:{free_port()}").ask(JoinRequest(PROTOCOL, 77))


def test_a_device_that_has_not_joined_has_no_contact(make: Make) -> None:
    with pytest.raises(ConfigError, match="edge-agent join TOKEN"):
        make("127.0.0.1:7600", insecure_loopback=False)


def test_plaintext_has_no_certificate_to_renew(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    make("127.0.0.1:7600").renew()
    assert caplog.messages == []
