"""Joint alignment: the loss by hand and by a plain loop, what the trivial solutions cost, and its gradient in every family."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import gradcheck

import stn
from stn.alignment import class_distances, class_means, inverse_consistency, within_class_variance

SIZES = {1: (9,), 2: (5, 6), 3: (4, 5, 4)}
FAMILIES = {
    "affine 1D": lambda: stn.Affine(1),
    "cpab 1D": lambda: stn.CPAB((4,)),
    "displacement 1D": lambda: stn.DisplacementField((4,)),
    "velocity 1D": lambda: stn.VelocityField((4,), steps=3),
    "translation": stn.Translation,
    "rotation": stn.Rotation,
    "rigid": stn.Rigid,
    "similarity": stn.Similarity,
    "attention": stn.Attention,
    "affine": stn.Affine,
    "bounded affine": lambda: stn.Affine(max_delta=0.5),
    "projective": stn.Projective,
    "corners": stn.Corners,
    "tps": lambda: stn.ThinPlateSpline((3, 3)),
    "bspline": lambda: stn.BSpline((3, 3)),
    "displacement": lambda: stn.DisplacementField((3, 3)),
    "velocity": lambda: stn.VelocityField((3, 3), steps=3),
    "cpab": lambda: stn.CPAB((2, 2)),
    "cpab in steps": lambda: stn.CPAB((2, 2), zero_boundary=False, steps=2),
    "composed": lambda: stn.ThinPlateSpline((3, 3)) @ stn.Similarity(),
    "affine 3D": lambda: stn.Affine(3),
    "rotation 3D": lambda: stn.Rotation(3),
    "bspline 3D": lambda: stn.BSpline((2, 2, 2)),
    "cpab 3D": lambda: stn.CPAB((1, 1, 2)),
}


def warped(image, theta, transform, size=None, **options):
    return stn.SpatialTransformer(torch.nn.Identity(), transform, size, **options).warp(image, theta)


def images(batch, d=2, channels=2, size=None):
    return torch.rand(batch, channels, *(size or SIZES[d]), dtype=torch.float64)


def thetas(transform, batch, strength=0.06):
    return transform.identity().double() + strength * torch.randn(batch, transform.num_params, dtype=torch.float64)


def zoom(batch, factor, d=2):
    """Attention that shows `factor` times the image's extent in the output."""
    theta = torch.zeros(batch, d + 1, dtype=torch.float64)
    theta[:, 0] = torch.tensor(factor).double().log()
    return theta


def plainly(warp, image, labels, quorum=0.5):
    """`inverse_consistency` image by image and class by class, for families whose inverse is in closed form."""
    mask, output, d = warp.mask(), warp.output, len(warp.size)
    lattice = stn.geometry.lattice_points(image, warp.image_size, warp.align_corners)
    errors = []
    for i in range(len(image)):
        own = (labels == labels[i]).nonzero()[:, 0].tolist()
        n = len(own)
        if n == 1:
            continue
        count = sum(mask[j].double() for j in own)
        total = sum(torch.where(mask[j], output[j], 0.0) for j in own)
        back = warp.unmap_points(lattice, missing="nan")[i].reshape(1, *warp.image_size, d).nan_to_num(1e4)
        options = {"padding_mode": "border", "align_corners": warp.align_corners}
        summed, m = (stn.sample(what[None], back, **options)[0] for what in (total, count))
        predicted = summed / m
        seen = (back.abs() <= 1).all(-1) & (m >= 2) & (m > quorum * n)
        plain = sum(image[j] for j in own) / n
        hidden = (plain - image[i]).square() * n / (n - 1)
        errors.append(torch.where(seen, (predicted - image[i]).square() * m / (m - 1), hidden).mean())
    return torch.stack(errors).mean()


# Values


