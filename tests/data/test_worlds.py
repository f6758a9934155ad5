"""Worlds: the factor tables of the originals, images against independent drawings, the oracle, what they refuse."""

import subprocess
import sys

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from unbraid.core.errors import UnbraidError
from unbraid.data import worlds
from unbraid.data.worlds import rays
from unbraid.data.worlds.scene import hues, noise, period

TABLES = {
    "sprites": {"shape": 3, "scale": 6, "orientation": 40, "posX": 32, "posY": 32},
    "shapes3d": {"floor hue": 10, "wall hue": 10, "object hue": 10, "scale": 8, "shape": 4, "orientation": 15},
    "cars3d": {"elevation": 4, "azimuth": 24, "identity": 183},
    "mpi3d": {"colour": 6, "shape": 6, "size": 2, "camera height": 3, "background": 3, "dof1": 40, "dof2": 40},
}
LENGTHS = {"sprites": 737_280, "shapes3d": 480_000, "cars3d": 17_568, "mpi3d": 1_036_800}
SMALL = {
    "sprites": {"size": 32, "sizes": {"orientation": 8, "posX": 8, "posY": 8}},
    "shapes3d": {"size": 32, "sizes": {"floor hue": 4, "wall hue": 4, "scale": 4, "orientation": 5}},
    "cars3d": {"size": 32, "sizes": {"azimuth": 8, "elevation": 2, "identity": 30}},
    "mpi3d": {"size": 32, "sizes": {"camera height": 2, "dof1": 6, "dof2": 6, "shape": 3}},
    "xy": {"size": 32},
}


@pytest.mark.parametrize("name", TABLES)
def test_the_tables_are_those_of_the_originals(name):
    world = worlds.make(name)
    assert dict(zip(world.names, world.sizes, strict=True)) == TABLES[name]
    assert len(world) == LENGTHS[name] == len(world.factors)
    assert world.shape == (1 if name == "sprites" else 3, 64, 64)
    at = np.random.default_rng(0).integers(0, len(world), 50)
    assert np.array_equal(world.factors[at] @ world.strides, at)
    assert np.array_equal(np.stack(np.unravel_index(at, world.sizes), axis=1), world.factors[at])
    assert [f.name for f in world.details] == list(world.names)


def test_the_constant_colour_of_sprites_is_no_factor_unless_asked_for():
    assert worlds.make("sprites").constants == {"colour": "white"}
    kept = worlds.make("sprites", constants=True)
    assert kept.names == ("colour", "shape", "scale", "orientation", "posX", "posY")
    assert kept.sizes[0] == 1
    assert np.array_equal(kept.images([[0, 1, 2, 3, 4, 5]]), worlds.make("sprites").images([[1, 2, 3, 4, 5]]))


@pytest.mark.parametrize("name", worlds.names())
def test_images_are_deterministic_in_range_and_the_same_however_they_are_asked_for(name):
    world = worlds.make(name, **SMALL.get(name, {}))
    some = world.sample(70, seed=1)
    images = some.x
    assert images.dtype == np.float32
    assert images.shape == (70, *world.shape)
    assert images.min() >= 0
    assert images.max() <= 1
    again = worlds.make(name, **SMALL.get(name, {})).sample(70, seed=1)
    assert np.array_equal(images, again.x)
    assert np.array_equal(images[3], some[3][0])
    if name != "digits":
        assert np.array_equal(images, world.images(some.factors))
    assert len(np.unique(images.reshape(70, -1), axis=0)) > 60, "different factors, different images"


def brute(shape, scale, theta, x, y, side, fine=10):
    """A sprite by the sheet's inequalities, thresholded on a fine grid and averaged."""
    at = (np.arange(side * fine) + 0.5) / (side * fine)
    dx, dy, r = at[None, :] - x, at[:, None] - y, 0.145 * scale
    u = (dx * np.cos(theta) + dy * np.sin(theta)) / r
    w = (-dx * np.sin(theta) + dy * np.cos(theta)) / r
    a, b = 1.1 * u, -1.15 * w + 0.1
    inside = (
        np.maximum(abs(u), abs(w)) < 0.9,
        (u / 1.35) ** 2 + (w / 0.75) ** 2 < 1,
        (a**2 + b**2 - 1) ** 3 - a**2 * b**3 < 0,
    )[shape]
    return inside.reshape(side, fine, side, fine).mean(axis=(1, 3))


