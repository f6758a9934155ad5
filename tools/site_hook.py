"""Hook of mkdocs: adds the pages that are made from cards, READMEs and saved results; needs no plugin."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

sys.path.insert(0, str(Path(__file__).parent))
os.environ.pop("UNBRAID_SYSTEMS_PATH", None)

import pages

from unbraid.core import registry


def on_config(config: Any) -> Any:
    """Put the generated pages into the navigation."""
    for entry in config["nav"]:
        if "Systems" in entry:
            entry["Systems"] = ["systems/index.md", *(f"systems/{slug}.md" for slug in registry.list_systems())]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Generate the pages."""
    made = {"systems/index.md": pages.systems_index(), "papers.md": pages.papers_page()}
    made |= {f"systems/{slug}.md": pages.system_page(slug) for slug in registry.list_systems()}
    for name, content in made.items():
        files.append(File.generated(config, name, content=content))
    return files
