"""One product, several ways to it: all of float32's class, all true to a NaN, the fastest chosen by measuring."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.reading.calibration import BUCKETS, Shape, chunk_rows, fault_of, narrow
from sidecar.reading.kernels import Kernels
from sidecar.reading.products import BOUND, NumpyFloat32, Product, available, to_float32
from sidecar.types import ElementType, TapPoint
from tests.reading.plans import model_of, plan_of, tap_plan

PRODUCTS, MISSING = available()
ALL = [(name, dtype) for name, product in PRODUCTS.items() for dtype in ElementType if product.takes(dtype)]
WHERE = TapPoint(1)


def readings_of(product: Product, values: np.ndarray, dtype: ElementType, directions: np.ndarray) -> np.ndarray:
    out = np.full((len(values), directions.shape[1]), 7.0, np.float32)
    with np.errstate(invalid="ignore", over="ignore"):
        product.multiply(values, dtype, product.prepare(directions), out)
    return out


def test_every_product_can_run_here():
    assert set(PRODUCTS) == {"numpy_f32", "torch_f32", "torch_bf16x2"}
    assert MISSING == {}


def test_without_torch_only_numpy_multiplies_and_it_is_said():
    hidden = (
        "import sys; sys.modules['torch'] = None\n"
        "from sidecar.reading.products import available\n"
        "found, missing = available(); print(sorted(found), sorted(missing.items()))"
    )
    done = subprocess.run([sys.executable, "-c", hidden], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == (
        "['numpy_f32'] [('torch_bf16x2', 'torch is not installed'), ('torch_f32', 'torch is not installed')]"
    )


@pytest.mark.parametrize("dtype", list(ElementType))
def test_widening_is_exact_for_every_finite_value(dtype):
    bits = np.arange(1 << 16, dtype=np.uint16)
    values = bits if dtype is ElementType.BF16 else bits.view("<f2").astype(dtype.storage)
    wide = to_float32(values, dtype)
    finite = np.isfinite(wide)
    np.testing.assert_array_equal(narrow(wide[finite], dtype), values[finite])


@pytest.mark.parametrize(("name", "dtype"), ALL)
@given(
    rows=st.integers(1, 40),
    width=st.integers(1, 300),
    columns=st.integers(1, 20),
    seed=st.integers(0, 2**32 - 1),
    large=st.floats(0, 3),
)
@settings(max_examples=60, deadline=None)
def test_every_reading_is_within_the_bound_and_so_is_every_verdict(name, dtype, rows, width, columns, seed, large):
    """Verdicts differ from those of a float64 reference only where the reference is within the bound of the threshold."""
    rng = np.random.default_rng(seed)
    states = rng.normal(size=(rows, width)).astype(np.float32)
    states[:, rng.integers(width)] *= 10**large  # a massive activation
    directions = (rng.normal(size=(width, columns)) * 10 ** rng.uniform(-3, 3, columns)).astype(np.float32)
    directions[rng.random((width, columns)) < 0.2] = 0.0
    values = narrow(states, dtype)
    exact = to_float32(values, dtype).astype(np.float64) @ directions.astype(np.float64)
    norms = np.linalg.norm(to_float32(values, dtype).astype(np.float64), axis=1)[:, None] * np.linalg.norm(
        directions.astype(np.float64), axis=0
    )
    got = readings_of(PRODUCTS[name], values, dtype, directions)
    bound = BOUND * norms
    assert (np.abs(got - exact) <= bound).all()
    threshold = rng.choice(exact.reshape(-1)) + rng.normal() * 1e-6
    differ = (got > threshold) != (exact > threshold)
    assert (np.abs(exact - threshold)[differ] <= bound[differ]).all()


@pytest.mark.parametrize(("name", "dtype"), ALL)
@pytest.mark.parametrize("rows", [1, 2, 8, 64])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_value_that_is_no_number_spoils_every_reading_of_its_row_and_no_other(name, dtype, rows, bad):
    """Directions hold zeros there: a library that skips them would let the value through unseen."""
    rng = np.random.default_rng(rows)
    for width, columns in ((1, 1), (7, 1), (64, 5), (577, 33)):
        directions = rng.normal(size=(width, columns)).astype(np.float32)
        directions[rng.random((width, columns)) < 0.5] = 0.0
        directions[:, 0] = 0.0
        for row, at in ((0, 0), (rows - 1, width - 1), (rows // 2, width // 2)):
            states = rng.normal(size=(rows, width)).astype(np.float32)
            values = narrow(states, dtype)
            values[row, at] = narrow(np.array([bad], np.float32), dtype)[0]
            finite = np.isfinite(readings_of(PRODUCTS[name], values, dtype, directions))
            assert not finite[row].any()
            assert finite[np.arange(rows) != row].all()


@pytest.mark.parametrize(("name", "dtype"), ALL)
def test_rows_that_cannot_be_written_to_are_read_without_a_copy_or_a_warning(name, dtype):
    values = narrow(np.ones((4, 16), np.float32), dtype)
    values.flags.writeable = False
    got = readings_of(PRODUCTS[name], values, dtype, np.ones((16, 2), np.float32))
    np.testing.assert_array_equal(got, np.full((4, 2), 16.0, np.float32))


@pytest.mark.parametrize("name", list(PRODUCTS))
def test_directions_that_lie_at_an_odd_address_are_moved_once_and_not_in_every_step(name):
    memory = bytearray(1 + 16 * 3 * 4)
    directions = np.frombuffer(memory, np.float32, 48, offset=1).reshape(16, 3)
    directions[:] = np.arange(48).reshape(16, 3)
    assert not directions.flags.aligned
    prepared = PRODUCTS[name].prepare(directions)
    address = prepared.ctypes.data if isinstance(prepared, np.ndarray) else prepared.data_ptr()
    assert address % 4 == 0
    got = readings_of(PRODUCTS[name], np.full((1, 16), 0x3F80, np.uint16), ElementType.BF16, directions)
    np.testing.assert_array_equal(got[0], directions.sum(axis=0))


class Rounded(NumpyFloat32):
    """What bfloat16 directions would be: fast where the units are, and not of float32's class."""

    def prepare(self, directions):
        return to_float32(narrow(directions, ElementType.BF16), ElementType.BF16)


