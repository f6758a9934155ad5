"""Scenes with captions: one to three things on a background in a style, every attribute of which is known.

`sample` draws scenes, `render` turns them into images and `masks` says what each thing covers; `caption` and `captions`
put them into words of a small grammar, `parse` reads such words back; `pairs` differ in exactly one attribute.
"""

from unbraid.data.scenes.grammar import caption, captions, vocabulary, words_of
from unbraid.data.scenes.paint import masks, render
from unbraid.data.scenes.pairs import CHANGES, LISTS, SHARES, Pair, pairs, prompts, twins
from unbraid.data.scenes.parse import Prompt, Wanted, parse
from unbraid.data.scenes.sampling import BACKGROUNDS, SPLITS, Choice, is_held_out, sample
from unbraid.data.scenes.scene import (
    COLOURS,
    GROUNDS,
    PLACES,
    RELATIONS,
    SHAPES,
    SIZES,
    STYLES,
    TEXTURES,
    Background,
    Scene,
    Thing,
)

__all__ = [
    "BACKGROUNDS",
    "CHANGES",
    "COLOURS",
    "GROUNDS",
    "LISTS",
    "PLACES",
    "RELATIONS",
    "SHAPES",
    "SHARES",
    "SIZES",
    "SPLITS",
    "STYLES",
    "TEXTURES",
    "Background",
    "Choice",
    "Pair",
    "Prompt",
    "Scene",
    "Thing",
    "Wanted",
    "caption",
    "captions",
    "is_held_out",
    "masks",
    "pairs",
    "parse",
    "prompts",
    "render",
    "sample",
    "twins",
    "vocabulary",
    "words_of",
]
