"""The names of a tool section's markers, and where a name spelled in ordinary text is meant as the marker.

Knows nothing of tokens. Text that merely looks like a marker is text. But models tuned on another spelling write a section's
marker out, in ordinary tokens, right before a real ``<|tool_call_begin|>`` or right after a real ``<|tool_call_end|>``: nothing
else can be meant there.
"""

BEGINS = ("<|tool_calls_section_begin|>", "<|tool_call_section_begin|>")
ENDS = ("<|tool_calls_section_end|>", "<|tool_call_section_end|>")


class Tail:
    """Text on its way, but for an end that may be the name of a section's begin."""

    def __init__(self) -> None:
        self._held = ""

    def push(self, text: str) -> str:
        """The part of the text so far that is no such end."""
        text = self._held + text
        at = text.rfind("<")
        end = text[at:].rstrip() if at >= 0 else ""
        sure = at if end and any(name.startswith(end) for name in BEGINS) else len(text)
        self._held = text[sure:]
        return text[:sure]

    def flush(self) -> str:
        held, self._held = self._held, ""
        return held

    def before_call(self) -> str:
        """What was held, if it is not the name of a section's begin."""
        held = self.flush()
        return "" if held.rstrip() in BEGINS else held


def after_end(text: str) -> str | None:
    """The text after the name of a section's end, if it begins with one."""
    text = text.lstrip()
    return next((text[len(name) :] for name in ENDS if text.startswith(name)), None)