class Deaf(NumpyFloat32):
    """A library that skips the zeros of a direction."""

    def multiply(self, values, dtype, prepared, out):
        rows = to_float32(values, dtype)
        out[:] = np.nan_to_num(rows, nan=0.0) @ prepared


@pytest.mark.parametrize(("product", "fault"), [(Rounded(), "its error is"), (Deaf(), "it loses a NaN")])
def test_a_product_that_does_not_keep_its_promise_is_found_out(product, fault):
    for width in (64, 576, 4096):
        assert fault_of(product, Shape(width, 8, ElementType.BF16)).startswith(fault)


def test_no_product_that_is_used_has_a_fault():
    for name, dtype in ALL:
        for width in (64, 576, 4096):
            assert fault_of(PRODUCTS[name], Shape(width, 8, dtype)) == "", name


@pytest.fixture
def faulty(monkeypatch) -> Iterator[None]:
    import sidecar.reading.kernels as module

    monkeypatch.setattr(module, "available", lambda: ({"torch_f32": Rounded(), "numpy_f32": NumpyFloat32()}, {}))
    return


def made(width: int, dtype: ElementType, *columns: int):
    rng = np.random.default_rng(0)
    taps = [tap_plan(TapPoint(i), rng.normal(size=(width, K)).astype(np.float32)) for i, K in enumerate(columns)]
    return plan_of(taps, model_of(width, dtype))


@pytest.mark.usefixtures("faulty")
def test_a_faulty_product_is_never_chosen_and_the_reason_is_told():
    kernels, plan = Kernels(), made(64, ElementType.BF16, 5)
    kernels.bind(plan)
    assert {choice.kernel for choice in kernels.choices()} == {"numpy_f32"}
    assert kernels.refused["torch_f32"].startswith("its error is")


def test_every_tap_point_has_a_choice_for_every_size_of_step():
    kernels, plan = Kernels(budget_s=10.0), made(576, ElementType.BF16, 5, 6, 64)  # ample, on a busy machine too
    kernels.bind(plan)
    assert [(one.tap_point.layer, one.rows) for one in kernels.choices()] == [
        (layer, rows) for layer in range(3) for rows in BUCKETS
    ]
    assert all(one.kernel in PRODUCTS and one.seconds > 0 for one in kernels.choices())


