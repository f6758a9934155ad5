"""What every system owes its users, checked for all that discovery finds, and for a dummy in a temporary folder."""

from __future__ import annotations

import ast
import atexit
import inspect
import os
import re
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import metadata
from pathlib import Path

import pytest
from sklearn.base import clone

import unbraid
from support.dummy import code_blocks, write_dummy
from unbraid.cli import docstrings
from unbraid.cli.options import options, parameter_types
from unbraid.core import registry

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "transformers", "diffusers", "numpy", "scipy", "sklearn", "matplotlib", "pandas", "huggingface_hub")

# the dummy shows that these tests also hold for systems outside the package; discovery needs it before collection
_PLACE = tempfile.mkdtemp()
atexit.register(shutil.rmtree, _PLACE, ignore_errors=True)
write_dummy(Path(_PLACE))
SEARCHED = os.pathsep.join(entry for entry in (os.environ.get(registry.PATH_VARIABLE), _PLACE) if entry)
with pytest.MonkeyPatch.context() as patch:
    patch.setenv(registry.PATH_VARIABLE, SEARCHED)
    SLUGS = unbraid.list_systems()
    OURS = [slug for slug in SLUGS if registry.folder(slug).is_relative_to(ROOT)]


@pytest.fixture(autouse=True)
def searched(monkeypatch):
    monkeypatch.setenv(registry.PATH_VARIABLE, SEARCHED)


def sources(slug: str) -> list[Path]:
    return sorted(registry.folder(slug).rglob("*.py"))


def needs_extras(slug: str) -> None:
    missing = registry.missing_extras(unbraid.describe(slug))
    assert not missing, f"the tests of {slug} need the extra {missing}; add it to the extra `dev` in pyproject.toml"


def test_discovery_finds_the_dummy_and_every_folder_is_readable():
    assert "dummy_steps" in SLUGS
    assert registry.problems() == {}


def test_listing_all_systems_imports_nothing_heavy():
    code = (
        "import sys, unbraid\nfor slug in unbraid.list_systems():\n    unbraid.describe(slug)\n"
        f"print(*[m for m in {HEAVY} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize("slug", SLUGS)
def test_the_card_is_complete(slug):
    card = unbraid.describe(slug)
    assert card.slug == slug == registry.folder(slug).name
    assert card.arxiv or card.code, "a paper has an arXiv id, or at least an address of its code"
    assert card.claims, "a system puts at least one claim to the test"
    for claim in card.claims:
        assert claim.name
        assert claim.statement
        assert claim.source
    declared = set(metadata("unbraid").get_all("Provides-Extra") or [])
    assert set(card.extras) <= declared, "extras are those that pyproject.toml declares"


@pytest.mark.parametrize("slug", SLUGS)
def test_arguments_have_defaults_and_are_stored_unchanged(slug):
    needs_extras(slug)
    maker = registry.load_class(slug)
    assert maker.card is unbraid.describe(slug)
    parameters = inspect.signature(maker).parameters
    assert all(p.default is not p.empty for p in parameters.values()), "every constructor argument has a default"
    assert set(parameters) <= set(parameter_types(maker.__init__)), "every constructor argument has a type"
    assert set(parameters) <= set(docstrings.arguments(maker)), "every constructor argument is explained under Args:"
    system = unbraid.create(slug)
    kept = system.get_params(deep=False)
    assert list(kept) == list(parameters)
    for name, parameter in parameters.items():
        assert kept[name] is parameter.default, name
        marker = object()  # whatever is given is kept: checks belong where the value is used
        assert unbraid.create(slug, **{name: marker}).get_params(deep=False)[name] is marker, name
        assert unbraid.create(slug).set_params(**{name: marker}).get_params(deep=False)[name] is marker, name
    assert not [name for name in system.get_learned() if name in vars(system)], "nothing is learned before fit"
    assert repr(clone(system)) == repr(system)


@pytest.mark.parametrize("slug", SLUGS)
def test_saving_and_loading(slug, tmp_path, monkeypatch):
    needs_extras(slug)
    import pickle

    system = unbraid.create(slug)
    folder = system.save_pretrained(tmp_path / "saved")
    assert {path.suffix for path in folder.iterdir()} <= {".json", ".safetensors"}
    monkeypatch.setattr(pickle, "loads", lambda *a, **k: pytest.fail("unpickled"))
    monkeypatch.setattr(pickle, "Unpickler", lambda *a, **k: pytest.fail("unpickled"))
    for back in (type(system).from_pretrained(folder), unbraid.System.from_pretrained(folder)):
        assert type(back) is type(system)
        assert back.get_params() == system.get_params()


@pytest.mark.parametrize("slug", SLUGS)
def test_the_study_is_typed_and_every_option_explained(slug):
    needs_extras(slug)
    run = registry.load_run(slug)
    parameters = inspect.signature(run).parameters
    assert set(parameters) <= set(parameter_types(run)), "every parameter has a type"
    assert all(p.default is not p.empty for p in parameters.values()), "every parameter has a default"
    unexplained = set(parameters) - set(docstrings.arguments(run))
    assert not unexplained, f"under Args: {unexplained} are missing"
    assert docstrings.summary(run)
    offered = {option.name for option in options(run)}
    assert set(parameters) <= offered, "every parameter can be given on the command line"
    assert "Result" in str(inspect.signature(run).return_annotation)
    assert "seed" in parameters, "randomness comes through a seed"


@pytest.mark.parametrize("slug", SLUGS)
def test_the_command_line_knows_its_study(slug, capsys):
    from unbraid.cli import main

    needs_extras(slug)
    with pytest.raises(SystemExit) as left:
        main(["run", slug, "--help"])
    assert left.value.code == 0
    assert "--seed" in capsys.readouterr().out


@pytest.mark.parametrize("slug", SLUGS)
def test_the_readme_begins_with_a_snippet_that_runs(slug, tmp_path):
    needs_extras(slug)
    readme = registry.folder(slug) / "README.md"
    assert readme.is_file()
    text = readme.read_text(encoding="utf-8")
    assert text.startswith("# ")
    blocks = [code for language, _, code in code_blocks(text) if language == "python"]
    assert blocks, "the README has a Python block, which the papers index shows"
    for code in blocks:
        compile(code, str(readme), "exec")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    line = [sys.executable, "-W", "error::SyntaxWarning", "-c", blocks[0]]
    done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("slug", OURS)
def test_its_own_tests_exist(slug):
    path = ROOT / "tests" / "systems" / f"test_{slug}.py"
    assert path.is_file()
    assert re.search(r"^def test_", path.read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("slug", SLUGS)
def test_systems_never_import_one_another(slug):
    others = "|".join(re.escape(other) for other in SLUGS if other != slug)
    for path in sources(slug):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                assert node.level < 2, f"{path}: an import from above its own folder"
                names = [node.module or ""] + [f"{node.module}.{alias.name}" for alias in node.names]
            for name in names:
                assert not re.match(rf"unbraid\.systems\.({others or '$^'})(\.|$)", name), f"{path} imports {name}"


@pytest.mark.parametrize("slug", SLUGS)
def test_rules_of_the_house(slug):
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        from house import breaches
    finally:
        sys.path.pop(0)
    found = [line for path in sources(slug) for line in breaches(path, path.name)]
    assert not found
