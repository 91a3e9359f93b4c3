"""Which frames of a folder a row means, when its numbers are right and when they are not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .annotation import frame_number

REACH = 50  # frames after the onset, where a row has no usable offset: as HSTA's authors cut long ones


@dataclass
class Span:
    """Numbers of the frames from onset to offset, and the apex as an index into them, or None.

    ``faults`` tell what was wrong and how it is treated; without ``numbers`` the row cannot be used.
    """

    numbers: list[int] = field(default_factory=list)
    apex: int | None = None
    faults: list[str] = field(default_factory=list)


def find_span(cells: Mapping[str, str], present: Mapping[int, object], *, longest: int | None, whole: bool) -> Span:
    """The span of a row with the cells ``onset``, ``offset`` and perhaps ``apex``; without, all that is there.

    ``present`` has the numbers of the frames in the row's folder, in order, which holds the clip alone or, with
    ``whole``, all of a video. Spans are cut at onset + ``longest``.
    """
    span = Span()
    faults = span.faults
    if "onset" not in cells and "offset" not in cells:
        return Span(list(present))
    onset, offset = (frame_number(cells.get(name, "")) for name in ("onset", "offset"))
    if onset is None:
        if whole:
            faults.append(f"onset {cells.get('onset')!r} is no frame number, left out")
            return span
        onset = next(iter(present))
        faults.append(f"onset {cells.get('onset')!r} is no frame number: the first frame, {onset}, serves")
    if offset is None or offset < onset:
        wrong = f"{cells.get('offset')!r} is no frame number" if offset is None else f"{offset} before onset {onset}"
        offset = max((n for n in present if onset <= n <= onset + REACH), default=onset)
        faults.append(f"offset {wrong}: the frames to {offset} serve, at most {REACH} after the onset")
    if longest is not None and offset - onset > longest:
        faults.append(f"{offset - onset} frames from onset to offset, cut at onset + {longest}")
        offset = onset + longest

    span.numbers = [number for number in present if onset <= number <= offset]
    absent = offset - onset + 1 - len(span.numbers)
    apex = frame_number(cells.get("apex", ""))
    if not span.numbers and whole and apex is not None and apex in present:
        span.numbers = [number for number in present if apex <= number <= apex + REACH]
        faults.append(
            f"none of the frames {onset} to {offset} is there: those from apex {apex} to {span.numbers[-1]} serve, "
            "and of them the one of largest motion as apex"
        )
    elif not span.numbers and whole:
        faults.append(f"none of the frames {onset} to {offset} is there, left out")
    elif not span.numbers:
        return _renumbered(cells, list(present), onset, offset, faults)
    else:
        if absent:
            faults.append(f"{absent} of the frames {onset} to {offset} missing, passed over")
        if "apex" in cells:
            span.apex = _apex(cells["apex"], onset, offset, span.numbers, faults)
    return span


def _renumbered(cells: Mapping[str, str], numbers: list[int], onset: int, offset: int, faults: list[str]) -> Span:
    """A clip's own folder whose frames have other numbers than the annotation: it is the clip all the same."""
    fault = f"none of the frames {onset} to {offset} is there: the {len(numbers)} frames of the folder serve"
    apex = frame_number(cells.get("apex", ""))
    if apex is not None and onset < apex <= offset and len(numbers) == offset - onset + 1:
        return Span(numbers, apex - onset, [*faults, f"{fault}, counted from the onset"])
    return Span(numbers, None, [*faults, f"{fault}, and of them the one of largest motion as apex"])


def _apex(cell: str, onset: int, offset: int, numbers: list[int], faults: list[str]) -> int | None:
    """Index of the apex in ``numbers``, or None, with the reason added to the faults."""
    apex = frame_number(cell)
    if apex is None:
        fault = f"no apex ({cell!r})"
    elif not onset <= apex <= offset:
        fault = f"apex {apex} outside {onset} to {offset}"
    elif apex not in numbers:
        fault = f"apex frame {apex} missing"
    elif apex == onset < offset:
        fault = f"apex {apex} is the onset"
    else:
        return numbers.index(apex)
    faults.append(f"{fault}: the frame of largest motion is taken")
    return None
