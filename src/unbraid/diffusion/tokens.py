"""New words for a pipeline's text encoders, whose rows alone are trained."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unbraid.core.errors import UnbraidError
from unbraid.diffusion.parts import Parts

KEYS = {
    "sd": ("emb_params",),
    "sdxl": ("clip_l", "clip_g"),
    "sd3": ("clip_l", "clip_g", "t5"),
    "flux": ("clip_l", "t5"),
}


class NewTokens(nn.Module):
    """New words, one row per vector and text encoder, kept apart from the vocabulary: nothing else can be moved.

    The words are there inside `with words.installed():` only; tokenizers and encoders are the pipeline's own again
    afterwards. A word of several vectors is spelt as diffusers does, `<mug> <mug>_1 <mug>_2`.

    Args:
        parts: of the pipeline.
        words: new word -> what it begins as: a word of the vocabulary (its pieces' mean), None for random numbers with
            the mean and spread of the whole vocabulary, or rows [vectors, d] for every encoder.
        vectors: rows per word.
        seed: of random rows.

    Attributes:
        rows: one parameter [words * vectors, d] per text encoder.

    Raises:
        UnbraidError: a word that the vocabulary has, or that is no single word.
    """

    def __init__(self, parts: Parts, words: Mapping[str, str | Tensor | None], vectors: int = 1, seed: int = 0) -> None:
        super().__init__()
        if not words:
            raise UnbraidError("there are no new words; give at least one, such as {'<mug>': 'circle'}.")
        if vectors < 1:
            raise UnbraidError(f"vectors is {vectors}; it must be at least 1.")
        self.words, self.vectors = list(words), vectors
        self.names = [name for word in self.words for name in _spelling(word, vectors)]
        self.__dict__["parts"] = parts  # not as a part of this module: it is nobody's to train or to save here
        for tokenizer, _ in parts.encoders:
            for name in self.names:
                pieces = tokenizer(name, add_special_tokens=False).input_ids
                known = len(pieces) == 1 and pieces[0] != tokenizer.unk_token_id
                if known or not pieces or re.search(r"\s", name):
                    raise UnbraidError(f"{name!r} cannot be a new word: it is in the vocabulary, or not one word.")
        chance = torch.Generator().manual_seed(seed)
        self.rows = nn.ParameterList(
            nn.Parameter(torch.cat([_begin(tokenizer, encoder, words[word], vectors, chance) for word in self.words]))
            for tokenizer, encoder in parts.encoders
        )
        self._computed: dict[str, Tensor] = {}

    @contextmanager
    def installed(self) -> Iterator[NewTokens]:
        """The pipeline knows the words while this lasts."""
        parts: Parts = self.__dict__["parts"]
        own = {key: value for key, value in parts.pipe.components.items() if key.startswith("tokenizer")}
        hooks: list[Any] = []
        try:
            slots = [key for key in ("tokenizer", "tokenizer_2", "tokenizer_3") if own.get(key) is not None]
            for slot, (tokenizer, encoder), rows in zip(slots, list(parts.encoders), self.rows, strict=True):
                wider = copy.deepcopy(tokenizer)
                wider.add_tokens(self.names)
                parts.pipe.register_modules(**{slot: wider})
                ids = wider.convert_tokens_to_ids(self.names)
                weight = encoder.get_input_embeddings().weight
                for table in encoder.modules():  # T5 has its table under two names, as two modules
                    if isinstance(table, nn.Embedding) and table.weight is weight:
                        hooks += _overwrite(table, ids, rows, self)
            yield self
        finally:
            for hook in hooks:
                hook.remove()
            parts.pipe.register_modules(**own)

    @contextmanager
    def computed(self, rows: Mapping[str, Tensor]) -> Iterator[None]:
        """Rows made by a network, for words of this object: word -> [B, d], a row per prompt, gradients included."""
        self._computed = dict(rows)
        try:
            yield
        finally:
            self._computed = {}

    def save(self, folder: str | Path) -> list[Path]:
        """Write a textual-inversion file per word.

        Stable Diffusion 1.x and 2.x: `pipe.load_textual_inversion(file)`. The others have a tensor per encoder
        ("clip_l", "clip_g", "t5"): `load_words` reads them.
        """
        from safetensors.torch import save_file

        parts: Parts = self.__dict__["parts"]
        place = Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        written = []
        for i, word in enumerate(self.words):
            own = slice(i * self.vectors, (i + 1) * self.vectors)
            keys = (word,) if parts.family == "sd" else KEYS[parts.family]
            rows = {k: r.detach()[own].float().cpu().contiguous() for k, r in zip(keys, self.rows, strict=False)}
            path = place / (re.sub(r"[^\w-]", "", word) + ".safetensors")
            part = path.with_suffix(".part")
            save_file(rows, part, metadata={"word": word})
            part.replace(path)
            written.append(path)
        return written


def load_words(parts: Parts, *files: str | Path) -> NewTokens:
    """Words that `NewTokens.save` wrote, or textual-inversion files of one tensor.

    Raises:
        UnbraidError: a file that cannot be read, or is for another model.
    """
    from safetensors import SafetensorError, safe_open

    found: dict[str, list[Tensor]] = {}
    for file in files:
        try:
            with safe_open(str(file), "pt") as opened:
                tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
                word = (opened.metadata() or {}).get("word") or next(iter(tensors))
        except (OSError, SafetensorError, StopIteration) as error:
            raise UnbraidError(f"{file} cannot be read as a file of a new word: {error}.") from error
        rows = [tensors[key] for key in KEYS[parts.family] if key in tensors] or list(tensors.values())
        widths = [encoder.get_input_embeddings().weight.shape[1] for _, encoder in parts.encoders]
        if [row.shape[-1] for row in rows] != widths:
            raise UnbraidError(
                f"{file} has rows of {[row.shape[-1] for row in rows]} numbers; the text encoders of this model take "
                f"{widths}."
            )
        found[word] = [row.reshape(-1, row.shape[-1]) for row in rows]
    lengths = {len(row) for rows in found.values() for row in rows}
    if len(lengths) != 1:
        raise UnbraidError("the files have words of different numbers of vectors; load them one by one.")
    made = NewTokens(parts, dict.fromkeys(found), lengths.pop())
    with torch.no_grad():
        for i, own in enumerate(made.rows):
            own.copy_(torch.cat([rows[i] for rows in found.values()]))
    return made


def _spelling(word: str, vectors: int) -> list[str]:
    return [word, *(f"{word}_{i}" for i in range(1, vectors))]


def _begin(tokenizer: Any, encoder: Any, start: str | Tensor | None, vectors: int, chance: torch.Generator) -> Tensor:
    """[vectors, d] first rows of one word."""
    table = encoder.get_input_embeddings().weight.detach().float()
    if isinstance(start, Tensor):
        if start.shape != (vectors, table.shape[1]):
            raise UnbraidError(f"rows of shape {tuple(start.shape)} were given; give [{vectors}, {table.shape[1]}].")
        return start.detach().float().clone()
    if start is None:
        random = torch.randn(vectors, table.shape[1], generator=chance)
        return (random * table.std().cpu() + table.mean().cpu()).to(table.device)
    pieces = tokenizer(start, add_special_tokens=False).input_ids
    if not pieces:
        raise UnbraidError(f"a new word cannot begin as {start!r}, which has no tokens; give a word, or None.")
    return table[pieces].mean(0, keepdim=True).repeat(vectors, 1)


def _overwrite(table: nn.Module, ids: list[int], rows: nn.Parameter, owner: NewTokens) -> list[Any]:
    """Hooks on an embedding table: rows of new words come from outside of it, with their gradients."""
    weight: Any = table.weight
    size = len(weight)
    asked: list[Tensor] = []

    def before(module: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        asked.append(given[0])
        return (given[0].clamp(max=size - 1), *given[1:])

    def after(module: nn.Module, given: tuple[Any, ...], out: Tensor) -> Tensor:
        tokens = asked.pop()
        for i, number in enumerate(ids):
            word, row = owner.names[i], rows[i]
            new = owner._computed[word][:, None] if word in owner._computed else row
            out = torch.where((tokens == number)[..., None], new.to(out), out)
        return out

    return [table.register_forward_pre_hook(before), table.register_forward_hook(after)]
