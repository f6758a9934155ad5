"""Rules that hold for the package as a whole: what it depends on, what importing it costs, what no file may hold."""

from __future__ import annotations

import importlib.util
import pkgutil
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import unbraid

ROOT = Path(__file__).resolve().parents[2]
TRAP = {"torchvision", "torchaudio", "timm"}


def imported_by(code: str) -> set[str]:
    line = f"{code}\nimport sys\nprint(*sorted(m for m in sys.modules if '.' not in m))"
    done = subprocess.run([sys.executable, "-c", line], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_unbraid_imports_no_torch():
    assert not {"torch", "transformers", "numpy", "rich", "typer"} & imported_by("import unbraid")


def test_every_public_name_resolves():
    for name in unbraid.__all__:
        assert hasattr(unbraid, name), name
    assert set(unbraid.__all__) <= set(dir(unbraid))


def test_metrics_need_numpy_and_scikit_learn_only():
    if importlib.util.find_spec("unbraid.metrics") is None:
        assert not (ROOT / "src" / "unbraid" / "metrics").exists()
        return
    package = importlib.import_module("unbraid.metrics")
    names = [m.name for m in pkgutil.walk_packages(package.__path__, "unbraid.metrics.")]
    code = "\n".join(f"import {name}" for name in ["unbraid.metrics", *names])
    assert not {"torch", "transformers", "matplotlib", "pandas"} & imported_by(code)


def closure(names: set[str]) -> set[str]:
    """Everything that the installed metadata says comes along."""
    seen: set[str] = set()
    todo = [Requirement(name) for name in names]
    while todo:
        need = todo.pop()
        key = f"{canonicalize_name(need.name)}[{','.join(sorted(need.extras))}]"
        if key in seen:
            continue
        seen.add(key)
        try:
            declared = [Requirement(line) for line in requires(need.name) or []]
        except PackageNotFoundError:
            continue
        extras = ["", *need.extras]
        todo += [x for x in declared if x.marker is None or any(x.marker.evaluate({"extra": e}) for e in extras)]
    return {key.partition("[")[0] for key in seen}


def test_torchvision_and_torchaudio_are_not_in_the_closure():
    found = closure({"unbraid[all,dev,docs]"})
    assert {"torch", "transformers", "pytest", "mkdocs-material"} <= found
    assert not TRAP & found


def test_torchvision_and_torchaudio_are_not_pinned_or_installed():
    assert not TRAP & {canonicalize_name(name) for name in pins()}
    assert not [name for name in ("torchvision", "torchaudio") if importlib.util.find_spec(name)]


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


def test_every_version_is_pinned_and_no_place_is_named():
    found = pins()
    assert found["torch"] == "2.13.0"
    assert all(re.fullmatch(r"[0-9][0-9a-z.]*", version) for version in found.values())
    pinned = {canonicalize_name(name) for name in found}
    installed = closure({"unbraid[all,dev,docs]"}) - {"unbraid"}
    # what only other machines need (CUDA, Windows) is fixed by torch itself or never installed here
    here = {name for name in installed if importlib.util.find_spec(name.replace("-", "_"))}
    assert here <= pinned | {"pip"}


def test_the_pins_satisfy_what_the_package_asks_for():
    versions = {canonicalize_name(name): version for name, version in pins().items()}
    for line in requires("unbraid"):
        need = Requirement(line)
        if canonicalize_name(need.name) != "unbraid":
            assert need.specifier.contains(versions[canonicalize_name(need.name)], prereleases=True), line


@pytest.mark.parametrize(
    "name", ["constraints.txt", "Makefile", "pyproject.toml", ".ci/run", ".pre-commit-config.yaml"]
)
def test_no_registry_host_is_named(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    assert not re.search(r"https?://|index-url|pypi\.org|pythonhosted|/opt/", text)


def test_makefile_and_ci_run_the_same_tests():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "torch==2.13.0" in makefile
    for target in ("demo", "test", "lint", "docs", "bench", "studies"):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "set -euo pipefail" in script
    assert re.search(r"^make test$", script, re.MULTILINE)
    assert "make test" in (ROOT / "README.md").read_text(encoding="utf-8")
    subprocess.run(["bash", "-n", str(ROOT / ".ci" / "run")], check=True)


def test_skipped_tests_have_a_line_in_the_quarantine():
    listed = (ROOT / "tests" / "QUARANTINE.md").read_text(encoding="utf-8")
    pattern = re.compile(r"pytest\.(?:mark\.(?:skip|skipif|xfail)|skip|xfail|importorskip)\b")
    for path in sorted((ROOT / "tests").rglob("*.py")):
        if path != Path(__file__) and pattern.search(path.read_text(encoding="utf-8")):
            name = str(path.relative_to(ROOT / "tests"))
            assert name in listed, f"{name} skips tests; give each a line and its reason in tests/QUARANTINE.md"
