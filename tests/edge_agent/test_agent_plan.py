"""`edge-agent plan`: the table that a run would choose from, on this device."""

import json

import pytest

from edge_agent import cli
from zo.bundle import Bundle


@pytest.mark.parametrize("clean", [False, True])
def test_the_table_shows_the_clean_form_where_it_is_asked_for(clean: bool, bert_bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["plan", "--bundle", str(bert_bundle.folder), "--directions", "4", "--json", *["--clean"] * clean]
    assert cli.main(asked) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["shape"]["clean"] for row in found["table"]].count(True) == 2 * clean
    assert found["table"][0]["shape"]["counts"] == [4]
    assert ("clean" in found["told"]) == clean