@pytest.mark.parametrize("name", FAMILIES)
def test_the_identity_costs_the_variance_within_the_class(name):
    transform = FAMILIES[name]()
    image = images(5, transform.ndim)
    labels = torch.tensor([3, -1, 3, -1, 3])
    warp = warped(image, thetas(transform, 5, 0), transform)
    variance = [image[labels == k].var(0).mean() for k in (3, -1)]
    torch.testing.assert_close(inverse_consistency(warp, image, labels), (3 * variance[0] + 2 * variance[1]) / 5)
    torch.testing.assert_close(within_class_variance(warp, labels), (variance[0] + variance[1]) / 2)
    torch.testing.assert_close(inverse_consistency(warp, image), image.var(0).mean())


@pytest.mark.parametrize("quorum", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("size", [None, (7, 4)])
def test_it_is_what_a_plain_loop_says(quorum, align_corners, size):
    image = images(7)
    labels = torch.tensor([0, 1, 1, 0, 2, 1, 0])
    theta = thetas(stn.Affine(), 7, 0.3)
    warp = warped(image, theta, stn.Affine(), size, align_corners=align_corners)
    assert 0.1 < float(warp.mask().double().mean()) < 0.9  # much has left the frame
    got = inverse_consistency(warp, image, labels, quorum=quorum)
    torch.testing.assert_close(got, plainly(warp, image, labels, quorum))
    torch.testing.assert_close(inverse_consistency(warp, image, labels, quorum=quorum, detach_mean=True), got)


def test_what_is_padding_does_not_count():
    image = images(6)
    image[..., 0] += 5  # so that reflection and border differ
    theta = thetas(stn.Affine(), 6, 0.3)
    warps = [warped(image, theta, stn.Affine(), padding_mode=mode) for mode in ("border", "reflection")]
    assert (warps[0].output - warps[1].output).abs().max() > 1
    for quorum in (0.0, 0.4):
        values = [inverse_consistency(warp, image, quorum=quorum) for warp in warps]
        torch.testing.assert_close(values[0], values[1])
        values = [within_class_variance(warp, quorum=quorum) for warp in warps]
        torch.testing.assert_close(values[0], values[1])
    means = [class_means(warp) for warp in warps]
    seen = (means[0].shown > 0).expand_as(means[0].mean)
    assert seen.any()
    torch.testing.assert_close(means[0].mean[seen], means[1].mean[seen])


def test_means_by_hand():
    image = torch.tensor([[[1.0, 2.0, 3.0]], [[5.0, 6.0, 7.0]], [[4.0, 4.0, 4.0]]])
    warp = warped(image, torch.tensor([[0.0], [2 / 3], [0.0]]), stn.Translation(1))
    means = class_means(warp, torch.tensor([7, 7, 2]))
    assert means.labels.tolist() == [2, 7]
    torch.testing.assert_close(means.mean, torch.tensor([[[4.0, 4.0, 4.0]], [[3.5, 4.5, 3.0]]]))
    assert means.shown.tolist() == [[[1, 1, 1]], [[2, 2, 1]]]
    # (1, 6) and (2, 7), 12.5 each; the third pixel is shown by one of two, and class 2 has one image
    assert float(within_class_variance(warp, torch.tensor([7, 7, 2]))) == pytest.approx(12.5)


def test_the_quorum_of_the_variance():
    image = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, 1.0], [0.0, 2.0, 7.0], [0.0, 2.0, 9.0]])[:, None]
    warp = warped(image, torch.tensor([[0.0], [0.0], [2 / 3], [2 / 3]]), stn.Translation(1))
    # (0, 0, 2, 2), (0, 0, 7, 9), and (1, 1) of two alone
    assert float(within_class_variance(warp)) == pytest.approx((4 / 3 + (32 + 9 + 25) / 3) / 2)
    assert float(within_class_variance(warp, quorum=0.4)) == pytest.approx((4 / 3 + (32 + 9 + 25) / 3 + 0) / 3)


