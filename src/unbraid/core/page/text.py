"""Text coloured by weight, pictures and sounds, as HTML."""

from __future__ import annotations

import base64

from unbraid.core.figures import Audio, HtmlText, Image
from unbraid.core.page.colour import TEXT_LEVELS
from unbraid.core.page.limits import Limits, clip
from unbraid.core.page.markup import Markup, el, escape
from unbraid.core.show import show


def coloured(figure: HtmlText, limits: Limits, alt: str) -> tuple[Markup, str]:
    """The text; also what was left out, as a sentence or ""."""
    weights = [w for _, w in figure.spans if w is not None]
    low, high = figure.limits or (min(0.0, *weights, 0.0), max(weights, default=1.0))
    high = high if high > low else low + 1.0
    spans = figure.spans[: limits.spans]
    pieces = []
    for text, weight in spans:
        said = clip(text, limits)
        if weight is None:
            pieces.append(escape(said))
            continue
        share = min(1.0, max(0.0, (weight - low) / (high - low)))
        level = min(TEXT_LEVELS - 1, int(share * TEXT_LEVELS))
        # isolated, so that a token of right-to-left text, or a mark that turns the direction, stays in its place
        pieces.append(el("bdi", said, cls=f"w{level}", data_tip=f"{clip(said.strip(), limits)[:60]} · {show(weight)}"))
    steps = [el("span", cls=f"w{i}") for i in range(TEXT_LEVELS)]
    bar = el(
        "div",
        el("span", show(low)),
        el("span", *steps, cls="steps", aria_hidden="true"),
        el("span", show(high)),
        cls="colourbar",
    )
    hint = f"{alt} Arrow keys go from piece to piece."
    # not a picture: the words are read as text, and the description is said of the group
    body = el("div", *pieces, cls="tokens rove", tabindex=0, role="group", aria_label=hint)
    note = (
        f"Shows the first {len(spans):,} of {len(figure.spans):,} pieces; all are in result.json."
        if len(spans) < len(figure.spans)
        else ""
    )
    return el("div", bar, body), note


def picture(figure: Image, limits: Limits, alt: str) -> tuple[Markup, str]:
    """The picture within the page, or a sentence in its place where it is too large for it."""
    if len(figure.png) > limits.image:
        return el(
            "p", f"This picture ({len(figure.png) / 2**20:.1f} MiB) is too large for this page: {alt}", cls="missing"
        ), ("The picture itself is in result.json.")
    source = "data:image/png;base64," + base64.b64encode(figure.png).decode("ascii")
    return el("img", src=source, alt=alt, decoding="async"), ""


def sound(figure: Audio, limits: Limits, alt: str) -> tuple[Markup, str]:
    """A player with the sound within the page, or a sentence in its place where it is too large for it."""
    if len(figure.wav) > limits.sound:
        said = f"This sound ({len(figure.wav) / 2**20:.1f} MiB) is too large for this page: {alt}"
        return el("p", said, cls="missing"), "The sound itself is in result.json."
    source = "data:audio/wav;base64," + base64.b64encode(figure.wav).decode("ascii")
    return el("audio", src=source, controls=True, preload="metadata", aria_label=alt), ""