@pytest.mark.parametrize("side", [24, 64, 100])
def test_sprites_are_the_shapes_of_the_sheet(side):
    world = worlds.make("sprites", size=side)
    rows = world.sample(12, seed=2).factors
    for image, (shape, scale, turn, x, y) in zip(world.images(rows), rows, strict=True):
        want = brute(shape, 0.5 + 0.1 * scale, turn * 2 * np.pi / 40, 0.2 + 0.6 * x / 31, 0.2 + 0.6 * y / 31, side)
        assert abs(image[0] - want).max() < 0.3, "a pixel at a corner"
        edge = 4 * np.sqrt(want.sum())  # about how many pixels the outline runs through
        assert abs(image[0] - want).sum() < 0.09 * edge
        assert abs(image.sum() - want.sum()) < 0.07 * edge


def test_sprites_have_options():
    binary = worlds.make("sprites", size=32, binary=True)
    assert set(np.unique(binary.sample(20, 0).x)) == {0.0, 1.0}
    colour = worlds.make("sprites", size=32, sizes={"colour": 3})
    assert colour.names[0] == "colour"
    red, green = colour.images([[0, 0, 5, 0, 16, 16], [1, 0, 5, 0, 16, 16]])
    assert red[0].max() == green[1].max() == 1
    assert red[1:].max() == green[0].max() == 0
    quarter = worlds.make("sprites", size=32, turn=0.25)
    assert quarter.details[2].values[-1] == pytest.approx(np.pi / 2 * 39 / 40)
    noisy = worlds.make("sprites", size=16, variant="noisy")
    one, other = (worlds.make("sprites", size=16, variant="noisy", seed=s).sample(5, 0).x for s in (0, 1))
    assert one.shape[1] == 3
    assert not np.array_equal(one, other)
    assert np.array_equal(one, noisy.sample(5, 0).x)
    light = worlds.make("sprites", size=32, variant="colour").sample(20, 0).x.max(axis=(2, 3))
    assert 0.45 < light.min() < light.max() <= 1


def test_numbers_from_keys_are_even_and_depend_on_their_key_only():
    values = noise(np.arange(2000), 50, 3)
    assert abs(values.mean() - 0.5) < 0.01
    assert abs(np.histogram(values, 10, (0, 1))[0] / 10_000 - 1).max() < 0.05
    assert abs(np.corrcoef(values[:, :8].T) - np.eye(8)).max() < 0.1
    assert np.array_equal(noise(np.array([7, 3]), 5, 3), values[[7, 3], :5])


def test_squares_cover_exactly_what_they_should():
    world = worlds.make("xy", size=40)
    images = world.images(world.factors[::37])
    side = np.array(world.details[2].values)[world.factors[::37, 2]] * 40
    np.testing.assert_allclose(images.max(axis=1).sum(axis=(1, 2)), side**2, rtol=1e-4)


def march(solid, o, d):
    """The first point of a ray inside a solid, by small steps."""
    t = np.linspace(0.5, 6, 8000)
    inside = solid(o[:, None] + t * d[:, None])
    return t[inside.argmax()] if inside.any() else None