@pytest.mark.parametrize("d", [1, 2, 3])
def test_shifts_by_whole_pixels_align_exactly(d):
    inner = torch.rand(1, 2, *(5,) * d).double()
    image = torch.zeros(3, 2, *(9,) * d).double()
    for i, start in enumerate((1, 2, 3)):
        image[i][(slice(None), *(slice(start, start + 5),) * d)] = inner[0]
    theta = torch.tensor([-1.0, 0.0, 1.0]).double()[:, None].expand(3, d) * 2 / 9
    family = stn.Translation(d)
    warp, before = warped(image, theta, family), warped(image, 0 * theta, family)
    assert float(inverse_consistency(warp, image)) < 1e-25
    assert float(within_class_variance(warp)) < 1e-25
    assert float(inverse_consistency(before, image)) > 0.02
    # the other way round it is worse than not at all
    assert inverse_consistency(warped(image, -theta, family), image) > inverse_consistency(before, image)


def test_series_on_clocks_of_their_own_are_aligned_by_the_inverse_clocks():
    family = stn.CPAB((5,))
    time = stn.geometry.lattice(200).double()
    template = torch.sin(6 * time) + time
    theta = 0.4 * torch.randn(12, family.num_params).double()
    image = stn.warp(template.expand(12, 1, -1), theta, transform=family, padding_mode="border")
    true, none = warped(image, -theta, family), warped(image, 0 * theta, family)
    assert inverse_consistency(true, image) < 0.01 * inverse_consistency(none, image)


# What the trivial solutions cost


def smooth(batch, d):
    coarse = torch.rand(batch, 2, *(4,) * d).double()
    same = torch.eye(d, d + 1).double().expand(batch, -1, -1)
    return stn.warp(coarse, same, (16,) * d, mode="bspline3", padding_mode="border")


@pytest.mark.parametrize("d", [1, 2, 3])
@pytest.mark.parametrize("factor", [1 / 50, 1 / 4, 1.5, 4.0, 50.0])
@pytest.mark.parametrize("make", [smooth, lambda batch, d: images(batch, d, size=(16,) * d)])
def test_zooming_is_not_rewarded(d, factor, make):
    """Neither out of sight nor into a flat spot; the plain variance pays for both."""
    image = make(4, d)
    identity, zoomed = (warped(image, zoom(4, f, d), stn.Attention(d)) for f in (1.0, factor))
    assert inverse_consistency(zoomed, image) > inverse_consistency(identity, image) - 1e-9
    if factor == 50.0:  # of black around one pixel
        black = warped(image, zoom(4, factor, d), stn.Attention(d), padding_mode="zeros")
        assert black.output.var(0).mean() < 0.2 * image.var(0).mean()
        assert inverse_consistency(black, image) > inverse_consistency(identity, image) - 1e-9


@pytest.mark.parametrize("d", [1, 2, 3])
def test_squeezing_away_what_differs_is_not_rewarded(d):
    """Each image zoomed into a spot of its own that has the same gray: nothing differs any more."""
    image = smooth(6, d)
    image[..., 0] = 0.5  # a flat side
    theta = zoom(6, 0.001, d)
    theta[:, 1] = -1 + 1 / 16
    theta[:, 2:] = 0.5 * torch.randn(6, d - 1).double()
    flat, identity = warped(image, theta, stn.Attention(d)), warped(image, zoom(6, 1.0, d), stn.Attention(d))
    assert float(flat.output.var(0).mean()) < 1e-6
    assert float(within_class_variance(flat)) < 1e-6
    assert inverse_consistency(flat, image) > 0.999 * inverse_consistency(identity, image)


def test_drifting_apart_is_not_rewarded():
    """Four images, shrunk, each in a corner of its own, are the mean of themselves alone."""
    image = smooth(4, 2)
    corners = torch.tensor([[0, -1, -1], [0, -1, 1], [0, 1, -1], [0, 1, 1]]).double()
    theta = zoom(4, 2.1) + 1.05 * corners
    warp = warped(image, theta, stn.Attention(), (64, 64))
    assert class_means(warp).shown.max() == 1
    torch.testing.assert_close(inverse_consistency(warp, image), image.var(0).mean())
    torch.testing.assert_close(inverse_consistency(warp, image, quorum=0.0), image.var(0).mean())
    # In pairs that look alike it pays, unless more than half of the class must agree.
    image[1], image[3] = image[0] + 0.01 * image[1], image[2] + 0.01 * image[3]
    paired = zoom(4, 2.1) + 1.05 * corners[[0, 0, 3, 3]]
    warp = warped(image, paired, stn.Attention(), (64, 64))
    assert class_means(warp).shown.max() == 2
    torch.testing.assert_close(inverse_consistency(warp, image), image.var(0).mean())
    assert inverse_consistency(warp, image, quorum=0.4) < 0.1 * image.var(0).mean()


