"""`Listener`: what any encoder-decoder speech model of transformers offers: features, encoder states, forced decoding.

It wraps nothing of the model: the encoder is run as it is (or, for Whisper's fixed thirty seconds, a copy that shares
its weights and sees less silence), and the decoder through the model's own forward with `encoder_outputs`.
"""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from unbraid.core.errors import UnbraidError
from unbraid.data.speech.clips import check_audio, is_silent
from unbraid.systems.s2t_cross_attention.processors import (
    begins_with_blank,
    decoder_prefix,
    feature_extractor,
    mel_bins,
    tokenizer_of,
)

MARGIN = 25  # encoder states of silence that a fitted context keeps after the end of the audio
STFT, HOP = 400, 160  # of models that read the waveform: the grid on which it is occluded


@dataclasses.dataclass(eq=False)
class Heard:
    """One utterance as a model takes it.

    Attributes:
        raw: the model's input, [1, F, T], [1, T, F] or, for models that read the waveform, [1, samples].
        grid: [T, F] what is occluded and shown: log-mel features, or log magnitudes of a short-time spectrum.
        layout: "mel_first", "time_first" or "waveform".
        valid: frames of T that hold audio; the rest is padding.
        seconds: length of the audio.
        frame: seconds per frame.
        silent: no sample rises above 16-bit noise.
    """

    raw: Tensor
    grid: np.ndarray
    layout: str
    valid: int
    seconds: float
    frame: float
    silent: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        """Frames that hold audio, and frequencies."""
        return self.valid, self.grid.shape[1]