SOLIDS = {
    "sphere": (lambda p: p[0] ** 2 + (p[1] - 0.7) ** 2 + p[2] ** 2 < 0.49, lambda o, d: rays.sphere(o, d, 0.7, 0.7)),
    "cylinder": (
        lambda p: (p[0] ** 2 + p[2] ** 2 < 0.36) & (p[1] > 0) & (p[1] < 1.3),
        lambda o, d: rays.cylinder(o, d, 0.6, 0.0, 1.3),
    ),
    "capsule": (
        lambda p: p[0] ** 2 + (p[1] - np.clip(p[1], 0.45, 1.15)) ** 2 + p[2] ** 2 < 0.45**2,
        lambda o, d: rays.capsule(o, d, 0.45, 0.45, 1.15),
    ),
    "cone": (
        lambda p: (p[0] ** 2 + p[2] ** 2 < ((1.2 - p[1]) / 1.2 * 0.8) ** 2) & (p[1] > 0) & (p[1] < 1.2),
        lambda o, d: rays.cone(o, d, 0.8, 0.0, 1.2),
    ),
    "prism": (
        lambda p: (p[0] > -0.5) & (p[1] > 0) & (p[0] + p[1] < 0.5) & (abs(p[2]) < 0.4),
        lambda o, d: rays.convex(o, d, rays.prism([(-0.5, 0.0), (0.5, 0.0), (-0.5, 1.0)], 0.4)),
    ),
}


@pytest.mark.parametrize("name", SOLIDS)
def test_rays_meet_solids_where_small_steps_find_them(name):
    inside, hit = SOLIDS[name]
    rng = np.random.default_rng(0)
    met = 0
    for _ in range(60):
        eye = rng.normal(size=3)
        eye = 3 * eye / np.linalg.norm(eye)
        d = np.array([0, 0.6, 0]) + rng.normal(size=3) * 0.35 - eye
        d /= np.linalg.norm(d)
        t, normal = hit(eye[:, None].astype(np.float32), d[:, None].astype(np.float32))
        want = march(inside, eye, d)
        if want is None:
            assert t[0] == rays.FAR or t[0] > 6
            continue
        met += 1
        assert abs(t[0] - want) < 5e-3
        assert np.linalg.norm(normal[:, 0]) == pytest.approx(1, abs=1e-2)
        assert normal[:, 0] @ d < 1e-3, "it faces the ray"
    assert met > 15


def test_a_room_has_the_colours_of_its_factors():
    world = worlds.make("shapes3d")
    image = world.images([[2, 5, 8, 7, 0, 7]])[0].transpose(1, 2, 0)
    colours = hues(10)
    for pixel, colour in ((image[60, 32], colours[2]), (image[3, 32], colours[5]), (image[36, 32], colours[8])):
        assert abs(pixel / pixel.max() - colour).max() < 1e-3
    with_other_wall = world.images([[2, 6, 8, 7, 0, 7]])[0].transpose(1, 2, 0)
    changed = abs(image - with_other_wall).max(axis=2) > 0
    assert changed[:10].all()
    assert not changed[45:].any()


def exact(world, rows, images):
    return world.same(world.oracle(images), rows).all(axis=1).mean()


@pytest.mark.parametrize("name", SMALL)
def test_the_oracle_reads_rendered_images_exactly(name):
    world = worlds.make(name, **SMALL[name])
    some = world.sample(60, seed=3)
    read = world.read(some.x)
    assert world.same(read.factors, some.factors).all()
    assert read.distance.max() < 1e-6
    assert read.confidence.min() > 0.99
    rounded = np.round(some.x * 255).astype(np.uint8)
    assert world.same(world.oracle(rounded), some.factors).all()


@pytest.mark.parametrize("name", SMALL)
def test_the_oracle_reads_blurred_and_noisy_images(name):
    world = worlds.make(name, **SMALL[name])
    some = world.sample(50, seed=4)
    soft = gaussian_filter(some.x, (0, 0, 0.8, 0.8)) + 0.05 * np.random.default_rng(0).normal(size=some.x.shape)
    assert exact(world, some.factors, soft) >= 0.9
    assert world.read(soft).confidence.mean() < 0.9