def test_what_a_warp_never_reads_is_hidden():
    """Read is x, then -x: 0 or less alone. Where it turns round the slope is 0, and there is no gradient."""
    family = stn.DisplacementField((3,))
    theta = torch.tensor([[0.0, 0.0, -2.0], [0.0, 0.0, 0.0], [0.0, 0.1, 0.0]]).double().requires_grad_()
    image = images(3, 1, size=(8,))
    warp = warped(image, theta, family)
    assert warp.unmap_points(torch.full((1, 1, 1), 0.5).double(), missing="nan")[0].isnan().all()
    loss = inverse_consistency(warp, image)
    torch.testing.assert_close(loss, plainly(warp, image, torch.zeros(3)))
    loss.backward()
    assert theta.grad.isfinite().all()
    assert theta.grad[0].abs().max() > 0


def test_where_the_map_has_no_slope_there_is_no_gradient():
    """The middle half of the output shows one point, which is a pixel of the image."""
    family = stn.DisplacementField((5,))
    theta = torch.tensor([[0.0, 0.5, 0.0, -0.5, 0.0], [0.0] * 5]).double()
    image = images(2, 1, size=(9,))
    warp = warped(image, theta.requires_grad_(), family)
    assert float(family.determinant(theta.detach(), torch.zeros(1, 1, 1).double())[0]) == 0
    inverse_consistency(warp, image).backward()
    assert theta.grad.isfinite().all()
    assert theta.grad[0].abs().max() > 0


def test_what_is_behind_the_horizon_is_hidden():
    family = stn.Projective()
    theta = family.identity().double().repeat(3, 1)
    theta[0, 6] = -1.3
    theta = theta.requires_grad_()
    image = images(3)
    warp = warped(image, theta, family)
    lattice = stn.geometry.lattice_points(image, SIZES[2], False)
    assert warp.unmap_points(lattice, missing="nan")[0].isnan().any()
    loss = inverse_consistency(warp, image)
    torch.testing.assert_close(loss, plainly(warp, image, torch.zeros(3)))
    loss.backward()
    assert theta.grad.isfinite().all()
    assert theta.grad[0].abs().max() > 0


def test_an_image_alone_in_its_class_does_not_count():
    image = images(3)
    theta = thetas(stn.Affine(), 3).requires_grad_()
    labels = torch.tensor([0, 1, 0])
    loss = inverse_consistency(warped(image, theta, stn.Affine()), image, labels)
    pair = inverse_consistency(warped(image[::2], theta[::2], stn.Affine()), image[::2])
    torch.testing.assert_close(loss, pair)
    loss.backward()
    assert theta.grad[1].abs().max() == 0
    assert theta.grad[0].abs().max() > 0
    alone = inverse_consistency(warped(image, theta, stn.Affine()), image, torch.arange(3))
    assert float(alone.detach()) == 0
    alone.backward()


def test_an_empty_batch():
    warp = warped(torch.zeros(0, 1, 4, 4), torch.zeros(0, 6), stn.Affine())
    assert float(inverse_consistency(warp, torch.zeros(0, 1, 4, 4), torch.zeros(0, dtype=torch.int64))) == 0
    assert class_means(warp, torch.zeros(0, dtype=torch.int64)).mean.shape == (0, 1, 4, 4)
    assert within_class_variance(warp).isnan()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_half_precision_images_are_summed_in_float32(dtype):
    image = images(4).to(dtype)
    theta = thetas(stn.Affine(), 4)
    warp = warped(image, theta.float(), stn.Affine())
    loss = inverse_consistency(warp, image)
    assert loss.dtype == torch.float32 == within_class_variance(warp).dtype == class_means(warp).mean.dtype
    exact = inverse_consistency(warped(image.double(), theta, stn.Affine()), image.double())
    torch.testing.assert_close(loss.double(), exact, rtol=2e-2 if dtype != torch.float32 else 1e-4, atol=0)


