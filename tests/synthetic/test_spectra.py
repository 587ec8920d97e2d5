"""Spectra: values, order, bounds, refusals."""

from __future__ import annotations

import numpy as np
import pytest

from stablediag.errors import SpecError
from synthetic.spectra import Spectrum

ALL = [
    Spectrum("iso", lmin=0.5, lmax=2.0),
    Spectrum("geometric", lmin=0.01, lmax=3.0),
    Spectrum("power", lmin=0.1, exponent=0.7),
    Spectrum("spiked", spikes=2, spike=4.0),
]


@pytest.mark.parametrize("spectrum", ALL, ids=lambda s: s.kind)
@pytest.mark.parametrize("d", [3, 64, 513])
def test_descending_within_the_bounds(spectrum: Spectrum, d: int) -> None:
    values = spectrum.values(d)
    assert values.shape == (d,)
    assert values.dtype == np.float64
    assert np.all(np.diff(values) <= 0)
    assert values[0] == spectrum.lmax
    assert values.min() >= spectrum.lmin


def test_the_default_has_trace_20_5_at_64_coordinates() -> None:
    values = Spectrum().values(64)
    assert values.sum() == pytest.approx(20.5, abs=0.01)
    np.testing.assert_allclose(values[1:] / values[:-1], 0.05 ** (1 / 63), rtol=1e-12)


def test_power_law_is_cut_off_at_lmin() -> None:
    np.testing.assert_allclose(Spectrum("power", lmin=0.3, exponent=1.0).values(5), [1, 1 / 2, 1 / 3, 0.3, 0.3])


def test_spikes_stand_above_a_flat_bulk() -> None:
    spectrum = Spectrum("spiked", lmax=6.0, spikes=2, spike=3.0)
    np.testing.assert_array_equal(spectrum.values(5), [6, 6, 2, 2, 2])


def test_one_coordinate() -> None:
    assert [s.values(1).tolist() for s in ALL[:3]] == [[2.0], [3.0], [1.0]]


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"kind": "flat"}, "kind"),
        ({"lmin": 0.0}, "lmin"),
        ({"lmin": -1.0}, "lmin"),
        ({"lmin": 2.0, "lmax": 1.0}, "lmin: 2 > lmax 1"),
        ({"lmax": float("inf")}, "lmax"),
        ({"lmax": "1"}, "lmax"),
        ({"exponent": -0.5}, "exponent"),
        ({"spikes": 0}, "spikes"),
        ({"spike": 0.5}, "spike"),
        ({"kind": "spiked", "spike": 30.0}, "spike: the bulk"),
    ],
)
def test_refusals_name_the_argument(fields: dict[str, object], name: str) -> None:
    with pytest.raises(SpecError, match=name) as caught:
        Spectrum(**fields)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_sizes_that_no_spectrum_has() -> None:
    with pytest.raises(SpecError, match="d: must be an integer"):
        Spectrum().values(0)
    with pytest.raises(SpecError, match="spikes: 4 spikes leave no bulk"):
        Spectrum("spiked", spikes=4).values(4)
