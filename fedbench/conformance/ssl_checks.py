"""What a look at an SSL method alone shows: the three mistakes that are made most often, told in milliseconds.

A check takes a configuration and returns what is wrong, or None. Shapes: B samples, D dimensions of a projection.
"""

import copy
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from fedbench.config.schema import Config
from fedbench.conformance.checks import Finding, short
from fedbench.data import build_views
from fedbench.encoders import num_blocks
from fedbench.encoders.tensor_groups import is_target
from fedbench.ssl import SSLMethod
from fedbench.training.model import build_model

BATCH = 32
STEP = 1e-2  # of the finite difference; projections have values about one
Views = tuple[Tensor, ...]


def parameters_are_registered(config: Config) -> Finding | None:
    """Whatever the loss has a gradient for is a parameter of the model: it is trained, sent and averaged."""
    model = _model(config)
    own = {id(parameter) for parameter in model.parameters()}
    odd = [leaf for leaf in _leaves(_loss(model, _views(config, model))) if id(leaf) not in own]
    if not odd:
        return None
    shapes = short({str(tuple(leaf.shape)) for leaf in odd})
    return Finding(
        "every head is registered: a module, made in __init__, and an attribute of self (several: nn.ModuleList)",
        f"the loss has a gradient for parameters that are not the model's, of shapes {shapes}",
        "__init__, training_step",
    )


def every_view_reaches_the_loss(config: Config) -> Finding | None:
    """Another view 2, and the loss is another one; so for each view that the method asks for.

    Another one: the samples in another order and mirrored, for some losses do not depend on a view's order.
    """
    model = _model(config)
    views = _views(config, model)
    before = _value(model, views)
    for number, view in enumerate(views):
        if _value(model, (*views[:number], view.flip(0, -1), *views[number + 1 :])) == before:
            return Finding(
                f"a loss over {len(views)} views (num_views is how many a step wants)",
                f"the loss is the same whatever view {number + 1} shows",
                "training_step",
            )
    return None


def images_are_kept_apart(config: Config) -> Finding | None:
    """Where all images may become one point, the loss must not be followed down to there.

    The rule: there is a target branch, or the loss of one point for all images is above that of points apart (a
    term repels), or the gradient is not that of the loss's value (a stop-gradient). SimSiam, Sec. 4.1, shows what
    becomes of the others. Projections are set by hand, as outputs of `projection_head`; a prediction head that
    keeps the shape is left out. What keeps images apart by other ways than projections is not seen.
    """
    model = _model(config)
    if any(is_target(key) for key in model.state_dict()):
        return None
    views = _views(config, model)
    rows = _rows_of_calls(model, views)
    if not rows:
        return None
    points_BD = _apart(*rows[0])

    def loss_at(projections: Sequence[Tensor]) -> Tensor:
        return _loss(copy.deepcopy(model), views, projections)

    apart = loss_at([points_BD.repeat(count // BATCH, 1) for count, _ in rows]).item()
    one_point = min(loss_at([point.expand(count, -1) for count, _ in rows]).item() for point in points_BD)
    if one_point > apart + 1e-4 * max(1, abs(apart)) or not _follows_its_value(loss_at, points_BD, rows):
        return None
    return Finding(
        "something keeps images apart: a stop-gradient (z.detach() on the predicted side), a target branch, or a "
        "term that repels",
        f"a loss of {one_point:.3g} where all images are one point, {apart:.3g} where they are apart, and the "
        "gradient flows through both views",
        "training_step",
    )


SSL_CHECKS: dict[str, Callable[[Config], Finding | None]] = {
    "parameters are registered": parameters_are_registered,
    "every view reaches the loss": every_view_reaches_the_loss,
    "images are kept apart": images_are_kept_apart,
}


def _model(config: Config) -> SSLMethod:
    return build_model(config, num_blocks(config.encoder)).train()


def _views(config: Config, model: SSLMethod) -> Views:
    """Noise of the shapes of a step's views."""
    views = build_views(config.augmentation, config.encoder.image_size, model.num_views)
    draw = torch.Generator().manual_seed(0)
    return tuple(torch.randn(shape, generator=draw) for shape in views.shapes(BATCH, config.encoder.image_shape))


def _value(model: SSLMethod, views: Views) -> float:
    """The loss; model and generators stay as they are."""
    return _loss(copy.deepcopy(model), views).item()


def _loss(model: SSLMethod, views: Views, projections: Sequence[Tensor] = ()) -> Tensor:
    """The loss, with the same draws every time; `projections`: what the projection head is to return, by call."""
    hooks = []
    if projections:
        given = iter(projections)
        hooks.append(model.projection_head.register_forward_hook(lambda *_: next(given)))
        hooks.append(model.prediction_head.register_forward_hook(_passed_on))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        loss = model.training_step(views)["loss"]
    for hook in hooks:
        hook.remove()
    return loss


def _passed_on(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return inputs[0] if inputs[0].shape == output.shape else output


def _rows_of_calls(model: SSLMethod, views: Views) -> list[tuple[int, int]]:
    """(B or a multiple of it, D) of what the projection head returns in a step, by call; empty if that is none."""
    shapes: list[tuple[int, int]] = []
    model = copy.deepcopy(model)
    model.projection_head.register_forward_hook(lambda _, __, output: shapes.append(tuple(output.shape)))
    _loss(model, views)
    usable = all(len(shape) == 2 and shape[0] % BATCH == 0 for shape in shapes) and len(set(shapes)) == 1
    return shapes if usable and sum(shape[0] for shape in shapes) > BATCH else []


def _apart(_: int, dim: int) -> Tensor:
    """Points (B, D) whose dimensions have mean 0, variance 1 and, where D < B, no correlation."""
    points_BD = torch.randn(BATCH, dim, generator=torch.Generator().manual_seed(1))
    points_BD = points_BD - points_BD.mean(dim=0)
    return BATCH**0.5 * torch.linalg.qr(points_BD).Q if dim < BATCH else points_BD


def _follows_its_value(
    loss_at: Callable[[Sequence[Tensor]], Tensor], points_BD: Tensor, rows: Sequence[tuple[int, int]]
) -> bool:
    """Whether the gradient at projections that differ between the views is the slope of the loss along it."""
    draw = torch.Generator().manual_seed(2)
    at = [points_BD.repeat(count // BATCH, 1) + torch.randn(count, dim, generator=draw) for count, dim in rows]
    leaves = [projection.clone().requires_grad_() for projection in at]
    loss = loss_at(leaves)
    if not loss.requires_grad:
        return False
    found = torch.autograd.grad(loss, leaves, allow_unused=True)
    gradient = [torch.zeros_like(leaf) if one is None else one for leaf, one in zip(leaves, found, strict=True)]
    length = torch.stack([one.square().sum() for one in gradient]).sum().sqrt()
    if not length > 0:
        return False

    def moved(by: float) -> float:
        steps = zip(at, gradient, strict=True)
        return loss_at([projection + by / length * one for projection, one in steps]).item()

    slope = (moved(STEP) - moved(-STEP)) / (2 * STEP)
    return abs(slope / length.item() - 1) < 0.1


def _leaves(loss: Tensor) -> Iterator[Tensor]:
    """The tensors for which the loss has a gradient, each once."""
    waiting, seen = [loss.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            yield node.variable
        waiting += [following for following, _ in node.next_functions]