def test_theta_and_image_may_be_of_two_types():
    image, theta = images(4), thetas(stn.Affine(), 4)
    exact = inverse_consistency(warped(image, theta, stn.Affine()), image)
    for i, t in ((image.float(), theta), (image, theta.float())):
        t = t.requires_grad_()
        loss = inverse_consistency(warped(i, t, stn.Affine()), i)
        loss.backward()
        assert loss.dtype == i.dtype
        torch.testing.assert_close(loss.detach().double(), exact, rtol=1e-4, atol=0)


# Gradients


@pytest.mark.parametrize("name", FAMILIES)
def test_gradient(name):
    transform = FAMILIES[name]()
    image = images(4, transform.ndim, channels=1)
    labels = torch.tensor([0, 1, 0, 0])
    theta = thetas(transform, 4).requires_grad_()

    def loss(theta):
        return inverse_consistency(warped(image, theta, transform), image, labels, quorum=0.4)

    assert gradcheck(loss, theta, atol=1e-6, fast_mode=transform.num_params > 12)
    (gradient,) = torch.autograd.grad(loss(theta), theta)
    assert gradient[0].abs().max() > 1e-4


def test_gradient_in_the_image():
    image = images(3).requires_grad_()
    theta = thetas(stn.Affine(), 3)
    assert gradcheck(lambda i: inverse_consistency(warped(i, theta, stn.Affine()), i), image)
    assert gradcheck(lambda i: within_class_variance(warped(i, theta, stn.Affine())), image)
    assert gradcheck(
        lambda t: within_class_variance(warped(image.detach(), t, stn.Affine())), theta.clone().requires_grad_()
    )


def test_a_detached_mean_is_a_template():
    """The gradient is that of the squared distance from a mean that does not move."""
    image, theta = images(3), thetas(stn.CPAB((2, 2)), 3).requires_grad_()
    family = stn.CPAB((2, 2))
    warp = warped(image, theta, family)
    (got,) = torch.autograd.grad(inverse_consistency(warp, image, detach_mean=True), theta)
    points = family.map_points(-theta, stn.geometry.lattice_points(image, SIZES[2], False).expand(3, -1, -1))
    back = stn.sample(
        class_means(warp).mean.detach().expand(3, -1, -1, -1), points.reshape(3, *SIZES[2], 2), padding_mode="border"
    )
    (want,) = torch.autograd.grad((1.5 * (back - image).square()).mean(), theta)
    torch.testing.assert_close(got, want)
    (full,) = torch.autograd.grad(inverse_consistency(warp, image), theta)
    assert (full - got).abs().max() > 1e-4


def test_a_second_gradient_is_refused():
    image, theta = images(3), thetas(stn.Affine(), 3).requires_grad_()
    loss = inverse_consistency(warped(image, theta, stn.Affine()), image)
    (gradient,) = torch.autograd.grad(loss, theta, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


# The inverse of CPAB in closed form


@pytest.mark.parametrize(
    "family",
    [stn.CPAB((6,)), stn.CPAB((3,), zero_boundary=False), stn.CPAB((2, 2)), stn.CPAB((1, 2, 1), zero_boundary=False)],
)
def test_points_are_taken_back_by_the_reversed_field(family):
    theta = 0.2 * torch.randn(3, family.num_params).double()
    points = 2.2 * torch.rand(3, 40, family.ndim).double() - 1.1
    newton = stn.transforms.AbstractTransform.unmap_points

    def gradient(unmap):
        t, p = theta.clone().requires_grad_(), points.clone().requires_grad_()
        found = unmap(family, t, p, tolerance=1e-8)
        return found, *torch.autograd.grad(found.square().sum(), (t, p))

    for got, want in zip(gradient(stn.CPAB.unmap_points), gradient(newton), strict=True):
        torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-5)
    theta = 5 * theta  # where Newton's method goes round in circles
    torch.testing.assert_close(
        family.map_points(theta, family.unmap_points(theta, points)), points, atol=1e-9, rtol=1e-9
    )


