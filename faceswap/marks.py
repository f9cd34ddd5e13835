"""The marks in the frames of a result, as data: the imperceptible watermark, and the visible label where one is wanted.

The engine draws them while it encodes; the service does where ComfyUI made the picture. Both share this module.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Self

EXTRA_DATA = "faceswap_marks"
"""The name of the marks in a prompt's extra data, which a ComfyUI ignores."""
PEOPLE_DATA = "faceswap_people"
"""The name of the people's pictures there: for some frames a list of JPEG in base64, of each face, large to small."""
PAYLOAD_BYTES = 8
MAX_LABEL = 100


def payload_of(prompt_id: str) -> bytes:
    """Return the watermark's payload in the results of a job: the first 64 bits of its id, a UUID."""
    return bytes.fromhex(prompt_id.replace("-", ""))[:PAYLOAD_BYTES]


@dataclass(frozen=True, slots=True)
class Marks:
    """The marks of a run of frames.

    payload      bytes of the watermark
    first_frame  number of the first of the frames in the whole video, from 0
    label        text in the picture, empty for none
    """

    payload: bytes
    first_frame: int = 0
    label: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the marks as JSON that `from_json` reads."""
        return {"payload": self.payload.hex(), "first_frame": self.first_frame, "label": self.label}

    @classmethod
    def from_json(cls, data: object) -> Self:
        """Read marks. Raises ValueError."""
        match data:
            case {"payload": str(payload), "first_frame": int(first_frame), "label": str(label)}:
                marks = cls(bytes.fromhex(payload), first_frame, label)
                if len(marks.payload) == PAYLOAD_BYTES and first_frame >= 0 and len(label) <= MAX_LABEL:
                    return marks
        raise ValueError("Marks have a payload of 8 bytes in hexadecimal, a first_frame and a label")

    @property
    def text(self) -> str:
        """The words with which a file says, in its comment, that its frames have these marks."""
        return f"{EXTRA_DATA} {json.dumps(self.to_json(), sort_keys=True)}"