def test_the_oracle_finds_its_way_in_a_large_world():
    world = worlds.make("sprites")
    some = world.sample(40, seed=5)
    assert exact(world, some.factors, some.x) == 1
    soft = gaussian_filter(some.x, (0, 0, 1, 1)) + 0.1 * np.random.default_rng(0).normal(size=some.x.shape)
    assert exact(world, some.factors, soft) >= 0.95
    coloured = worlds.make("sprites", size=32, sizes={"colour": 5, "orientation": 20})
    some = coloured.sample(20, seed=5)
    assert exact(coloured, some.factors, some.x) >= 0.95


def test_images_on_noise_are_read_against_the_mean_of_all_noises():
    world = worlds.make("sprites", variant="noisy")
    some = world.sample(20, seed=5)
    assert exact(world, some.factors, some.x) >= 0.95
    small = worlds.make("sprites", size=32, variant="noisy", sizes={"orientation": 1, "posX": 5, "posY": 5})
    some = small.sample(40, seed=5)
    assert exact(small, some.factors, some.x) >= 0.95


def test_the_oracle_of_the_arm_works_on_the_full_joints():
    world = worlds.make("mpi3d", size=32, sizes={"camera height": 1, "shape": 3, "colour": 3})
    some = world.sample(12, seed=6)
    assert exact(world, some.factors, some.x) >= 0.9


def test_all_of_shapes3d_is_compared_at_once():
    world = worlds.make("shapes3d", size=24)
    some = world.sample(30, seed=7)
    assert exact(world, some.factors, some.x) == 1
    one = worlds.make("shapes3d", size=24, sizes={"shape": 1, "orientation": 1})
    assert one.oracle(one.images([[3, 4, 5, 6]])).tolist() == [[3, 4, 5, 6]]


def test_what_no_image_tells_is_the_same():
    world = worlds.make("sprites", size=64)
    for shape, fold in ((0, 4), (1, 2)):
        turn = 40 // fold
        one, other = world.images([[shape, 5, 3, 10, 10], [shape, 5, 3 + turn, 10, 10]])
        assert abs(one - other).max() < 0.1
        assert world.same([[shape, 5, 3, 10, 10]], [[shape, 5, 3 + turn, 10, 10]]).all()
        assert not world.same([[shape, 5, 3, 10, 10]], [[shape, 5, 4, 10, 10]]).all()
    assert not world.same([[2, 5, 3, 10, 10]], [[2, 5, 23, 10, 10]]).all(), "a heart has one side up"
    assert [period(40, 1.0, f) for f in (4, 2, 1)] == [10, 20, 40]
    assert [period(6, 1.0, f) for f in (4, 2, 1)] == [3, 3, 6]
    assert period(40, 0.25, 4) == 40


def test_discs_take_any_number_and_the_oracle_finds_it():
    world = worlds.make("discs", n=50, seed=2)
    assert world.sizes == (None,) * 4
    assert world.strides is None
    assert abs(world.oracle(world.x) - world.factors).max(axis=0)[:2].max() < 0.01
    assert abs(world.oracle(world.x) - world.factors).mean(axis=0).max() < 0.02
    bright = world.images([[0.5, 0.5, 0.5, 1.0], [0.5, 0.5, 0.5, 0.0]]).max(axis=(1, 2, 3))
    assert bright[0] > 2 * bright[1]
    grid = worlds.make("discs", sizes={"x": 4, "y": 4, "radius": 2, "intensity": 2})
    assert len(grid) == 64
    assert np.array_equal(grid.oracle(grid.x), grid.factors)


def test_digits_are_those_of_scikit_learn():
    from sklearn.datasets import load_digits

    world, (images, kinds) = worlds.make("digits"), load_digits(return_X_y=True)
    assert np.array_equal(world.x.reshape(-1, 64) * 16, images)
    assert np.array_equal(world.factors[:, 0], kinds)
    train, test = world.split(0.8, seed=0)
    assert (world.oracle(world.x) == world.factors).all()
    assert (world.oracle(test.x + 0.1) == test.factors).mean() > 0.98
    drawn = world.images([[3], [3], [7]])
    assert world.oracle(drawn).tolist() == [[3], [3], [7]]
    assert not np.array_equal(drawn[0], drawn[1])
    assert worlds.make("digits", size=20).sample(3, 0).x.shape == (3, 1, 20, 20)
    assert len(train) == 1438


