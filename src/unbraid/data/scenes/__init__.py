"""Scenes with captions: one to three things on a background in a style, every attribute of which is known.

`sample` draws scenes, `render` turns them into images and `masks` says what each thing covers; `caption` and `captions`
put them into words of a small grammar, `parse` reads such words back; `pairs` differ in exactly one attribute. `read`
is the oracle: it reads every attribute off any image; `score` and `agreement` compare images with prompts. `photos`
shows new subjects that captions have no word for, `identity` finds them again.
"""

from unbraid.data.scenes.album import Photos, photos, write
from unbraid.data.scenes.asking import Prompt, Wanted, parse
from unbraid.data.scenes.checking import accuracy
from unbraid.data.scenes.damage import KINDS, degrade
from unbraid.data.scenes.finding import Located, identity, locate
from unbraid.data.scenes.grammar import caption, captions, vocabulary, words_of
from unbraid.data.scenes.judging import agreement, score
from unbraid.data.scenes.paint import masks, render
from unbraid.data.scenes.pairing import CHANGES, LISTS, SHARES, Pair, listed, pairs, prompts, twins
from unbraid.data.scenes.reading import Reading, read
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
from unbraid.data.scenes.subjects import Subject, subject

__all__ = [
    "BACKGROUNDS",
    "CHANGES",
    "COLOURS",
    "GROUNDS",
    "KINDS",
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
    "Located",
    "Pair",
    "Photos",
    "Prompt",
    "Reading",
    "Scene",
    "Subject",
    "Thing",
    "Wanted",
    "accuracy",
    "agreement",
    "caption",
    "captions",
    "degrade",
    "identity",
    "is_held_out",
    "listed",
    "locate",
    "masks",
    "pairs",
    "parse",
    "photos",
    "prompts",
    "read",
    "render",
    "sample",
    "score",
    "subject",
    "twins",
    "vocabulary",
    "words_of",
    "write",
]