class Listener:
    """A speech-to-text model, ready to be perturbed.

    Args:
        model: encoder-decoder speech model of transformers.
        processor: its processor or feature extractor; None if only features are given.
        context: "full", or "fit" to shorten a fixed-length encoder (Whisper's 30 s) to the audio: faster, and another
            model, as no padding is heard.

    Raises:
        UnbraidError: the model has no encoder or no cross-attention, or takes no audio.
    """

    def __init__(self, model: nn.Module, processor: Any = None, context: str = "full") -> None:
        check_model(model)
        plain: Any = model
        if context not in ("full", "fit"):
            raise UnbraidError(f"context={context!r} is unknown; choose 'full' or 'fit'.")
        self.model: Any = plain
        self.processor, self.context = processor, context
        self.encoder: Any = plain.get_encoder()
        self.device = next(model.parameters()).device
        self.dtype = next(model.parameters()).dtype
        self.waveform = self.model.main_input_name == "input_values"
        self.fixed = fixed_frames(self.encoder)
        self.extractor = feature_extractor(processor)
        self.tokenizer = tokenizer_of(processor)
        self.prefix = decoder_prefix(self.model, self.tokenizer)
        self._wrap: Any = None
        self._short: dict[int, nn.Module] = {}

    def hear(self, audio: Any, rate: int | None = None) -> Heard:
        """Features of a waveform.

        Args:
            audio: [samples] numbers at the model's rate.
            rate: samples per second, checked against the model's; None trusts the caller.

        Raises:
            UnbraidError: no feature extractor, another rate, or audio that cannot be used.
        """
        wanted = self.rate
        x = check_audio(audio)
        if rate is not None and int(rate) != wanted:
            raise UnbraidError(
                f"The audio has {rate} samples per second, the model hears {wanted}; convert it with "
                f"unbraid.data.speech.resample(audio, {rate}, {wanted}), or give a file, which is converted."
            )
        seconds = len(x) / wanted
        most = None if self.fixed is None else self.fixed * self.hop / wanted
        if most is not None and seconds > most + 1e-6:
            raise UnbraidError(
                f"The audio lasts {seconds:.1f} s, the model hears {most:g} s at once; cut it into shorter pieces."
            )
        silent = is_silent(x)
        if silent:
            warnings.warn("The audio is silent: what the model says of it has no cause in the sound.", stacklevel=2)
        made = self.extractor(x, sampling_rate=wanted, return_tensors="pt")
        if self.waveform:
            raw = made["input_values"].float()
            grid = log_spectrum(raw[0])
            return Heard(raw.to(self.device), grid, "waveform", len(grid), seconds, HOP / wanted, silent)
        raw = made["input_features"].float()
        heard = self.take(raw)
        frames = heard.grid.shape[0]
        heard.valid = frames if self.fixed is None else min(frames, -(-len(x) // self.hop))
        heard.seconds, heard.silent = seconds, silent
        heard.frame = self.hop / wanted if self.fixed is not None else seconds / frames
        return heard

    def take(self, features: Tensor, valid: int | None = None, frame: float = 0.01) -> Heard:
        """Ready-made features, for models without a feature extractor.

        Args:
            features: [F, T] or [T, F] with or without a batch dimension of 1, or [samples] for waveform models.
            valid: frames that hold audio; None means all.
            frame: seconds per frame.

        Raises:
            UnbraidError: another shape.
        """
        raw = torch.as_tensor(features, dtype=torch.float32)
        if self.waveform:
            raw = raw.reshape(1, -1)
            if raw.shape[1] < STFT:
                raise UnbraidError(f"The waveform has {raw.shape[1]} samples; give at least {STFT}.")
            grid = log_spectrum(raw[0])
            return Heard(raw.to(self.device), grid, "waveform", valid or len(grid), len(grid) * frame, frame)
        raw = raw[None] if raw.dim() == 2 else raw
        if raw.dim() != 3 or raw.shape[0] != 1 or 0 in raw.shape:
            raise UnbraidError(f"Features must be [frequencies, frames] of one utterance, not {tuple(raw.shape)}.")
        bins = mel_bins(self.model.config)
        first = raw.shape[1] == bins or (bins not in raw.shape[1:] and raw.shape[1] < raw.shape[2])
        grid = (raw[0].T if first else raw[0]).numpy().copy()
        if self.fixed is not None and len(grid) != self.fixed:
            raise UnbraidError(f"The model takes {self.fixed} frames, the features have {len(grid)}; pad or cut them.")
        layout = "mel_first" if first else "time_first"
        valid = len(grid) if valid is None else valid
        return Heard(raw.to(self.device), grid, layout, valid, valid * frame, frame)

    @property
    def rate(self) -> int:
        """Samples per second that the model hears."""
        if self.extractor is None:
            raise UnbraidError(
                "Audio needs the model's feature extractor: pass its processor (AutoProcessor.from_pretrained), or "
                "give features instead."
            )
        return int(vars(self.extractor).get("sampling_rate", 16_000))

    @property
    def hop(self) -> int:
        """Samples per frame of the feature extractor."""
        return int(vars(self.extractor).get("hop_length", 160))

    def batch(self, heard: Heard, keep: np.ndarray | Tensor | None = None, fill: Tensor | None = None) -> Tensor:
        """The model's input with bins occluded.

        Args:
            heard: the utterance.
            keep: [n, valid, F] True where a bin stays; None keeps all (n = 1).
            fill: [F] or [1] what takes an occluded bin's place; for waveform models bins are removed from the spectrum
                and this is ignored.

        Returns:
            [n, ...] in the layout of `heard.raw`.
        """
        raw = heard.raw
        if keep is None:
            return raw
        kept = torch.as_tensor(keep, device=raw.device)
        if heard.layout == "waveform":
            return occlude_waveform(raw, kept)
        whole = torch.ones(kept.shape[0], heard.grid.shape[0], kept.shape[2], dtype=torch.bool, device=raw.device)
        whole[:, : heard.valid] = kept
        put = torch.zeros(1, device=raw.device) if fill is None else fill.to(raw.device)
        if heard.layout == "mel_first":
            return torch.where(whole.transpose(1, 2), raw, put.view(1, -1, 1))
        return torch.where(whole, raw, put.view(1, 1, -1))

    @torch.no_grad()
    def encode(self, x: Tensor, valid: int | None = None, full: bool = False) -> Tensor:
        """Encoder states [n, T', D] of inputs [n, ...]; with a fitted context only those that `valid` frames need.

        Args:
            x: the model's input.
            valid: frames that hold audio.
            full: hear everything, whatever the context.
        """
        encoder = self.encoder
        if not full and self.context == "fit" and self.fixed is not None and valid is not None:
            stride = self.fixed // positions(self.encoder)
            states = min(positions(self.encoder), -(-valid // stride) + MARGIN)
            encoder = self._fitted(states)
            x = x[..., : states * stride]
        out = encoder(x.to(self.dtype))
        self._wrap = out
        return out.last_hidden_state

    def _fitted(self, states: int) -> nn.Module:
        if states not in self._short:
            self._short = {states: shortened(self.encoder, states)}
        return self._short[states]

    def logits(self, states: Tensor, ids: Tensor) -> Tensor:
        """[n, tokens, vocabulary] of decoder inputs [1 or n, tokens]; logits at i predict the token after i."""
        n = states.shape[0]
        out = self.model(encoder_outputs=self.wrapped(states), decoder_input_ids=ids.expand(n, -1), use_cache=False)
        return out.logits

    def wrapped(self, states: Tensor) -> Any:
        """Encoder states as the model's own output class."""
        if self._wrap is None:
            raise UnbraidError("Call encode once before decoding states of your own.")
        return dataclasses.replace(self._wrap, last_hidden_state=states)

    def forced(self, ids: Sequence[int]) -> tuple[Tensor, range, Tensor]:
        """(decoder input [1, n], rows that predict the tokens, tokens [I]) for teacher forcing on `ids`."""
        if not len(ids):
            raise UnbraidError("There is no token to explain: the model said nothing, or an empty text was given.")
        inputs = torch.tensor([[*self.prefix, *ids[:-1]]], device=self.device)
        start = len(self.prefix) - 1
        return inputs, range(start, start + len(ids)), torch.tensor(list(ids), device=self.device)

    @torch.no_grad()
    def transcribe(
        self, states: Tensor, beams: int = 5, repeat: int = 5, longest: int | None = None
    ) -> list[list[int]]:
        """Tokens said of encoder states [n, T', D], by beam search, without prefix and padding, with the end token.

        Args:
            states: encoder states.
            beams: of the search; 1 is greedy.
            repeat: no run of this many tokens occurs twice; 0 allows it.
            longest: most new tokens; None takes 12 per second of 50 states, at least 24.
        """
        from transformers import GenerationMixin

        n = states.shape[0]
        most = vars(self.model.config).get("max_target_positions") or 448
        longest = longest or max(24, states.shape[1] * 12 // 50)
        prefix = torch.tensor([self.prefix], device=self.device).expand(n, -1)
        out = GenerationMixin.generate(  # Whisper's own generate cuts audio into windows; here states are given
            self.model,
            encoder_outputs=self.wrapped(states),
            decoder_input_ids=prefix,
            num_beams=beams,
            do_sample=False,
            no_repeat_ngram_size=repeat,
            max_new_tokens=min(longest, int(most) - len(self.prefix) - 1),
            max_length=None,
        )
        return [trimmed(row[len(self.prefix) :].tolist(), self.ends) for row in out]

    @property
    def ends(self) -> set[int]:
        """Tokens that end a text."""
        end = self.model.generation_config.eos_token_id
        end = self.model.config.eos_token_id if end is None else end
        return set(end if isinstance(end, list) else [] if end is None else [end])

    def encode_text(self, text: str) -> list[int]:
        """Tokens of a text with the end token.

        Raises:
            UnbraidError: no tokenizer, or an empty text.
        """
        if self.tokenizer is None:
            raise UnbraidError("A text needs the model's tokenizer: pass its processor, or give token ids instead.")
        if not text.strip():
            raise UnbraidError("The text is empty; give what is said, or None to let the model transcribe.")
        blank = " " if begins_with_blank(self.tokenizer) else ""
        ids = self.tokenizer(blank + text.strip(), add_special_tokens=False).input_ids
        return [*ids, *sorted(self.ends)[:1]]


def check_model(model: Any) -> None:
    """Refuses what has no encoder, no decoder or no audio.

    Raises:
        UnbraidError: what is missing, and what is accepted.
    """
    from transformers import GenerationMixin, PreTrainedModel

    name = type(model).__name__
    accepted = "give an encoder-decoder speech model such as WhisperForConditionalGeneration."
    if not isinstance(model, PreTrainedModel):
        raise UnbraidError(f"{name} is no model of transformers; {accepted}")
    if not model.config.is_encoder_decoder:
        raise UnbraidError(f"{name} has no encoder and decoder, hence no cross-attention; {accepted}")
    if model.main_input_name not in ("input_features", "input_values", "inputs"):
        raise UnbraidError(f"{name} takes {model.main_input_name!r}, no audio; {accepted}")
    if not isinstance(model, GenerationMixin):
        raise UnbraidError(f"{name} has no language-model head, so it predicts no tokens; {accepted}")


def positions(encoder: Any) -> int:
    """Number of learned positions of a fixed-length encoder."""
    return int(encoder.config.max_source_positions)


def fixed_frames(encoder: Any) -> int | None:
    """Frames that an encoder insists on (Whisper: 3000), or None if it takes any length."""
    children = dict(encoder.named_children())
    embedding = children.get("embed_positions")
    if not {"conv1", "conv2"} <= set(children) or not isinstance(embedding, nn.Embedding):
        return None
    return positions(encoder) * int(encoder.conv1.stride[0]) * int(encoder.conv2.stride[0])


def shortened(encoder: Any, states: int) -> nn.Module:
    """A copy of a fixed-length encoder for fewer positions; weights are shared, not copied."""
    shared = {id(p): p for p in (*encoder.parameters(), *encoder.buffers())}
    short = copy.deepcopy(encoder, shared)
    short.config.max_source_positions = states
    short.max_source_positions = states
    weight = encoder.embed_positions.weight[:states].detach()
    short.embed_positions = nn.Embedding.from_pretrained(weight, freeze=True)
    return short.eval()


def trimmed(ids: list[int], ends: set[int]) -> list[int]:
    """Up to and with the first end token."""
    for number, token in enumerate(ids):
        if token in ends:
            return ids[: number + 1]
    return ids


def log_spectrum(wave: Tensor) -> np.ndarray:
    """[T, F] log magnitudes of a waveform, 25 ms windows every 10 ms at 16 kHz."""
    spectrum = torch.stft(wave.cpu(), STFT, HOP, window=torch.hann_window(STFT), return_complex=True)
    return spectrum.abs().clamp(min=1e-5).log10().T.numpy().copy()


def occlude_waveform(raw: Tensor, keep: Tensor) -> Tensor:
    """Waveforms [n, samples] with bins [n, T, F] removed from the short-time spectrum of raw [1, samples]."""
    window = torch.hann_window(STFT, device=raw.device)
    spectrum = torch.stft(raw, STFT, HOP, window=window, return_complex=True)
    masked = spectrum * keep.transpose(1, 2).to(spectrum.dtype)
    return torch.istft(masked, STFT, HOP, window=window, length=raw.shape[1])