def test_torch_tensors_are_read_and_torch_is_not_needed():
    import torch

    world = worlds.make("xy", size=16)
    assert world.oracle(torch.from_numpy(world.images([[1, 2, 3, 1]])).requires_grad_()).tolist() == [[1, 2, 3, 1]]
    assert world.images(torch.tensor([[1, 2, 3, 1]])).shape == (1, 3, 16, 16)
    code = (
        "import sys; from unbraid.data import worlds\n"
        "for n in worlds.names(): w = worlds.make(n); w.sample(2, 0).x\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def nan_images():
    world = worlds.make("xy", size=16)
    images = world.sample(4, 0).x
    images[2, 0, 3, 3] = np.nan
    return world.oracle(images)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: worlds.make("dsprites"), "there is no world 'dsprites'; there are sprites"),
        (lambda: worlds.make("sprites", sizes={"hue": 3}), "'hue', which is no factor here; there are colour"),
        (lambda: worlds.make("sprites", sizes={"shape": 4}), "it can have 1 to 3"),
        (lambda: worlds.make("sprites", sizes={"posX": 0}), "it can have 1 or more"),
        (lambda: worlds.make("sprites", sizes={"posX": True}), "it can have 1 or more"),
        (lambda: worlds.make("sprites", turn=2), "at most 1, a full turn"),
        (lambda: worlds.make("sprites", variant="scream"), "choose from plain, colour, noisy"),
        (lambda: worlds.make("sprites", variant="colour", sizes={"colour": 3}), "cannot be a factor too"),
        (lambda: worlds.make("shapes3d", turn=0.5), "shapes3d has no option 'turn'; it has sizes"),
        (lambda: worlds.make("xy", size=4), "8 to 1024"),
        (lambda: worlds.make("xy", size=16.5), "8 to 1024"),
        (lambda: worlds.make("xy", seed=-1), "whole number from 0"),
        (lambda: worlds.make("xy", n=5), "n is for continuous worlds"),
        (lambda: worlds.make("discs", n=0), "1 or more"),
        (lambda: worlds.make("discs", sizes={"x": 3}), "or none"),
        (lambda: worlds.make("digits", sizes={"digit": 3}), "no option 'sizes'"),
        (lambda: worlds.make("xy", sizes=dict.fromkeys(("x", "y", "scale", "colour"), 1)), "one value only"),
        (lambda: worlds.make("xy").images([[0, 0, 0]]), r"shape \[n, 4\] \(x, y, scale, colour\)"),
        (lambda: worlds.make("xy").images([[0, 0, 5, 0]]), "'scale' takes whole numbers from 0 to 4, not 5"),
        (lambda: worlds.make("xy").images([[0, 0.5, 0, 0]]), "whole numbers"),
        (lambda: worlds.make("xy").images([[np.nan, 0, 0, 0]]), "from 0 to 15, not nan"),
        (lambda: worlds.make("discs").images([[0, 0, 1.5, 0]]), "numbers from 0 to 1"),
        (lambda: worlds.make("discs").index([[0, 0, 0, 0]]), "no grid"),
        (lambda: worlds.make("xy", size=16).oracle(np.zeros((2, 1, 16, 16))), r"shape \[n, 3, 16, 16\]"),
        (lambda: worlds.make("xy", size=16).oracle(np.zeros((0, 3, 16, 16))), "no image"),
        (nan_images, "1 of 4 images hold NaN or infinity, the first of them image 2"),
        (lambda: worlds.make("sprites").x, "12 GB; take sample"),
        (lambda: worlds.describe("moon"), "there is no world"),
    ],
)
def test_bad_input_is_one_sentence(make, message):
    with pytest.raises(UnbraidError, match=message):
        make()
