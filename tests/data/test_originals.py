"""The files of the original data sets (tiny stand-ins of full length) and the command `unbraid worlds`."""

import json
import sys
import types

import numpy as np
import pytest

from unbraid.cli import main
from unbraid.core.errors import UnbraidError
from unbraid.data import worlds
from unbraid.data.tables import grid_rows


def stamped(count, channels=0):
    """Images of 2 x 2 pixels that say which they are, in base 256."""
    at = np.arange(count)
    pixels = np.stack([at % 256, at // 256 % 256, at // 65536, 0 * at], axis=1).astype(np.uint8).reshape(-1, 2, 2)
    return np.repeat(pixels[..., None], channels, axis=3) if channels else pixels


def number(images):
    flat = np.round(images[:, 0].reshape(-1, 4) * 255).astype(int)
    return flat[:, 0] + 256 * flat[:, 1] + 65536 * flat[:, 2]


@pytest.fixture(scope="module")
def dsprites(tmp_path_factory):
    """The members of the real file: images, six columns of classes, and pickled metadata."""
    path = tmp_path_factory.mktemp("original") / "dsprites.npz"
    rows = grid_rows([1, 3, 6, 40, 32, 32])
    metadata = np.array([{"pickled": True}], dtype=object)
    np.savez(path, imgs=stamped(737_280), latents_classes=rows, metadata=metadata)
    return path


def test_dsprites_has_five_factors_and_its_metadata_are_left_alone(dsprites):
    world = worlds.original(dsprites)
    assert world.names == ("shape", "scale", "orientation", "posX", "posY")
    assert world.sizes == (3, 6, 40, 32, 32)
    assert world.constants == {"colour": 0.0}
    some = world.sample(200, seed=0)
    assert np.array_equal(number(some.x), some.factors @ world.strides)
    assert worlds.original(dsprites, constants=True).names[0] == "colour"
    assert world.same([[0, 0, 0, 5, 5]], [[0, 0, 39, 5, 5]]).all(), "both ends of the circle"
    assert not world.same([[0, 0, 1, 5, 5]], [[0, 0, 39, 5, 5]]).all()


def test_unpacked_images_are_memory_mapped_and_found_again(dsprites, tmp_path):
    one = worlds.original(dsprites, keep=tmp_path / "kept")
    assert isinstance(one.scene.pixels, np.memmap)
    files = list((tmp_path / "kept").iterdir())
    assert [f.suffix for f in files] == [".npy"]
    before = files[0].stat().st_mtime_ns
    two = worlds.original(dsprites, "sprites", keep=tmp_path / "kept")
    assert files[0].stat().st_mtime_ns == before
    assert np.array_equal(one.sample(20, 1).x, two.sample(20, 1).x)


def test_cars_in_another_order_are_brought_into_ours(tmp_path):
    np.savez(tmp_path / "cars.npz", images=stamped(17_568, 3))
    world = worlds.original(tmp_path / "cars.npz", order=["identity", "elevation", "azimuth"])
    assert world.names == ("elevation", "azimuth", "identity")
    elevation, azimuth, identity = rows = [3, 10, 100]
    assert number(world.images([rows])) == [identity * 96 + elevation * 24 + azimuth]
    assert number(worlds.original(tmp_path / "cars.npz").images([rows])) == [
        (elevation * 24 + azimuth) * 183 + identity
    ]


def test_the_length_says_which_mpi3d_it_is(tmp_path):
    np.save(tmp_path / "complex.npy", stamped(460_800, 3))
    world = worlds.original(tmp_path / "complex.npy", "mpi3d")
    assert world.sizes == (4, 4, 2, 3, 3, 40, 40)
    some = world.sample(20, 0)
    assert np.array_equal(number(some.x), some.factors @ world.strides)


def test_h5_files_are_read_through_h5py_in_rising_order(tmp_path, monkeypatch):
    class Data(np.ndarray):
        def __getitem__(self, at):
            if isinstance(at, np.ndarray) and at.ndim:
                assert (np.diff(at) > 0).all(), "h5py wants indices rising and once"
            return np.asarray(super().__getitem__(at))

    path = tmp_path / "3dshapes.h5"
    path.write_bytes(b"")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(UnbraidError, match="pip install h5py"):
        worlds.original(path)
    data = {"images": stamped(480_000, 3).view(Data), "labels": None}
    monkeypatch.setitem(sys.modules, "h5py", types.SimpleNamespace(File=lambda file, mode: data))
    world = worlds.original(path)
    assert world.names == worlds.make("shapes3d").names
    rows = world.sample(50, 3, replace=True).factors[[4, 1, 1, 30]]
    assert np.array_equal(number(world.images(rows)), rows @ world.strides)


def test_an_oracle_reads_original_images_too(tmp_path):
    drawn = worlds.make("cars3d", size=8)
    pixels = np.round(drawn.x.transpose(0, 2, 3, 1) * 255).astype(np.uint8)
    np.savez(tmp_path / "cars.npz", images=pixels)
    world = worlds.original(tmp_path / "cars.npz")
    some = world.sample(40, 0)
    assert np.array_equal(world.oracle(some.x), some.factors)


def test_wrong_files_are_one_sentence(tmp_path):
    def refused(path, message, **options):
        with pytest.raises(UnbraidError, match=message):
            worlds.original(path, **options)

    refused(tmp_path / "none.npz", "is no file")
    np.savez(tmp_path / "short.npz", imgs=stamped(100))
    refused(tmp_path / "short.npz", "holds 100 images; whole data sets have: sprites 737,280")
    refused(tmp_path / "short.npz", "and cars3d has 17,568", name="cars3d")
    refused(tmp_path / "short.npz", "no original data set 'norb'", name="norb")
    np.savez(tmp_path / "other.npz", pictures=stamped(10))
    refused(tmp_path / "other.npz", "holds pictures; images are looked for as")
    np.savez(tmp_path / "flat.npz", images=np.zeros((17_568, 4)))
    refused(tmp_path / "flat.npz", "not images")
    np.savez(tmp_path / "objects.npz", images=np.array([{}], dtype=object))
    refused(tmp_path / "objects.npz", "cannot be read")
    (tmp_path / "broken.npz").write_bytes(b"PK\3\4 no zip")
    refused(tmp_path / "broken.npz", "cannot be read")
    (tmp_path / "images.mat").write_bytes(b"")
    refused(tmp_path / "images.mat", "ends in .mat")
    np.savez(tmp_path / "cars.npz", images=stamped(17_568))
    refused(tmp_path / "cars.npz", "order must name each of", order=["identity", "azimuth"])
    np.savez(tmp_path / "turned.npz", images=stamped(17_568), latents_classes=grid_rows([183, 4, 24]))
    refused(tmp_path / "turned.npz", "in another order than the original's")


@pytest.fixture
def cli(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def call(*words):
        with pytest.raises(SystemExit) as left:
            main([str(word) for word in words])
        caught = capsys.readouterr()
        return left.value.code, caught.out, caught.err

    return call


def test_the_command_lists_all_worlds(cli):
    code, out, _ = cli("worlds", "list", "--json")
    assert code == 0
    rows = {row["name"]: row for row in json.loads(out)}
    assert list(rows) == worlds.names()
    assert rows["cars3d"]["factors"] == {"elevation": 4, "azimuth": 24, "identity": 183}
    assert rows["discs"]["factors"]["radius"] == "continuous"
    code, out, _ = cli("worlds", "list")
    assert "737,280" in out


def test_the_command_shows_a_world_on_a_page(cli, tmp_path):
    line = (
        "worlds",
        "show",
        "sprites",
        "--size",
        "16",
        "--sizes",
        "orientation=1,posX=4, posY=4",
        "--out",
        "page",
        "-q",
    )
    code, out, err = cli(*line, "--json")
    assert code == 0, err
    result = json.loads(out)["result"]
    table = result["tables"]["factors"]
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["rows"]]
    assert [(r["factor"], r["values"]) for r in rows] == [("shape", 3), ("scale", 6), ("posX", 4), ("posY", 4)]
    assert all(r["read back"] == 1 for r in rows)
    assert [f["kind"] for f in result["figures"]] == ["image", "image"]
    assert "orientation is always 0" in " ".join(result["notes"])
    assert (tmp_path / "page" / "index.html").is_file()
    code, out, _ = cli("worlds", "show", "discs", "-q")
    assert "mean error" in out


def test_the_command_writes_files_that_numpy_reads(cli, tmp_path):
    code, out, err = cli("worlds", "make", "xy", "--n", "30", "--size", "16", "--out", "deep/some.npz", "-q")
    assert code == 0, err
    assert "30 images of xy, 16x16x3" in out
    with np.load(tmp_path / "deep" / "some.npz", allow_pickle=False) as made:
        assert made["images"].shape == (30, 16, 16, 3)
        want = worlds.make("xy", size=16).images(made["factors"]).transpose(0, 2, 3, 1)
        assert abs(made["images"] / 255 - want).max() <= 0.5 / 255 + 1e-6
        assert made["names"].tolist() == ["x", "y", "scale", "colour"]
        assert made["sizes"].tolist() == [16, 16, 5, 4]
    code, _, err = cli(
        "worlds", "make", "cars3d", "--out", "cars", "--sizes", "azimuth=2,identity=5", "--size", "16", "-q"
    )
    assert code == 0, err
    assert {p.name for p in (tmp_path / "cars").iterdir()} == {"images.npy", "factors.npy", "world.json"}
    kept = np.load(tmp_path / "cars" / "images.npy", mmap_mode="r", allow_pickle=False)
    assert kept.shape == (40, 16, 16, 3)
    assert (
        json.loads((tmp_path / "cars" / "world.json").read_text())["factors"][2]["values"][0] == "short saloon, paint 0"
    )
    code, _, err = cli("worlds", "make", "discs", "--n", "7", "--out", "discs.npz", "-q")
    assert code == 0, err
    with np.load(tmp_path / "discs.npz", allow_pickle=False) as made:
        assert made["factors"].shape == (7, 4)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["show", "moon"], "there is no world 'moon'"),
        (["show", "moon.npz"], "moon.npz is no file"),
        (["show", "moon.npz", "--size", "32"], "its size, sizes and options are what they are"),
        (["show", "xy", "--keep", "here"], "--keep and --order are for original files"),
        (["show", "xy", "--sizes", "x"], "'x' is not name=value"),
        (["show", "xy", "--sizes", "x=many"], "was given 'many' values"),
        (["show", "xy", "--options", "turn=1"], "has no option 'turn'"),
        (["make", "sprites", "--out", "all.npz"], "too many for one .npz"),
        (["make", "xy", "--out", "taken.npz"], "taken.npz exists"),
        (["make", "xy", "--out", "."], "already holds files"),
        (["make", "xy", "--n", "6000", "--out", "a.npz"], "6000 of 5120"),
    ],
)
def test_bad_input_is_one_sentence(cli, tmp_path, words, said):
    (tmp_path / "taken.npz").write_bytes(b"")
    code, out, err = cli("worlds", *words, "-q")
    assert (code, out) == (2, "")
    assert said in err
    assert "Traceback" not in err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["taken.npz"]
