"""Systems are found by looking into folders, and what is wrong with one is said without hiding the others."""

import os
import sys

import pytest

import unbraid
from support.dummy import SLUG, write_dummy
from unbraid.core import registry
from unbraid.core.errors import UnbraidError


@pytest.fixture
def place(tmp_path, monkeypatch):
    write_dummy(tmp_path / "one")
    monkeypatch.setenv("UNBRAID_SYSTEMS_PATH", str(tmp_path / "one"))
    yield tmp_path / "one"
    for name in [m for m in sys.modules if m.startswith(("unbraid.systems.dummy_steps", "unbraid.systems.good_one"))]:
        del sys.modules[name]


def test_a_folder_on_the_path_is_a_system(place):
    assert SLUG in unbraid.list_systems()
    assert unbraid.describe(SLUG).year == 2024
    assert registry.folder(SLUG) == place / SLUG
    assert registry.load_run(SLUG).__name__ == "run"


def test_it_is_gone_when_the_path_is(place, monkeypatch):
    assert SLUG in unbraid.list_systems()
    monkeypatch.delenv("UNBRAID_SYSTEMS_PATH")
    assert SLUG not in unbraid.list_systems()
    with pytest.raises(UnbraidError, match="no system 'dummy_steps'"):
        unbraid.create(SLUG)


def test_the_same_slug_elsewhere_is_read_anew(place, tmp_path, monkeypatch):
    assert unbraid.describe(SLUG).year == 2024
    other = write_dummy(tmp_path / "two")
    (other / "__init__.py").write_text((other / "__init__.py").read_text().replace("year=2024", "year=2019"))
    monkeypatch.setenv("UNBRAID_SYSTEMS_PATH", str(tmp_path / "two"))
    assert unbraid.describe(SLUG).year == 2019


def test_several_folders_and_the_first_wins(place, tmp_path, monkeypatch):
    write_dummy(tmp_path / "two")
    monkeypatch.setenv("UNBRAID_SYSTEMS_PATH", os.pathsep.join([str(place), str(tmp_path / "two")]))
    assert registry.folder(SLUG) == place / SLUG


def test_create_keeps_the_arguments(place):
    places = (5, 6)
    counter = unbraid.create(SLUG, places=places, steps=2)
    assert type(counter).__name__ == "Counter"
    assert counter.places is places
    assert counter.get_params() == {"steps": 2, "rate": 0.5, "places": places, "model": None}


def test_the_base_class_loads_any_system(place, tmp_path):
    folder = unbraid.create(SLUG).fit().save_pretrained(tmp_path / "saved")
    back = unbraid.System.from_pretrained(folder)
    assert type(back).__name__ == "Counter"
    assert back.sum_.tolist() == [0.0, 0.5, 1.0]


@pytest.mark.parametrize(
    ("pattern", "field", "verb", "found"),
    [
        ("*", None, None, True),
        ("dummy*", "theory", "see", True),
        ("*", None, "separate", True),
        ("nothing*", None, None, False),
        ("*", None, "swap", False),
    ],
)
def test_filters(place, pattern, field, verb, found):
    assert (SLUG in registry.list_systems(pattern, field=field, verb=verb)) is found


def test_unknown_words_name_the_known_ones(place):
    with pytest.raises(UnbraidError, match="the verbs are see, steer, swap, separate"):
        registry.list_systems(verb="look")
    with pytest.raises(UnbraidError, match=r"no system has the field 'cooking'; the fields are .*theory"):
        registry.list_systems(field="cooking")
    with pytest.raises(UnbraidError, match="did you mean dummy_steps"):
        registry.describe("dumy_step")
    with pytest.raises(UnbraidError, match="`unbraid list` shows all"):
        registry.describe("zzzzzzzzz")
    with pytest.raises(UnbraidError, match="no argument 'stepz'; it has steps, rate"):
        unbraid.create(SLUG, stepz=1)


