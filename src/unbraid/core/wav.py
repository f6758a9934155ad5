"""WAV files from samples and back, with nothing but the standard library: a result can keep a sound."""

import io
import wave

import numpy as np

from unbraid.core.errors import UnbraidError

SIGNATURE = b"RIFF"


def encode_wav(samples: np.ndarray, rate: int) -> bytes:
    """WAV bytes (16 bit, one channel) of [samples] from -1 to 1; louder than full scale is cut off, NaN is silence."""
    whole = (np.clip(np.nan_to_num(np.asarray(samples, np.float64)), -1.0, 1.0) * 32767).round().astype("<i2")
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(int(rate))
        file.writeframes(whole.tobytes())
    return buffer.getvalue()


def decode_wav(data: bytes) -> tuple[np.ndarray, int]:
    """Samples [n] from -1 to 1 (the first channel) and their rate, of uncompressed 8- or 16-bit WAV bytes.

    Raises:
        UnbraidError: the bytes are something else.
    """
    try:
        with wave.open(io.BytesIO(data)) as file:
            channels, width, rate = file.getnchannels(), file.getsampwidth(), file.getframerate()
            raw = file.readframes(file.getnframes())
    except (wave.Error, EOFError) as error:
        raise UnbraidError(f"these bytes are no WAV file that can be read ({error}).") from None
    if width == 2:
        return np.frombuffer(raw, "<i2")[::channels].astype(np.float32) / 32768, rate
    if width == 1:
        return np.frombuffer(raw, np.uint8)[::channels].astype(np.float32) / 128 - 1, rate
    raise UnbraidError(f"this WAV file has {8 * width} bits per sample; accepted are 8 and 16.")
