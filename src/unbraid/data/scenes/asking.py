"""What a prompt asks for: captions of the grammar, and the same with words of new concepts, as constraints."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from unbraid.core.errors import UnbraidError
from unbraid.data.scenes.grammar import ANYTHING, PLACE_WORDS, RELATION_WORDS, SPOT_WORDS, STYLE_NAMES
from unbraid.data.scenes.scene import COLOURS, GROUNDS, SHAPES, SIZES, TEXTURES, Scene

_WORD = re.compile(r"<[^<>\s]+>|[^\s,]+|,")
_RELATIONS = sorted(
    ((phrase.split(), name) for name, phrases in RELATION_WORDS.items() for phrase in phrases),
    key=lambda pair: -len(pair[0]),
)
_PLACES = [(phrase.split(), name) for name, phrases in PLACE_WORDS.items() for phrase in phrases]
_SPOTS = [(phrase.split(), name) for name, phrase in SPOT_WORDS.items()]
_STYLES = [(phrase.split(), name) for name, phrase in STYLE_NAMES.items()]
_ARTICLES = ("a", "an", "the")


@dataclass(frozen=True)
class Wanted:
    """What a prompt says of one thing; nothing where it says nothing.

    Args:
        shape: one of `SHAPES`; with a concept, the noun after it.
        colour: one of `COLOURS`.
        texture: one of `TEXTURES`.
        size: one of `SIZES`.
        spot: as `Thing.spot`: every word of it must be true.
        concept: the word of a new concept, such as ``<mug>``.
    """

    shape: str = ""
    colour: str = ""
    texture: str = ""
    size: str = ""
    spot: str = ""
    concept: str = ""


@dataclass(frozen=True)
class Prompt:
    """What a prompt asks for; nothing where it says nothing.

    Args:
        text: the prompt.
        things: in the order of the words.
        relation: how the first thing stands to the second, one of `RELATIONS`.
        background: a colour of `GROUNDS` or one of `PLACES`.
        ground_texture: of the background.
        fade: the background's colour at the bottom.
        style: one of `STYLES`.
    """

    text: str = ""
    things: tuple[Wanted, ...] = ()
    relation: str = ""
    background: str = ""
    ground_texture: str = ""
    fade: str = ""
    style: str = ""

    def true_of(self, scene: Scene) -> bool:
        """Whether everything asked for is so in a scene, with some order of its things; concepts match new subjects."""
        from itertools import permutations

        ground = scene.background
        said = (
            (self.background, ground.name),
            (self.ground_texture, "" if ground.place else ground.texture),
            (self.fade, ground.fade),
            (self.style, scene.style),
        )
        if any(wanted and wanted != found for wanted, found in said) or len(self.things) > len(scene.things):
            return False
        for order in permutations(range(len(scene.things)), len(self.things)):
            if self.relation and scene.relation(order[0], order[1]) != self.relation:
                continue
            if all(_fits(wanted, scene, k) for wanted, k in zip(self.things, order, strict=True)):
                return True
        return False


def _fits(wanted: Wanted, scene: Scene, k: int) -> bool:
    thing = scene.things[k]
    said = [(wanted.size, thing.size)]
    if wanted.concept:
        if not thing.new:
            return False
    else:
        said += [(wanted.shape, thing.shape), (wanted.colour, thing.colour), (wanted.texture, thing.texture)]
    return all(w in ("", found) for w, found in said) and set(wanted.spot.split()) <= set(thing.spot.split())


def parse(prompt: str, concepts: Sequence[str] = ()) -> Prompt:
    """Read a prompt.

    Args:
        prompt: a sentence of the grammar. Words in angle brackets are new concepts; they may stand for a noun or before
            one. The empty prompt asks for nothing.
        concepts: other words that are new concepts, such as ``sks``.

    Raises:
        UnbraidError: a word is not understood where it stands.

    Example:
        >>> parse("a red circle to the left of a <mug>, in the snow").relation
        'left of'
    """
    if not isinstance(prompt, str):
        raise UnbraidError(f"a prompt is a sentence, not {type(prompt).__name__}.")
    return _Reader(prompt, concepts).read()


class _Reader:
    """Goes through the words once."""

    def __init__(self, prompt: str, concepts: Sequence[str]) -> None:
        self.text = prompt
        self.words = _WORD.findall(prompt.lower().rstrip(". "))
        self.concepts = {word.lower() for word in concepts}
        self.at = 0
        self.found = Prompt(prompt)

    def read(self) -> Prompt:
        while self.at < len(self.words):
            if not (self._style() or self._relation() or self._spot() or self._ground() or self._thing()):
                if self.words[self.at] not in (",", "and", "with"):
                    self._refuse()
                self.at += 1
        if self.found.relation and len(self.found.things) < 2:
            raise UnbraidError(f"the prompt {self.text!r} says {self.found.relation!r} but names one thing only.")
        return self.found

    def _refuse(self) -> None:
        rest = " ".join(self.words[self.at : self.at + 3])
        raise UnbraidError(
            f"{rest!r} in the prompt {self.text!r} is not understood; write it as captions are written, such as 'a "
            f"small striped red star above a blue ring, in the snow', and new words in angle brackets."
        )

    def _take(self, phrase: Sequence[str]) -> bool:
        if self.words[self.at : self.at + len(phrase)] == list(phrase):
            self.at += len(phrase)
            return True
        return False

    def _set(self, name: str, value: str) -> bool:
        before = vars(self.found)[name]
        if before not in ("", value):
            raise UnbraidError(f"the prompt {self.text!r} asks for {before!r} and for {value!r}.")
        self.found = replace(self.found, **{name: value})  # type: ignore[arg-type]
        return True

    def _style(self) -> bool:
        start = self.at
        if self._take(("a", "picture", "of")):
            return True
        suffix = self._take(("as",))
        for phrase, name in _STYLES:
            if self._take(phrase):
                if suffix or self._take(("of",)):
                    return self._set("style", name)
                break
        self.at = start
        return False

    def _relation(self) -> bool:
        if not self.found.things:
            return False
        for phrase, name in _RELATIONS:
            if self._take(phrase):
                if len(self.found.things) > 1:
                    raise UnbraidError(f"{name!r} in the prompt {self.text!r} must stand between the first two things.")
                return self._set("relation", name)
        return False

    def _spot(self) -> bool:
        if not self.found.things:
            return False
        for phrase, name in _SPOTS:
            if self._take(phrase):
                last = self.found.things[-1]
                last = replace(last, spot=f"{last.spot} {name}".strip())
                self.found = replace(self.found, things=(*self.found.things[:-1], last))
                return True
        return False

    def _ground(self) -> bool:
        for phrase, name in _PLACES:
            if self._take(phrase):
                return self._set("background", name)
        start = self.at
        if not (self._take(("on",)) and self._article()):
            self.at = start
            return False
        texture = self._one_of(TEXTURES)
        colour = self._one_of(GROUNDS)
        if not self._take(("background",)):
            self.at = start
            return False
        for attribute, value in (("ground_texture", texture), ("background", colour)):
            if value:
                self._set(attribute, value)
        if self._take(("fading", "to")):
            fade = self._one_of(("white", "black"))
            if not fade:
                self._refuse()
            self._set("fade", fade)
        return True

    def _thing(self) -> bool:
        start = self.at
        self._article()
        wanted = Wanted()
        known: dict[str, Sequence[str]] = {"size": tuple(SIZES), "texture": TEXTURES, "colour": COLOURS}
        while True:  # adjectives in any order
            for name, words in known.items():
                word = self._one_of(words)
                if word:
                    wanted = replace(wanted, **{name: word})
                    break
            else:
                break
        concept = self._concept()
        noun = self._one_of((*SHAPES, ANYTHING))
        if not concept and not noun:
            self.at = start
            return False
        wanted = replace(wanted, concept=concept, shape=noun if noun != ANYTHING else "")
        self.found = replace(self.found, things=(*self.found.things, wanted))
        return True

    def _article(self) -> bool:
        return any(self._take((word,)) for word in _ARTICLES)

    def _one_of(self, words: Sequence[str]) -> str:
        if self.at < len(self.words) and self.words[self.at] in words:
            self.at += 1
            return self.words[self.at - 1]
        return ""

    def _concept(self) -> str:
        if self.at < len(self.words):
            word = self.words[self.at]
            if word in self.concepts or (word[0] == "<" and word[-1] == ">"):
                self.at += 1
                return word
        return ""
