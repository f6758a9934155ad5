"""Cards refuse what is wrong; systems keep their configuration and come back from disk as they were."""

import json
import pickle
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone

from unbraid.core.encoding import decode, encode
from unbraid.core.errors import UnbraidError
from unbraid.core.heads import HeadScores, HeadSet
from unbraid.core.system import Card, ClaimSpec, System

CARD = Card("toy", "A toy", "2404.15574", 2024, "language", ("see",))


class Toy(System):
    """Holds whatever it is given."""

    card = CARD

    def __init__(self, size: object = 3, *, inner: object = None) -> None:
        self.size = size
        self.inner = inner


class Net(Toy):
    """Learns a module."""

    def build_module(self, name: str) -> torch.nn.Module:
        """Make the module."""
        assert name == "net_"
        return torch.nn.Linear(self.size, 2)


def same(a: object, b: object) -> bool:
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and type(a) is type(b) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, HeadScores):
        return isinstance(b, HeadScores) and repr(a.to_dict()) == repr(b.to_dict())
    return type(a) is type(b) and (a == b or (a != a and b != b))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"slug": "Big Name"}, "slug"),
        ({"title": " "}, "title"),
        ({"arxiv": "arXiv:2404.15574"}, "arxiv"),
        ({"year": 24}, "year"),
        ({"field": "Natural language"}, "field"),
        ({"verbs": ()}, "verbs"),
        ({"verbs": ("look",)}, "verbs"),
        ({"verbs": ["see"]}, "verbs"),
        ({"extras": ("",)}, "extras"),
        ({"claims": (ClaimSpec("a", "", ""), ClaimSpec("a", "", ""))}, "claims"),
    ],
)
def test_a_wrong_card_names_the_field(change, named):
    fields = {"slug": "toy", "title": "T", "arxiv": "", "year": 2024, "field": "vision", "verbs": ("see",)} | change
    with pytest.raises(UnbraidError, match=f": {named} is "):
        Card(**fields)


def test_a_card_knows_its_paper_and_cannot_change():
    assert CARD.url == "https://arxiv.org/abs/2404.15574"
    with pytest.raises(AttributeError):
        CARD.slug = "other"


def test_arguments_are_kept_unchanged_and_can_be_set():
    size = [1, 2]
    toy = Toy(size, inner=Toy(7))
    assert toy.get_params(deep=False)["size"] is size
    assert toy.get_params()["inner__size"] == 7
    assert toy.set_params(size=4, inner__size=8) is toy
    assert (toy.size, toy.inner.size) == (4, 8)
    with pytest.raises(UnbraidError, match="no argument 'depth'; it has size, inner"):
        toy.set_params(depth=1)
    copy = clone(toy)
    assert copy is not toy
    assert repr(copy) == repr(toy) == "Toy(size=4, inner=Toy(size=8, inner=None))"


def test_a_constructor_with_unnamed_options_is_refused():
    class Loose(System):
        card = CARD

        def __init__(self, **options: object) -> None:
            self.options = options

    with pytest.raises(UnbraidError, match=r"takes \*options"):
        Loose().get_params()


LEARNED = {
    "array_": np.array([[1.5, np.nan], [np.inf, 0]], dtype=np.float64),
    "empty_": np.zeros((0, 3), dtype=np.int8),
    "flat_": np.array(3, dtype=np.int32),
    "turned_": np.arange(6, dtype=np.float32).reshape(2, 3).T,
    "half_": torch.arange(3, dtype=torch.bfloat16),
    "weight_": torch.nn.Parameter(torch.ones(2)),
    "state_": {"a.b": torch.ones(1), "a": {"b": torch.zeros(1)}, "$": 1, 3: "three"},
    "heads_": HeadSet([("layers.1", 3), ("layers.0", 1)]),
    "scores_": HeadScores(
        {"layers.0": [0.1, float("nan")]}, name="mass", low={"layers.0": [0, 0]}, high={"layers.0": [1, 2]}
    ),
    "mixed_": [(1, 2.5), {1, 2}, frozenset({"x"}), Path("a/b"), float("-inf"), None, True, "text <&>"],
    "dtype_": torch.float16,
    "device_": torch.device("cpu"),
}


def test_everything_that_can_be_learned_survives_the_disk(tmp_path):
    toy = Toy((1, "a"), inner={"rate": 0.1})
    for name, value in LEARNED.items():
        setattr(toy, name, value)
    toy._private_ = object()
    toy.scratch = object()
    folder = toy.save_pretrained(tmp_path / "new" / "toy")
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "model.safetensors"]
    back = Toy.from_pretrained(folder)
    assert back.get_params() == toy.get_params()
    learned = back.get_learned()
    assert list(learned) == list(LEARNED)
    for name, value in LEARNED.items():
        assert same(value, learned[name]), name
    json.loads((folder / "config.json").read_text(), parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))


json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(json_like)
def test_any_nest_of_plain_values_comes_back(value):
    arrays = {}
    text = json.dumps(encode(value, arrays, "v"), allow_nan=False)
    assert same(value, decode(json.loads(text), arrays))


def test_a_learned_module_comes_back_through_build_module(tmp_path):
    net = Net(3)
    net.net_ = torch.nn.Linear(3, 2)
    back = Net.from_pretrained(net.save_pretrained(tmp_path))
    assert torch.equal(back.net_.weight, net.net_.weight)
    toy = Toy(3)
    toy.net_ = torch.nn.Linear(3, 2)
    with pytest.raises(UnbraidError, match="does not define build_module"):
        Toy.from_pretrained(toy.save_pretrained(tmp_path / "toy"))