def test_a_reload_of_known_shapes_measures_nothing(monkeypatch):
    import sidecar.reading.kernels as module

    kernels = Kernels(budget_s=10.0)
    kernels.bind(made(64, ElementType.F32, 16))
    monkeypatch.setattr(module, "measure", None)  # would fail if it were called
    again = made(64, ElementType.F32, 17, 15)  # a probe more or less is the same shape
    kernels.bind(again)
    assert all(one.seconds > 0 for one in kernels.choices())
    values = np.ones((3, 64), np.float32)
    for tap in again.taps.values():
        np.testing.assert_allclose(
            kernels.project(tap, values, ElementType.F32), values @ tap.directions, rtol=0, atol=1e-4
        )


def test_without_time_to_measure_every_step_is_still_multiplied():
    kernels, plan = Kernels(budget_s=0.0), made(64, ElementType.BF16, 4)
    kernels.bind(plan)
    assert {(one.kernel, one.seconds) for one in kernels.choices()} == {("torch_f32", 0.0)}
    got = kernels.project(plan.taps[TapPoint(0)], np.full((2, 64), 0x3F80, np.uint16), ElementType.BF16)
    np.testing.assert_allclose(got[0], plan.taps[TapPoint(0)].directions.sum(axis=0), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", list(PRODUCTS))
@pytest.mark.parametrize("rows", [0, 1, 7, 8, 63, 64, 65, 513, 1030])
def test_a_step_of_any_size_has_its_offsets_and_leaves_nothing_of_the_last_one(name, rows):
    width = 1000  # parts of 262 rows
    assert chunk_rows(width) == 262
    rng = np.random.default_rng(1)
    directions = rng.normal(size=(width, 9)).astype(np.float32)
    tap = tap_plan(WHERE, directions, offsets=np.arange(9, dtype=np.float32))
    kernels = Kernels(0.05, products=[name])
    kernels.bind(plan_of([tap], model_of(width, ElementType.BF16)))
    values = narrow(rng.normal(size=(rows, width)).astype(np.float32), ElementType.BF16)
    kernels.project(tap, narrow(np.full((70, width), 1e3, np.float32), ElementType.BF16), ElementType.BF16)
    got = kernels.project(tap, values, ElementType.BF16)
    want = to_float32(values, ElementType.BF16).astype(np.float64) @ directions + np.arange(9)
    assert got.shape == (rows, 9)
    np.testing.assert_allclose(
        got, want, rtol=0, atol=BOUND * math.sqrt(width) * np.linalg.norm(directions, axis=0).max()
    )


@pytest.mark.parametrize("dtype", list(ElementType))
def test_rows_of_another_type_than_the_models_are_multiplied_too(dtype):
    for served in ElementType:
        kernels, plan = Kernels(0.05), made(32, served, 4)
        kernels.bind(plan)
        (tap,) = plan.taps.values()
        got = kernels.project(tap, narrow(np.ones((5, 32), np.float32), dtype), dtype)
        np.testing.assert_allclose(got, np.tile(tap.directions.sum(axis=0), (5, 1)), rtol=0, atol=1e-4)


def test_after_warm_up_a_product_allocates_no_memory_for_rows():
    import tracemalloc

    width, plan = 4096, made(4096, ElementType.BF16, 8)
    (tap,) = plan.taps.values()
    kernels = Kernels(0.05, products=["numpy_f32"])
    kernels.bind(plan)
    values = narrow(np.ones((64, width), np.float32), ElementType.BF16)
    kernels.project(tap, values, ElementType.BF16)
    tracemalloc.start()
    kernels.project(tap, values, ElementType.BF16)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 64 << 10  # numpy's own casting buffer; the rows in float32 would be 1 MiB


def test_rows_of_a_plan_that_is_not_bound_are_a_bug_that_is_told():
    kernels, plan, other = Kernels(0.05), made(16, ElementType.F32, 3), made(16, ElementType.F32, 3)
    kernels.bind(plan)
    with pytest.raises(LookupError):
        kernels.project(other.taps[TapPoint(0)], np.ones((1, 16), np.float32), ElementType.F32)