def edit(place, name, old, new):
    path = place / SLUG / name
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('slug="dummy_steps"', 'slug="other"', "calls itself 'other'"),
        ("CARD = Card(", "WRONG = Card(", "has no CARD"),
        ("year=2024", "year='x'", "year is 'x'"),
        ("CARD = Card(", "import not_a_module_at_all\nCARD = Card(", "ModuleNotFoundError"),
        ("CARD = Card(", "CARD = = Card(", "SyntaxError"),
    ],
)
def test_a_broken_folder_warns_and_hides_nothing(place, tmp_path, monkeypatch, old, new, said):
    good = write_dummy(tmp_path / "good")
    text = (good / "__init__.py").read_text().replace('"dummy_steps"', '"good_one"')
    (good / "__init__.py").write_text(text)
    good.rename(tmp_path / "good" / "good_one")
    monkeypatch.setenv("UNBRAID_SYSTEMS_PATH", os.pathsep.join([str(place), str(tmp_path / "good")]))
    edit(place, "__init__.py", old, new)
    with pytest.warns(UserWarning, match=said):
        listed = registry.list_systems()
    assert "good_one" in listed
    assert SLUG not in listed
    assert said in registry.problems()[SLUG]
    with pytest.raises(UnbraidError, match=said):
        registry.describe(SLUG)


def test_a_path_that_is_no_folder_warns(monkeypatch, tmp_path):
    monkeypatch.setenv("UNBRAID_SYSTEMS_PATH", str(tmp_path / "missing"))
    with pytest.warns(UserWarning, match="which is not a folder"):
        registry.list_systems()


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('RUN = "study:run"', "", r'must set RUN = "module:name"'),
        ('RUN = "study:run"', 'RUN = "study"', r'must set RUN = "module:name"'),
        ('RUN = "study:run"', 'RUN = "study:walk"', "has no 'walk'"),
        ('RUN = "study:run"', 'RUN = "study:annotations"', "not a function"),
    ],
)
def test_a_wrong_pointer_says_what_it_must_be(place, old, new, said):
    edit(place, "__init__.py", old, new)
    with pytest.raises(UnbraidError, match=said):
        registry.load_run(SLUG)


def test_a_class_that_is_no_system_is_refused(place):
    edit(place, "method.py", "class Counter(System)", "class Counter")
    with pytest.raises(UnbraidError, match="not a subclass"):
        registry.load_class(SLUG)


def test_a_missing_extra_gives_the_install_line(place, monkeypatch):
    edit(place, "__init__.py", 'verbs=("see", "separate"),', 'verbs=("see",), extras=("neuro", "viz"),')
    monkeypatch.setattr(registry, "missing_packages", lambda extra: ["mne>=1.8"] if extra == "neuro" else [])
    with pytest.raises(UnbraidError, match=r'pip install "unbraid\[neuro\]"'):
        unbraid.create(SLUG)


def test_a_module_that_fails_on_a_missing_package_gives_the_install_line(place, monkeypatch):
    edit(place, "__init__.py", 'verbs=("see", "separate"),', 'verbs=("see",), extras=("neuro",),')
    edit(place, "method.py", "import numpy as np", "import numpy as np\nimport not_a_module_at_all")
    monkeypatch.setattr(registry, "missing_packages", lambda extra: [])
    with pytest.raises(UnbraidError, match=r'pip install "unbraid\[neuro\]"'):
        unbraid.create(SLUG)


def test_extras_are_read_from_the_package_metadata(monkeypatch):
    import importlib.metadata as metadata

    monkeypatch.setattr(metadata, "requires", lambda name: ['aa>=2; extra == "x"', 'bb; extra == "y"', "cc"])
    monkeypatch.setattr(metadata, "version", lambda name: {"aa": "1.9", "bb": "1", "cc": "1"}[name])
    assert registry.missing_packages("x") == ["aa>=2"]
    assert registry.missing_packages("y") == []
