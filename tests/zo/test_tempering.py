"""A device that reports far too much counts as a few; those that differ as devices do are left alone."""

import dataclasses
import math

import numpy as np
import pytest
from small_rounds import GIVEN, nodes, report, two_groups

from zo.bundle import Bundle
from zo.manifest import Manifest
from zo.plan import Shape
from zo.planning import tree
from zo.rates import Rates
from zo.recipe import Probe, Rate
from zo.tempering import TEMPER, tempered


@pytest.fixture
def manifest(bert_bundle: Bundle) -> Manifest:
    return two_groups(bert_bundle)


def test_a_device_that_reports_a_hundred_times_too_much_counts_as_four(manifest: Manifest) -> None:
    usual = [report(device, scalars=(300 + device, -400)) for device in range(4)]
    wild = report(4, scalars=(20_000, -32_000))
    made, too_large = tempered([*usual, wild], nodes(manifest, [2] * 5), GIVEN, manifest)
    assert too_large == [4]
    assert [each.scalars.tolist() for each in made[:4]] == [each.scalars.tolist() for each in usual]
    root_mean_square = np.sqrt(np.mean(made[4].scalars ** 2.0))
    assert root_mean_square == pytest.approx(TEMPER * np.median([np.sqrt(np.mean(each.scalars**2.0)) for each in [*usual, wild]]), rel=1e-3)
    assert made[4].scalars[0] / made[4].scalars[1] == pytest.approx(-20 / 32, rel=0.01)


def test_devices_that_differ_as_devices_do_are_left_alone_and_so_are_two(manifest: Manifest) -> None:
    for values in ((100, 200, 390), (100, 30_000), (0, 0, 500)):
        reports = [report(device, scalars=(value, -value)) for device, value in enumerate(values)]
        assert tempered(reports, nodes(manifest, [2] * len(values)), GIVEN, manifest) == (reports, [])


def test_devices_of_other_groups_and_probe_sizes_are_judged_by_what_is_to_be_expected_of_them(bert_bundle: Bundle) -> None:
    manifest = bert_bundle.manifest
    given = Rates.of(Probe(), Rate(), manifest)
    body = [group.id for group in manifest.groups if group.kind == "body"]
    shapes = [Shape((2,), groups=groups) for groups in ((body[0],), (body[1],), (body[2],), tuple(body), tuple(body))]
    plans = [tree(manifest, given.log2_eps | {"body": given.log2_eps["body"] - place}, shape) for place, shape in enumerate(shapes)]
    few = math.ceil(math.log2(math.sqrt(3)))  # probes of one block are larger
    usual = [1000 * math.sqrt(len(shape.groups)) / 2**place * 2 ** (few * (len(shape.groups) == 1)) for place, shape in enumerate(shapes)]
    reports = [report(device, scalars=(round(value), -round(value))) for device, value in enumerate(usual)]
    assert tempered(reports, plans, given, manifest)[1] == []
    for liar in range(5):
        reports[liar] = dataclasses.replace(reports[liar], scalars=10 * reports[liar].scalars)
        made, too_large = tempered(reports, plans, given, manifest)
        assert too_large == [liar]
        assert abs(made[liar].scalars[0]) == pytest.approx(TEMPER * usual[liar], rel=0.05)
        reports[liar] = report(liar, scalars=(round(usual[liar]), -round(usual[liar])))
