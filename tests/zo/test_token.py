"""A token survives being copied; anything less is refused in one line."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from zo import token
from zo.errors import ConfigError
from zo.token import Token, is_address

TOKEN = Token("fleet.example.org:443", bytes(range(32)), bytes(range(16)))
hosts = st.sampled_from(["10.0.0.7", "[::1]", "a", "fleet.example.org", "x" * 253])
tokens = st.builds(
    lambda host, port, pin, secret: Token(f"{host}:{port}", pin, secret),
    hosts,
    st.integers(1, 65535),
    st.binary(min_size=32, max_size=32),
    st.binary(min_size=16, max_size=16),
)


@given(tokens)
def test_a_token_comes_back_as_it_was(made: Token) -> None:
    assert token.read(f" {made.text}\n") == made
    assert made.text.isascii()
    assert not any(c.isspace() for c in made.text)


@given(st.text(max_size=200) | st.binary(max_size=200).map(lambda data: token.PREFIX + data.hex()))
@example(token.PREFIX)
@example(token.PREFIX + "=")
@example(token.PREFIX + "ä")
def test_any_other_text_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        token.read(text)
    assert "\n" not in str(caught.value)


@given(st.integers(0, len(TOKEN.text) - 1), st.sampled_from("aZ0-_."))
def test_a_changed_letter_is_noticed(place: int, letter: str) -> None:
    changed = TOKEN.text[:place] + letter + TOKEN.text[place + 1 :]
    if changed != TOKEN.text:
        try:
            assert token.read(changed) == TOKEN  # base64 has bits to spare in its last letter
        except ConfigError:
            return
        assert place == len(TOKEN.text) - 1


@given(st.integers(0, len(TOKEN.text) - 1))
def test_a_token_that_is_cut_short_is_refused(length: int) -> None:
    with pytest.raises(ConfigError):
        token.read(TOKEN.text[:length])


def test_the_key_is_always_the_same_and_differs_with_the_secret() -> None:
    numbers = [Token("a:1", bytes(32), bytes([n]) * 16).key().private_numbers().private_value for n in (1, 2, 1)]
    assert numbers[0] == numbers[2] != numbers[1]
    assert len({TOKEN.name, Token("a:1", bytes(32), bytes(16)).name}) == 2


@pytest.mark.parametrize("text", ["", ":1", "a", "a:", "a:0", "a:65536", "a:x", "a b:1", "::1:1", "[a]:1", "ä:1", "a:１", "a\n:1", "a:1 "])
def test_what_is_no_address(text: str) -> None:
    assert not is_address(text)
