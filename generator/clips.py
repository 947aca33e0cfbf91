"""Video files to uint8 frames and back: the one codec that real and generated clips share.

`read_clip` opens anything FFmpeg decodes; `write_clip` stores H.264 in mp4 with the same bytes every
time; `conform` brings frames to a model's length, size and rate. A file that does not decode cleanly is
an error that names it: no frame is ever replaced by another in silence.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np

# ITU-T H.273 codes, written into every file: a player that has to guess the colour matrix guesses by
# size, and a small clip would be shown in other colours than the ones that were stored.
_BT601 = 6
_LIMITED_RANGE = 1


@dataclass(frozen=True)
class ClipInfo:
    """What a video file holds. Sizes in pixels as displayed, fps in frames per second."""

    num_frames: int
    height: int
    width: int
    fps: float


def probe(path: str | Path) -> ClipInfo:
    """Size, rate and length of a video file. Raises ValueError like `read_clip`.

    The frames are decoded, not looked up: containers such as mkv and webm do not store their number.
    """
    num_frames, height, width = 0, 0, 0
    times: list[float | None] = []
    with _open(path) as (container, stream):
        for frame in _frames(path, container, stream):
            height, width = (
                (frame.width, frame.height) if frame.rotation % 180 else (frame.height, frame.width)
            )
            times.append(frame.time)
        fps = _rate(path, stream)
    num_frames = len(_steady_indices(times, fps))
    return ClipInfo(num_frames, height, width, fps)


def read_clip(path: str | Path) -> tuple[np.ndarray, float]:
    """All frames of a video file, uint8 [T, H, W, 3] in RGB, and its frames per second.

    A file with a variable rate is resampled to its average rate by nearest time; a rotation noted in the
    file (phones) is applied. Raises ValueError naming the file if it cannot be read, has no video stream
    or no frames.
    """
    pixels, fps = _read(path, fit=None, num_seconds=None)
    return pixels, fps


def read_conformed(
    path: str | Path, *, num_frames: int, height: int, width: int, target_fps: float
) -> np.ndarray:
    """`conform(*read_clip(path), …)` without holding the file's full-size frames in memory.

    Returns uint8 [num_frames, height, width, 3]. Raises ValueError naming the file if it cannot be read
    or is too short.
    """
    pixels, fps = _read(path, fit=(height, width), num_seconds=num_frames / target_fps)
    try:
        indices = _time_indices(len(pixels), fps, num_frames, target_fps)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return pixels[indices]


def write_clip(path: str | Path, frames: np.ndarray, fps: float, crf: int = 8) -> None:
    """Store uint8 [T, H, W, 3] as H.264 (yuv420p) mp4: equal frames give equal bytes, and browsers play it.

    crf is x264's quality, 0 (best) to 51. The file appears only when it is complete. Raises ValueError
    for an empty clip, other dtypes or shapes, odd heights or widths (4:2:0 has none), or a rate ≤ 0.
    """
    path = Path(path)
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3:
        raise ValueError(
            f"{path}: frames must be uint8 [T, H, W, 3], got {frames.dtype} {list(frames.shape)}"
        )
    num_frames, height, width, _ = frames.shape
    if num_frames == 0 or height == 0 or width == 0 or height % 2 or width % 2:
        raise ValueError(
            f"{path}: cannot store {num_frames} frames of {height}x{width}; need at least one, of even size"
        )
    if not fps > 0:
        raise ValueError(f"{path}: fps must be above 0, got {fps}")
    unfinished = path.with_name(f".{path.name}.part")
    # bitexact leaves the libraries' versions out of the file; a second thread would change the bytes
    with av.open(
        str(unfinished), "w", format="mp4", options={"movflags": "faststart", "fflags": "bitexact"}
    ) as out:
        rate = Fraction(fps).limit_denominator(1001)
        stream: Any = out.add_stream("libx264", rate=rate, options=_x264_options(crf))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        codec = stream.codec_context
        codec.thread_count = 1
        codec.bit_rate = 0
        codec.flags |= av.codec.context.Flags.bitexact
        codec.colorspace = codec.color_primaries = codec.color_trc = _BT601
        codec.color_range = _LIMITED_RANGE
        for pixels in frames:
            rgb = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            yuv = rgb.reformat(format="yuv420p", dst_colorspace=_BT601)
            yuv.colorspace, yuv.color_range = _BT601, _LIMITED_RANGE
            yuv.color_primaries = yuv.color_trc = _BT601
            out.mux(stream.encode(yuv))
        out.mux(stream.encode(None))
    os.replace(unfinished, path)


def conform(
    frames: np.ndarray, fps: float, *, num_frames: int, height: int, width: int, target_fps: float
) -> np.ndarray:
    """The first num_frames / target_fps seconds of a clip at a model's size and rate.

    frames: uint8 [T, H, W, 3] at fps → uint8 [num_frames, height, width, 3] at target_fps: nearest frame in
    time, the largest centred crop of the target's aspect, area resampling. A slower source repeats frames.
    Raises ValueError if the clip is shorter than num_frames / target_fps.
    """
    indices = _time_indices(len(frames), fps, num_frames, target_fps)
    return np.stack([_fit(frames[i], height, width) for i in indices])


def _x264_options(crf: int) -> dict[str, str]:
    # cpu-independent: every machine takes the same code path. Without mbtree: its vector code reads past the
    # end of its buffers on pictures of a few macroblocks, and then one clip in five differs from run to run.
    return {
        "crf": str(crf),
        "preset": "medium",
        "x264-params": "threads=1:lookahead-threads=1:cpu-independent=1:mbtree=0",
    }


def _time_indices(num_source: int, fps: float, num_frames: int, target_fps: float) -> np.ndarray:
    seconds, needed = num_source / fps, num_frames / target_fps
    # half a source frame of grace: rates such as 30000/1001 make an exact fit fall short by a hair
    if seconds + 0.5 / fps < needed:
        raise ValueError(
            f"clip of {seconds:.2f} s is shorter than the {needed:.2f} s that {num_frames} frames at "
            f"{target_fps:g} fps take; use a longer one, or lower data.clip.num_frames or raise data.clip.fps"
        )
    indices = np.floor(np.arange(num_frames) * fps / target_fps + 0.5).astype(int)
    return np.minimum(indices, num_source - 1)


def _fit(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Centre crop to the aspect of height:width, then resize; uint8 [H, W, 3] → [height, width, 3]."""
    h, w = pixels.shape[:2]
    if (h, w) == (height, width):
        return np.ascontiguousarray(pixels)
    crop_w = min(w, max(1, round(h * width / height)))
    crop_h = min(h, max(1, round(w * height / width)))
    top, left = (h - crop_h) // 2, (w - crop_w) // 2
    crop = np.ascontiguousarray(pixels[top : top + crop_h, left : left + crop_w])
    # INTER_AREA is for shrinking; when it enlarges it is nearest neighbour
    enlarges = height > crop_h or width > crop_w
    return cv2.resize(crop, (width, height), interpolation=cv2.INTER_LINEAR if enlarges else cv2.INTER_AREA)


