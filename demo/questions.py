"""What the demonstration asks: the weather conversation of OpenAI's tool-calling guide, and K2's decimal question.

Knows nothing of who answers. Neither Paris nor this pair of numbers is in nano-k2's training.
"""

import json

from .conversation import Client, Message, Reply, ToolCall

DECIMALS = "which one is bigger, 9.11 or 9.9? think carefully."
WEATHER = "What is the weather like in Paris today?"
TOOLS: tuple[Message, ...] = (
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Get current temperature for a given location.",
            "parameters": {
                "type": "object",
                "properties": {"location": {"type": "string", "description": "City and country e.g. Bogotá, Colombia"}},
                "required": ["location"],
                "additionalProperties": False,
            },
            "strict": True,
        },
    },
)
_TEMPERATURE = "14"
_MAX_REPLIES = 3


def get_weather(call: ToolCall) -> str:
    """The tool itself; in a real program it would ask a weather service."""
    return json.dumps({"weather": int(_TEMPERATURE), "unit": "celsius"})


async def ask_decimals(client: Client) -> tuple[list[Reply], bool]:
    """The reply, and whether it is right."""
    reply = await client.answer([{"role": "user", "content": DECIMALS}])
    return [reply], "9.9 is bigger than 9.11" in reply.content


async def ask_weather(client: Client) -> tuple[list[Reply], bool]:
    """The replies, and whether the tool was called as it must be and its result told."""
    replies = await client.converse([{"role": "user", "content": WEATHER}], TOOLS, get_weather, _MAX_REPLIES)
    calls = [(call.name, call.parsed()) for reply in replies for call in reply.calls]
    right = calls == [("get_weather", {"location": "Paris"})] and _TEMPERATURE in replies[-1].content
    return replies, right