def test_tied_tensors_can_be_saved(tmp_path):
    toy = Toy()
    toy.a_ = torch.arange(4.0)
    toy.b_ = toy.a_.view(2, 2).T
    back = Toy.from_pretrained(toy.save_pretrained(tmp_path))
    assert torch.equal(back.b_, toy.b_)


def test_an_argument_that_cannot_be_saved_is_asked_for(tmp_path):
    model = torch.nn.Linear(1, 1)
    folder = Toy({"models": [model]}).save_pretrained(tmp_path)
    with pytest.raises(UnbraidError, match=r"saved without 'size' \(a dict\)"):
        Toy.from_pretrained(folder)
    assert Toy.from_pretrained(folder, size=model).size is model


def test_what_cannot_be_learned_is_refused_before_anything_is_written(tmp_path):
    toy = Toy()
    toy.function_ = print
    with pytest.raises(UnbraidError, match="function_ is a builtin_function_or_method"):
        toy.save_pretrained(tmp_path / "toy")
    assert not (tmp_path / "toy").exists()
    toy.function_ = np.array(["a"], dtype=object)
    with pytest.raises(UnbraidError, match="array of object"):
        toy.save_pretrained(tmp_path / "toy")


def test_files_that_do_not_belong_together_are_refused(tmp_path):
    first, second = Toy(), Toy()
    first.a_, second.a_ = np.zeros(2), np.ones(2)
    first.save_pretrained(tmp_path / "1")
    second.save_pretrained(tmp_path / "2")
    (tmp_path / "1" / "model.safetensors").write_bytes((tmp_path / "2" / "model.safetensors").read_bytes())
    with pytest.raises(UnbraidError, match="interrupted"):
        Toy.from_pretrained(tmp_path / "1")
    (tmp_path / "1" / "model.safetensors").unlink()
    with pytest.raises(UnbraidError, match=r"no model\.safetensors"):
        Toy.from_pretrained(tmp_path / "1")


def test_saving_again_leaves_no_stale_weights(tmp_path):
    toy = Toy()
    toy.a_ = np.zeros(2)
    toy.save_pretrained(tmp_path)
    Toy().save_pretrained(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["config.json"]
    assert Toy.from_pretrained(tmp_path).get_learned() == {}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "has no config.json"),
        ("{", "is not JSON"),
        ("[]", "not written by Unbraid"),
        ('{"unbraid_format": 9, "slug": "toy", "params": {}, "learned": {}}', "format 9"),
        ('{"unbraid_format": 1, "slug": "other", "params": {}, "learned": {}}', "holds the system 'other'"),
        (
            '{"unbraid_format": 1, "slug": "toy", "params": {"size": {"$": "pickle"}}, "learned": {}}',
            "of kind 'pickle'",
        ),
    ],
)
def test_a_folder_with_other_things_is_refused(tmp_path, text, said):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(UnbraidError, match=said):
        Toy.from_pretrained(tmp_path)


def test_unknown_arguments_and_places_are_refused(tmp_path):
    folder = Toy().save_pretrained(tmp_path / "toy")
    with pytest.raises(UnbraidError, match="no argument 'depth'"):
        Toy.from_pretrained(folder, depth=1)
    with pytest.raises(UnbraidError, match="there is no folder"):
        Toy.from_pretrained(tmp_path / "nowhere")


def test_a_hub_that_cannot_be_reached_is_one_sentence(monkeypatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *a, **k: (_ for _ in ()).throw(OSError("offline")))
    with pytest.raises(UnbraidError, match=r"could it be had from the Hugging Face hub \(offline\)"):
        Toy.from_pretrained("someone/something")


def test_hub_id_is_downloaded_with_only_our_files(tmp_path, monkeypatch):
    folder = Toy(5).save_pretrained(tmp_path)
    asked = {}

    def download(repo_id, revision=None, allow_patterns=None):
        asked.update(repo_id=repo_id, revision=revision, patterns=allow_patterns)
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert Toy.from_pretrained("me/toy", revision="v1").size == 5
    assert asked == {"repo_id": "me/toy", "revision": "v1", "patterns": ["config.json", "model.safetensors"]}


def test_push_uploads_what_save_writes_and_a_card(monkeypatch):
    seen = {}

    class Api:
        def __init__(self, token=None):
            seen["token"] = token

        def create_repo(self, repo_id, private=None, exist_ok=False):
            seen["repo"] = (repo_id, private, exist_ok)

        def upload_folder(self, repo_id, folder_path, commit_message):
            seen["files"] = {p.name: p.read_text() for p in Path(folder_path).iterdir()}
            return SimpleNamespace(commit_url="https://example/commit/1")

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    assert Toy(5).push_to_hub("me/toy", private=True, token="t") == "https://example/commit/1"
    assert seen["repo"] == ("me/toy", True, True)
    assert set(seen["files"]) == {"config.json", "README.md"}
    assert "library_name: unbraid" in seen["files"]["README.md"]
    assert "2404.15574" in seen["files"]["README.md"]


def test_nothing_is_unpickled(tmp_path, monkeypatch):
    toy = Toy()
    toy.a_, toy.b_ = torch.ones(2), np.ones(2)
    monkeypatch.setattr(pickle, "loads", lambda *a, **k: pytest.fail("unpickled"))
    monkeypatch.setattr(pickle, "Unpickler", lambda *a, **k: pytest.fail("unpickled"))
    monkeypatch.setattr(torch, "load", lambda *a, **k: pytest.fail("unpickled"))
    Toy.from_pretrained(toy.save_pretrained(tmp_path))
