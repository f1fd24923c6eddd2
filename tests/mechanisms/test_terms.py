"""Added loss terms: values by naive loops, gradients by finite differences."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from fedbench.methods.mechanisms.alignment import Alignment
from fedbench.methods.mechanisms.feddecorr import FedDecorr
from fedbench.methods.mechanisms.fedu2 import FedU2
from fedbench.methods.mechanisms.moon import Moon
from fedbench.methods.mechanisms.proximal import Proximal
from torch import Tensor


def cosine(a: Tensor, b: Tensor) -> float:
    return (a @ b / (a.norm() * b.norm())).item()


def points(number: int) -> Tensor:
    torch.manual_seed(number)
    return torch.randn(4, 3, dtype=torch.float64)


def naive(kind: str, z: Tensor, g: Tensor, tau: float) -> float:
    total = 0.0
    for i in range(len(z)):
        if kind == "cosine":
            total += 1 - cosine(z[i], g[i])
        elif kind == "mse":
            total += sum((a / z[i].norm() - b / g[i].norm()).item() ** 2 for a, b in zip(z[i], g[i], strict=True))
        else:
            similar = [math.exp(cosine(z[i], g[j]) / tau) for j in range(len(g))]
            total -= math.log(similar[i] / sum(similar))
    return total / len(z)


@pytest.mark.parametrize("kind", ["infonce", "cosine", "mse"])
def test_the_alignment_term_equals_its_naive_double(kind: Any) -> None:
    z, g = points(0), points(1)
    assert Alignment(kind, tau=0.3).term(z, g).item() == pytest.approx(naive(kind, z, g, 0.3))


def test_alignment_is_alpha_times_the_sum_over_both_views() -> None:
    z1, z2, views = points(0), points(1), (points(2), points(3))
    step: Any = SimpleNamespace(
        output={"projections": (z1, z2)}, views=views, teachers={"received": lambda view: 2 * view + 1}
    )
    mechanism = Alignment("infonce", alpha=0.7, tau=0.3)
    pairs = zip((z1, z2), views, strict=True)
    expected = 0.7 * sum(naive("infonce", z, 2 * view + 1, 0.3) for z, view in pairs)
    assert mechanism.local_loss(step).item() == pytest.approx(expected)  # type: ignore[union-attr]


def test_the_moon_term_equals_its_naive_double() -> None:
    z, g, previous = points(0), points(1), points(2)
    expected = 0.0
    for i in range(len(z)):
        near, far = math.exp(cosine(z[i], g[i]) / 0.4), math.exp(cosine(z[i], previous[i]) / 0.4)
        expected -= math.log(near / (near + far)) / len(z)
    assert Moon(tau=0.4).term(z, g, previous).item() == pytest.approx(expected)


def test_moon_has_no_term_without_a_previous_model() -> None:
    step: Any = SimpleNamespace(teachers={"received": None})
    assert Moon().local_loss(step) is None


@pytest.mark.parametrize("kind", ["infonce", "cosine", "mse", "moon"])
def test_the_gradients_equal_finite_differences(kind: Any) -> None:
    z = points(0).requires_grad_()
    g, previous = points(1), points(2)
    term = (lambda z: Moon().term(z, g, previous)) if kind == "moon" else (lambda z: Alignment(kind).term(z, g))
    assert torch.autograd.gradcheck(term, (z,))


def test_the_proximal_gradient_is_mu_times_the_distance_from_what_was_received() -> None:
    w = torch.tensor([1.0, -2.0, 0.5], requires_grad=True)
    received = torch.tensor([0.0, 1.0, 0.5])
    step: Any = SimpleNamespace(trained={"w": w}, received={"w": received, "frozen": torch.ones(2)})
    term = Proximal(mu=0.3).local_loss(step)
    assert term is not None
    assert term.item() == pytest.approx(0.15 * (1 + 9))
    (gradient,) = torch.autograd.grad(term, w)
    torch.testing.assert_close(gradient, 0.3 * (w.detach() - received))


def test_the_feddecorr_term_equals_its_naive_double() -> None:
    z1, z2 = points(0), points(1)
    step: Any = SimpleNamespace(output={"projections": (z1, z2)})
    expected = 0.0
    for z in (z1, z2):
        for one in z.T:
            for other in z.T:
                a, b = one - one.mean(), other - other.mean()
                expected += 0.7 / 2 / 9 * (a @ b / (a.norm() * b.norm())).item() ** 2
    assert FedDecorr(beta=0.7).local_loss(step).item() == pytest.approx(expected, rel=1e-4)  # type: ignore[union-attr]


def test_feddecorr_lies_between_no_correlation_and_collapse_and_has_a_gradient_at_both() -> None:
    whitened = torch.linalg.qr(points(0) - points(0).mean(0)).Q.requires_grad_()
    same = points(1)[:, :1].expand(-1, 3).clone().requires_grad_()
    constant = torch.ones(4, 3, dtype=torch.float64, requires_grad=True)
    term = FedDecorr().term
    for z, value in ((whitened, 1 / 3), (same, 1.0), (constant, 0.0)):
        assert term(z).item() == pytest.approx(value, abs=1e-4)
        assert torch.isfinite(torch.autograd.grad(term(z), z)[0]).all()


def directions(number: int, size: int = 6) -> Tensor:
    draw = torch.Generator().manual_seed(number)
    return F.normalize(torch.randn(size, 3, dtype=torch.float64, generator=draw), dim=1)


def price(plan: list[list[float]], x: Tensor, y: Tensor, term: FedU2) -> float:
    """<P, C> + rho KL(P 1, a) + rho KL(P^T 1, b) + epsilon KL(P, a b^T), in loops; KL of unequal masses."""

    def kl(p: float, q: float) -> float:
        return p * math.log(p / q) - p + q

    size, total = len(plan), 0.0
    for i in range(size):
        total += term.rho * (kl(sum(plan[i]), 1 / size) + kl(sum(row[i] for row in plan), 1 / size))
        for j in range(size):
            total += plan[i][j] * (1 - (x[i] @ y[j]).item()) + term.epsilon * kl(plan[i][j], 1 / size**2)
    return total


def test_transport_is_the_cheapest_plan_and_its_price() -> None:
    term, x, y = FedU2(epsilon=0.2, rho=0.7, iterations=500), directions(0), directions(1)
    f, g = term.potentials(1 - x @ y.T)
    plan = (((f[:, None] + g - 1 + x @ y.T) / 0.2).exp() / 36).tolist()
    cheapest = price(plan, x, y, term)
    assert term.transport(x, y).item() == pytest.approx(cheapest, rel=1e-9)
    draw = torch.Generator().manual_seed(2)
    for _ in range(20):
        noise = (0.1 * torch.randn(6, 6, generator=draw)).exp().tolist()
        other = [[p * q for p, q in zip(row, by, strict=True)] for row, by in zip(plan, noise, strict=True)]
        assert price(other, x, y, term) > cheapest


def test_the_fedu2_term_is_zero_where_projections_lie_like_the_points_and_grows_towards_collapse() -> None:
    term, points_ = FedU2(), directions(1, 64)
    assert term.divergence(points_.flip(0), points_).item() == pytest.approx(0.0, abs=1e-9)
    spread, other = directions(2, 64), directions(3, 64)
    flat = F.normalize(other * torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64), dim=1)
    found = [term.divergence(z, points_).item() for z in (spread, flat, other[:1].expand(64, 3))]
    assert 0 < 3 * found[0] < found[1] < found[2]


def test_the_fedu2_gradient_is_that_of_finite_differences_and_leads_away_from_collapse() -> None:
    x, y = directions(0).requires_grad_(), directions(1)
    term = FedU2(epsilon=0.2, iterations=300)
    assert torch.autograd.gradcheck(lambda z: term.divergence(F.normalize(z, dim=1), y), (x,), atol=1e-6)
    z = torch.ones(16, 3, dtype=torch.float64) + 0.1 * directions(4, 16)
    z.requires_grad_()
    torch.manual_seed(0)
    for _ in range(60):
        (gradient,) = torch.autograd.grad(FedU2().term(z), z)
        assert torch.isfinite(gradient).all()
        with torch.no_grad():
            z -= 5 * gradient
    assert F.normalize(z, dim=1).mean(0).norm() < 0.3  # 1 where all are one point


def test_fedu2_is_its_weight_times_the_mean_over_views_and_without_it_nothing_is_drawn() -> None:
    z1, z2 = points(0), points(1)
    step: Any = SimpleNamespace(output={"projections": (z1, z2)})
    torch.manual_seed(3)
    expected = 0.7 * (FedU2().term(z1) + FedU2().term(z2)) / 2
    torch.manual_seed(3)
    torch.testing.assert_close(FedU2(weight=0.7).local_loss(step), expected)
    state = torch.get_rng_state()
    assert FedU2(weight=0.0).local_loss(step) is None
    assert torch.equal(torch.get_rng_state(), state)
