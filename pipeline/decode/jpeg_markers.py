"""Walk the markers of a JPEG: is it sound, so that every decoder gives the same picture?

Decoders agree on sound files only. Where Pillow rejects a cut file or a stray marker within a
scan, others fill the rest with gray and report nothing.

Source: ITU-T T.81, annex B.
"""

import re

_START, _END, _SCAN = 0xD8, 0xD9, 0xDA
_FRAMES = frozenset((0xC0, 0xC1, 0xC2))  # baseline, extended and progressive, Huffman-coded
_TABLES = frozenset((0xC4, 0xDB, 0xDD, 0xFE, *range(0xE0, 0xF0)))
# In a scan, FF 00 is a byte and FF D0 to FF D7 are restarts; any other marker ends it.
_SCAN_END = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")


def is_sound(data: bytes) -> bool:
    """Whether a file is one frame, at least one scan and an end, without unknown segments."""
    if data[:2] != bytes((0xFF, _START)):
        return False
    position, num_frames, num_scans = 2, 0, 0
    while position + 2 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF:  # fill bytes may precede a marker
            position += 1
            continue
        if marker == _END:
            return num_scans > 0
        num_frames += marker in _FRAMES
        length = int.from_bytes(data[position + 2 : position + 4], "big")
        known = marker in _FRAMES or marker in _TABLES or marker == _SCAN
        if not known or num_frames > 1 or length < 2:
            return False
        position += 2 + length
        if marker == _SCAN:
            end = _SCAN_END.search(data, position)
            if not num_frames or not end:
                return False
            position, num_scans = end.start(), num_scans + 1
    return False
