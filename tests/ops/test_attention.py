"""The scan as its matrix: five identities, in float64, on any size, state and pattern."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from ganglion.ops import PATTERNS, Route, scan2d_reference, selective_scan_reference
from ganglion.ops.attention import Walk, to_image, walks
from tests.ops.test_scan2d import ROUTES, inputs

BOUND = 1e-10


def close(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= BOUND * expected.abs().max().clamp(min=1e-30)


def walked(pattern: str, height: int, width: int, state: int) -> tuple[list[Tensor], list[Walk]]:
    routes = ROUTES[pattern]
    shape = {"height": height, "width": width, "routes": len(routes), "state": state}
    tensors = [t.detach() for t in inputs(batch=1, dtype=torch.float64, **shape)]
    return tensors, walks(tensors[1][0], *tensors[2:5], routes)


@pytest.mark.parametrize("state", (1, 3))
@pytest.mark.parametrize("size", ((1, 1), (1, 6), (5, 3), (4, 7)))
@pytest.mark.parametrize("pattern", ROUTES)
def test_matrices_are_the_scan(pattern, size, state):
    """1: every channel's matrices on its input, summed over the routes in image order, are scan2d without D x."""
    (x, proj, dt_weight, dt_bias, A, D), found = walked(pattern, *size, state)
    y = torch.zeros_like(x[0].flatten(0, 1))
    for d in range(x.shape[-1]):
        one = slice(d, d + 1)
        y[:, d] = sum(to_image(w.channels(one).matrix(), w) @ x[0].flatten(0, 1)[:, d] for w in found)
    y += D.sum(0) * x[0].flatten(0, 1)
    expected = scan2d_reference(x, proj, dt_weight, dt_bias, A, D, ROUTES[pattern])
    close(y, expected[0].flatten(0, 1))


@pytest.mark.parametrize("cut", (1, 5, 13))
def test_a_carried_state(cut):
    """2: Eq. 16 and 17 from a state; a walk cut anywhere goes on as if it were whole."""
    (x, *_), (walk, *_) = walked("ssm", 2, 7, 3)
    x = x[0].flatten(0, 1)
    start = torch.randn(walk.A.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    y, last = walk.output(x, start)
    expected, h = selective_scan_reference(
        x.T[None], walk.dt.T[None], walk.A, walk.B.T[None], walk.C.T[None],
        initial_state=start[None], return_last_state=True,
    )  # fmt: skip
    close(y, expected[0].T)
    close(last, h[0])

    def part(steps: slice) -> Walk:
        inside = {name: getattr(walk, name)[steps] for name in ("dt", "B", "C", "order")}
        return replace(walk, **inside)

    first, between = part(slice(cut)).output(x[:cut], start)
    second, end = part(slice(cut, None)).output(x[cut:], between)
    close(torch.cat([first, second]), y)
    close(end, last)


def test_a_state_enters_the_first_line_only():
    (x, *_), (walk, _) = walked("lines", 3, 4, 2)
    x = x[0].flatten(0, 1)
    with_state, _ = walk.output(x, torch.ones_like(walk.A))
    without, _ = walk.output(x)
    assert (with_state[:4] != without[:4]).all()
    assert torch.equal(with_state[4:], without[4:])


@pytest.mark.parametrize("state", (1, 4))
def test_limits(state):
    """3: no decay is masked linear attention; the diagonal has no decay; one decay for all channels is one matrix."""
    _, (walk, *_) = walked("cross2d", 4, 5, state)
    free = replace(walk, A=torch.zeros_like(walk.A))
    close(free.matrix("CwBw"), walk.matrix("CB"))
    close(walk.matrix("CB"), (walk.C @ walk.B.T).tril())
    close(walk.diagonal("ww"), torch.full((20,), float(state), dtype=torch.float64))
    close(walk.diagonal("CwBw"), walk.diagonal("CB"))
    for mode in ("CB", "CwBw", "CwBdtw", "ww"):
        close(walk.matrix(mode).diagonal(), walk.diagonal(mode))
    dt, A = walk.dt[:, :1].expand_as(walk.dt), torch.full_like(walk.A, -0.7)
    shared = replace(walk, dt=dt, A=A)
    for d in range(dt.shape[1]):
        close(shared.channels(slice(d, d + 1)).matrix("CwBw"), shared.matrix("CwBw"))


@pytest.mark.parametrize("size", ((4, 5), (6, 3)))
def test_a_route_reversed_sees_the_other_side(size):
    """4: a pixel reads what lies before it along route 0 and after it along route 2."""
    _, found = walked("cross2d", *size, 1)
    pixels = torch.arange(size[0] * size[1])
    for pixel in pixels.tolist():
        before, after = (
            to_image(w.row(int((w.order == pixel).nonzero()), "ww"), w) != 0 for w in (found[0], found[2])
        )
        assert torch.equal(before, pixels <= pixel)
        assert torch.equal(after, pixels >= pixel)


@pytest.mark.parametrize("pattern", ("rot2d", "lines"))
def test_matrix_is_the_derivative(pattern):
    """5: d y / d x with dt, B and C held is the matrix, and D on the diagonal."""
    (x, *rest), found = walked(pattern, 3, 4, 2)
    derivative = torch.autograd.functional.jacobian(lambda x: scan2d_reference(x, *rest, ROUTES[pattern]), x)
    derivative = derivative.reshape(12, 6, 12, 6)
    for d in range(6):
        one = slice(d, d + 1)
        matrix = sum(to_image(w.channels(one).matrix(), w) for w in found)
        close(derivative[:, d, :, d], matrix + rest[-1][:, d].sum() * torch.eye(12, dtype=torch.float64))


@pytest.mark.parametrize("mode", ("CB", "CwBw", "CwBdtw", "ww"))
def test_columns_are_those_of_the_matrix(mode):
    for pattern in ("rot2d", "lines"):
        _, found = walked(pattern, 3, 4, 2)
        for walk in found:
            columns = torch.stack([walk.column(j, mode) for j in range(12)], dim=1)
            close(columns, walk.matrix(mode))


def test_strong_decay_loses_nothing():
    """Where a ratio of decays would be 0 / 0: entries next to the diagonal, far along a route that forgets at once."""
    steps, generator = 400, torch.Generator().manual_seed(0)
    dt = 5 + torch.rand(steps, 2, generator=generator, dtype=torch.float64)
    ones = torch.ones(steps, 1, dtype=torch.float64)
    walk = Walk(dt=dt, A=-ones[:2], B=ones, C=ones, order=torch.arange(steps), line=steps)
    expected = torch.exp(-dt[-1]).mean()
    assert abs(walk.row(steps - 1, "ww")[-2] / expected - 1) < 1e-14
    single = replace(walk, dt=dt.float(), A=walk.A.float(), B=ones.float(), C=ones.float())
    assert abs(single.row(steps - 1, "ww")[-2] / expected - 1) < 1e-6


def test_bad_input():
    _, (walk,) = walked("ssm", 2, 3, 1)
    with pytest.raises(ValueError, match=r"unknown mode 'CwBdt'.*CwBdtw"):
        walk.row(0, "CwBdt")
    for i in (-1, 6):
        with pytest.raises(IndexError, match=rf"step {i}: expected 0\.\.5"):
            walk.column(i)
    assert PATTERNS["ssm"] == (Route(),)
