"""Before anything is imported: no hub, and shapes of the engine checked as they are annotated (under pytest only)."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from jaxtyping import install_import_hook

install_import_hook(["unbraid.core.engine.logits", "unbraid.core.engine.fused"], "beartype.beartype")