def _read(
    path: str | Path, fit: tuple[int, int] | None, num_seconds: float | None
) -> tuple[np.ndarray, float]:
    """Frames at a steady rate, each brought to size `fit` while decoding; stops soon after num_seconds."""
    kept: list[np.ndarray] = []
    times: list[float | None] = []
    with _open(path) as (container, stream):
        for frame in _frames(path, container, stream):
            pixels = _upright_rgb(frame)
            kept.append(_fit(pixels, *fit) if fit else pixels)
            times.append(frame.time)
            if num_seconds is not None and _seconds_since_first(times) > num_seconds + 1.0:
                break  # the second more gives nearest-time sampling both neighbours at any sane rate
        fps = _rate(path, stream)
    if len({pixels.shape for pixels in kept}) > 1:
        raise ValueError(f"{path}: the picture size changes within the video; re-encode it at one size")
    indices = _steady_indices(times, fps)
    if np.array_equal(indices, np.arange(len(kept))):
        return np.stack(kept), fps
    return np.stack([kept[i] for i in indices]), fps


@contextmanager
def _open(path: str | Path) -> Iterator[tuple[Any, Any]]:
    if not Path(path).is_file():
        raise ValueError(f"{path}: no such video file")
    try:
        container = av.open(str(path), "r")
    except (av.FFmpegError, OSError) as error:
        raise ValueError(
            f"{path}: not a readable video ({_reason(error)}); re-encode or remove it"
        ) from error
    with container:
        if not container.streams.video:
            raise ValueError(f"{path}: no video stream in it")
        stream = container.streams.video[0]
        # slice threads only change the speed; one thread keeps a two-core machine free for training
        stream.codec_context.thread_count = 1
        yield container, stream


def _frames(path: str | Path, container: Any, stream: Any) -> Iterator[Any]:
    num_frames = 0
    try:
        for frame in container.decode(stream):
            if frame.is_corrupt:
                raise ValueError(f"{path}: frame {num_frames} is damaged; re-encode or remove the file")
            yield frame
            num_frames += 1
    except (av.FFmpegError, OSError) as error:
        raise ValueError(
            f"{path}: decoding failed after {num_frames} frames ({_reason(error)}); re-encode or remove it"
        ) from error
    if num_frames == 0:
        raise ValueError(f"{path}: the video has no frames")


def _upright_rgb(frame: Any) -> np.ndarray:
    # an untagged stream is read as BT.601, which is also FFmpeg's own default
    pixels = frame.to_ndarray(format="rgb24")
    quarter_turns = round(frame.rotation / 90) % 4
    return np.ascontiguousarray(np.rot90(pixels, quarter_turns)) if quarter_turns else pixels


def _seconds_since_first(times: list[float | None]) -> float:
    first, last = times[0], times[-1]
    return 0.0 if first is None or last is None else last - first


def _rate(path: str | Path, stream: Any) -> float:
    rate = stream.average_rate or stream.guessed_rate or stream.base_rate
    if not rate:
        raise ValueError(f"{path}: the video states no frame rate; re-encode it with one")
    return float(rate)


def _steady_indices(times: list[float | None], fps: float) -> np.ndarray:
    """Which decoded frame is nearest to each tick of a steady clock; 0, 1, 2, … for a constant rate."""
    known = np.array([t for t in times if t is not None], dtype=float)
    everyone = np.arange(len(times))
    if len(known) < len(times) or len(known) < 2 or np.any(np.diff(known) <= 0):
        return everyone
    ticks = known - known[0]
    if np.all(np.abs(ticks - everyone / fps) < 0.5 / fps):
        return everyone
    clock = np.arange(round(ticks[-1] * fps) + 1) / fps
    right = np.clip(np.searchsorted(ticks, clock), 1, len(ticks) - 1)
    return np.where(clock - ticks[right - 1] <= ticks[right] - clock, right - 1, right)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or type(error).__name__