def test_steps_that_miss_are_put_right():
    family = stn.CPAB((2, 2), steps=2)
    theta = 0.7 * torch.randn(3, family.num_params).double()
    points = 1.8 * torch.rand(3, 40, 2).double() - 0.9
    assert (family.map_points(theta, family.map_points(-theta, points)) - points).abs().max() > 1e-4
    found = family.unmap_points(theta, points, tolerance=1e-8)
    torch.testing.assert_close(family.map_points(theta, found), points, atol=1e-8, rtol=0)
    with pytest.raises(ValueError, match=r"^missing: "):
        stn.CPAB((3,)).unmap_points(torch.zeros(1, 2), torch.zeros(1, 1, 1), missing="ignore")


@pytest.mark.parametrize(
    "family",
    [
        stn.CPAB((6,)) @ stn.CPAB((6,)) @ stn.CPAB((6,)),
        stn.CPAB((2, 2)) @ stn.Similarity(),
        stn.Projective() @ stn.BSpline((3, 3)),
    ],
)
def test_compositions_are_taken_back_one_by_one(family):
    theta = family.identity().double() + 0.05 * torch.randn(3, family.num_params).double()
    points = 1.6 * torch.rand(3, 20, family.ndim).double() - 0.8
    newton = stn.transforms.AbstractTransform.unmap_points

    def gradient(unmap):
        t, p = theta.clone().requires_grad_(), points.clone().requires_grad_()
        found = unmap(family, t, p, tolerance=1e-8)
        return found, *torch.autograd.grad(found.square().sum(), (t, p))

    for got, want in zip(gradient(type(family).unmap_points), gradient(newton), strict=True):
        torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-5)


def test_compositions_are_taken_back_where_newton_goes_round_in_circles():
    family = stn.CPAB((6,)) @ stn.CPAB((6,)) @ stn.CPAB((6,))
    theta = torch.randn(3, family.num_params).double()
    points = 1.8 * torch.rand(3, 40, 1).double() - 0.9
    with pytest.raises(ValueError, match="is missed by"):
        stn.transforms.AbstractTransform.unmap_points(family, theta, points)
    torch.testing.assert_close(family.map_points(theta, family.unmap_points(theta, points)), points, atol=1e-6, rtol=0)


def test_compositions_that_hide_points():
    family = stn.Affine(1) @ stn.DisplacementField((3,))
    theta = torch.tensor([[1.0, 0.0, 0.0, 0.0, -2.0]]).double()  # x, then -x
    points = torch.tensor([[[0.5], [-0.5]]]).double()
    found = family.unmap_points(theta, points, missing="nan")
    assert found.isnan().all(-1).tolist() == [[True, False]]
    with pytest.raises(ValueError, match="is missed by"):
        family.unmap_points(theta, points)
    with pytest.raises(ValueError, match=r"^missing: "):
        family.unmap_points(theta, points[:, 1:], missing="ignore")


# As a loss


