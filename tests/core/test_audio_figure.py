"""The figure that can be heard: its bytes, its place on the page, what is refused."""

from __future__ import annotations

import base64
import io
import re
import wave

import numpy as np
import pytest
from sample_result import EVIL

from unbraid.core.errors import UnbraidError
from unbraid.core.figures import figure_from_dict
from unbraid.core.result import Audio, Result
from unbraid.core.wav import decode_wav, encode_wav


def tone(seconds: float = 0.2, rate: int = 8000) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * 440 * np.arange(int(seconds * rate)) / rate)


def test_wav_round_trip_against_the_standard_library():
    data = encode_wav(tone(), 8000)
    with wave.open(io.BytesIO(data)) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate(), file.getnframes()) == (1, 2, 8000, 1600)
    samples, rate = decode_wav(data)
    assert rate == 8000
    np.testing.assert_allclose(samples, tone(), atol=1e-4)
    loud, _ = decode_wav(encode_wav(np.array([3.0, -3.0, np.nan, 0.0]), 8000))
    np.testing.assert_allclose(loud, [1, -1, 0, 0], atol=1e-4)


def test_the_page_holds_the_sound_and_may_play_it():
    figure = Audio.from_array(tone(), 8000, "A tone", "Tone", "440 Hz")
    page = Result("slug", "Title", figures=[figure]).to_html()
    found = re.search(
        r'<audio src="data:audio/wav;base64,([^"]+)" controls preload="metadata" aria-label="A tone">', page
    )
    assert found
    assert base64.b64decode(found[1]) == figure.wav
    assert "media-src data:" in page
    assert "default-src &#x27;none&#x27;" in page


def test_it_is_saved_and_read_back(tmp_path):
    result = Result("slug", "Title", figures=[Audio.from_array(tone(), 8000, "A tone")])
    assert Result.load(result.save(tmp_path / "r")) == result
    again = figure_from_dict(result.figures[0].to_dict())
    assert again == result.figures[0]


def test_hostile_text_stays_text():
    page = Result("slug", "Title", figures=[Audio.from_array(tone(), 8000, EVIL, EVIL, EVIL)]).to_html()
    assert "<script>window.pwned" not in page
    assert "<img src=x" not in page


def test_a_long_sound_is_left_out_with_a_sentence():
    figure = Audio.from_array(np.zeros(900_000), 16000, "Silence")
    page = Result("slug", "Title", figures=[figure]).to_html()
    assert "<audio" not in page
    assert "too large for this page" in page


def test_its_waveform_can_be_drawn():
    ax = Audio.from_array(tone(), 8000, "A tone", "Tone").plot()
    assert len(ax.lines[0].get_xdata()) == 1600


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Audio(b"no sound", "alt"), "WAV"),
        (lambda: Audio(encode_wav(tone(), 8000), ""), "description"),
        (lambda: Audio.from_array(np.zeros((2, 2, 2)), 8000, "alt"), "shape"),
        (lambda: Audio.from_array(np.zeros(0), 8000, "alt"), "shape"),
        (lambda: Audio.from_array(np.zeros(4), 0, "alt"), "rate"),
    ],
)
def test_what_is_no_sound_is_refused(make, says):
    with pytest.raises(UnbraidError, match=says):
        make()