@pytest.mark.parametrize("family", [stn.Translation(1), stn.Translation(2), stn.Rigid(3)])
def test_descent_brings_them_together(family):
    """Blobs that were shifted, two classes of them: theta itself is learned."""
    d = family.ndim
    size = ((32,), (16, 16), (12, 12, 12))[d - 1]
    at = stn.geometry.lattice_points(torch.zeros(1), size, False).reshape(*size, d)
    centres = torch.zeros(8, d)
    centres[:] = 0.3 * (2 * torch.rand(8, d) - 1)
    labels = torch.arange(8) % 2
    widths = torch.where(labels == 1, 0.2, 0.4).reshape(-1, *[1] * d)
    image = (-((at - centres.reshape(-1, *[1] * d, d)).square().sum(-1) / widths**2)).exp()[:, None]
    theta = family.identity().repeat(8, 1).requires_grad_()
    optimizer = torch.optim.Adam([theta], lr=0.03)
    errors, variances = [], []
    for _ in range(60):
        warp = warped(image, theta, family)
        loss = inverse_consistency(warp, image, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        errors.append(float(loss.detach()))
        variances.append(float(within_class_variance(warp, labels).detach()))
    assert errors[-1] < 0.1 * errors[0]
    assert variances[-1] < 0.1 * variances[0]


def test_a_transformer_that_looks_again_and_again():
    """Whose warp is a composition."""
    family, image = stn.CPAB((6,)), torch.rand(5, 1, 24)
    localizer = stn.FCLocalizer(24, family, hidden=(8,))
    transformer = stn.IterativeTransformer(localizer, family, iterations=3)
    assert float(inverse_consistency(transformer.warp(image), image).detach()) == pytest.approx(
        float(image.var(0).mean())
    )
    with torch.no_grad():
        for parameter in localizer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    inverse_consistency(transformer.warp(image), image).backward()
    assert all(p.grad.isfinite().all() and p.grad.abs().max() > 0 for p in localizer.parameters())


# Bad input


def test_bad_input_is_refused():
    image = torch.rand(3, 1, 4, 4)
    warp = warped(image, thetas(stn.Affine(), 3).float(), stn.Affine())
    for function in (lambda w: inverse_consistency(w, image), class_means, within_class_variance):
        for bad in (None, image, "warp"):
            with pytest.raises(ValueError, match=r"^warp: expected the result of"):
                function(bad)
    for labels in (torch.zeros(2).int(), torch.zeros(3), [0, 1, 0], torch.zeros(3, 1).int(), torch.zeros(3).cfloat()):
        for function in (lambda w, k: inverse_consistency(w, image, k), class_means, within_class_variance):
            with pytest.raises(ValueError, match=r"^labels: expected integers \(3,\)"):
                function(warp, labels)
    for bad in (image[:2], image[..., :3], image[:, :, 0], image.expand(3, 2, 4, 4), image.int(), None):
        with pytest.raises(ValueError, match=r"^image: "):
            inverse_consistency(warp, bad)
    for quorum in (-0.1, 1.0, float("nan"), "half", True):
        with pytest.raises(ValueError, match=r"^quorum: expected a number from 0 to below 1"):
            inverse_consistency(warp, image, quorum=quorum)
        with pytest.raises(ValueError, match=r"^quorum: expected a number from 0 to below 1"):
            within_class_variance(warp, quorum=quorum)
    with pytest.raises(ValueError, match=r"^detach_mean: "):
        inverse_consistency(warp, image, detach_mean=1)
    with pytest.raises(ValueError, match=r"^image: expected on the device"):
        inverse_consistency(warp, image.to("meta"))
    with pytest.raises(ValueError, match=r"^labels: expected on the device"):
        class_means(warp, torch.zeros(3, dtype=torch.int64, device="meta"))


def test_labels_of_any_integers():
    image = images(4)
    warp = warped(image, thetas(stn.Affine(), 4), stn.Affine())
    want = inverse_consistency(warp, image, torch.tensor([0, 1, 0, 1]))
    for labels in (torch.tensor([True, False, True, False]), torch.tensor([9, -3, 9, -3], dtype=torch.int8)):
        torch.testing.assert_close(inverse_consistency(warp, image, labels), want)


# The classes in the frame of each image


def test_distances_by_hand():
    """The mean of each class taken back image by image, and the class named where nothing is stretched."""
    image, labels = images(5), torch.tensor([4, 2, 4, 2, 2])
    family = stn.Affine()
    theta = thetas(family, 5)
    warp = warped(image, theta, family, (7, 8))
    means = class_means(warp, labels)
    got = class_distances(warp, image, means)
    inverse = family.inverse(theta)
    for k in range(2):
        back = stn.warp(means.mean[k].expand(5, -1, -1, -1), inverse.reshape(5, 2, 3), SIZES[2], padding_mode="border")
        torch.testing.assert_close(got[:, k], (back - image).square().mean((1, 2, 3)))
    identity = warped(image, thetas(family, 5, 0), family)
    own = class_distances(identity, image, class_means(identity, labels))[torch.arange(5), (labels == 4).long()]
    unbiased = torch.tensor([2.0, 3.0])[(labels == 2).long()].double()
    want = (own * unbiased / (unbiased - 1)).mean()
    torch.testing.assert_close(want, inverse_consistency(identity, image, labels))


@pytest.mark.parametrize("name", ["cpab 1D", "similarity", "tps", "bspline 3D"])
def test_gradient_of_the_distances(name):
    transform = FAMILIES[name]()
    image, labels = images(3, transform.ndim, channels=2), torch.tensor([0, 1, 0])
    theta = thetas(transform, 3).requires_grad_()

    def distances(theta):
        warp = warped(image, theta, transform)
        return class_distances(warp, image, class_means(warp, labels))

    assert gradcheck(distances, theta, atol=1e-6, fast_mode=transform.num_params > 12)


def test_bad_means_are_refused():
    image = torch.rand(3, 1, 4, 4)
    warp = warped(image, thetas(stn.Affine(), 3).float(), stn.Affine())
    other = warped(image, thetas(stn.Affine(), 3).float(), stn.Affine(), (5, 4))
    for bad in (class_means(other), class_means(warp).mean, None):
        with pytest.raises(ValueError, match=r"^means: expected what `class_means` gives for images \(K, 1, 4, 4\)"):
            class_distances(warp, image, bad)
    with pytest.raises(ValueError, match=r"^image: "):
        class_distances(warp, image[:2], class_means(warp))
    with pytest.raises(ValueError, match=r"^warp: "):
        class_distances(image, image, class_means(warp))


# The benchmark


def test_the_benchmark_without_its_packages(monkeypatch, capsys, tmp_path):
    """Bumps of two classes, on clocks of their own, in place of the sets; every loss in a few steps."""
    from benchmarks import alignment as benchmark

    def made(count):
        at = stn.geometry.lattice(48)
        labels = torch.arange(count) % 2
        theta = 0.3 * torch.randn(count, 5)
        bumps = torch.stack([torch.exp(-(((at - 0.2) / 0.3) ** 2)), at.sin()])[:, None]
        return stn.warp(bumps[labels], theta, transform=stn.CPAB((6,)), padding_mode="border"), labels

    monkeypatch.setattr(benchmark, "load", lambda name: (made(20), made(10)))
    monkeypatch.setattr(benchmark, "barycentres", lambda train, test: 0.5)
    file = tmp_path / "alignment.json"
    rows = benchmark.main(["--seeds", "0,1", "--steps", "2", "--only", "GunPoint,Coffee", "--json", str(file)])
    assert [row["data"] for row in rows] == ["GunPoint", "Coffee"]
    assert set(rows[0]["learned"]) == set(benchmark.LOSSES)
    assert rows[0]["mean"] == 1.0  # a bump is no slope
    assert all(len(found["accuracy"]) == 2 for found in rows[0]["learned"].values())
    assert "GunPoint" in file.read_text()
    assert "DBA 50.0%" in capsys.readouterr().out


def test_the_triplet_by_hand():
    from benchmarks.alignment import triplet

    distances = torch.tensor([[0.5, 1.0, 4.0], [3.0, 2.0, 9.0], [0.0, 5.0, 0.25]])
    # 0.5 - 1 + 1, 2 - 3 + 1, and 0.25 - 0 + 1
    got = triplet(distances, torch.tensor([4, 6, 9]), torch.tensor([4, 6, 9]))
    torch.testing.assert_close(got, torch.tensor((0.5 + 0 + 1.25) / 3))
