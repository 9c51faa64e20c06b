"""Tool loops of five client libraries against a running fleet, each whole and streamed.

    python tests/clients/loops.py http://127.0.0.1:8000

Runs where the libraries are installed (check_clients.py does it) and imports nothing of expertfleet's. Each loop asks two
questions of one conversation. For each the model calls the tool, and the client sends back all that it was sent, with the
tool's result. The call must be the right one both times, and the tool's result must be in the first answer. Some of these clients
drop the model's thinking: nano-k2 still makes the second call then, and cannot always read its result.
"""

import asyncio
import json
import sys
import traceback
from collections.abc import Awaitable, Callable
from typing import Any

CITIES = ("London", "Oslo")
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_population",
        "description": "Get the population of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "the city"}},
            "required": ["city"],
            "additionalProperties": False,
        },
        "strict": True,
    },
}
RESULT = json.dumps({"population": 67})
MAX_TOKENS = 200
MAX_REPLIES = 4


class Wrong(Exception):
    """A loop did not come to the result that it must."""


def question(city: str) -> str:
    return f"What is the population of {city}?"


def expect(city: str, calls: list[tuple[str, dict[str, Any]]], answer: str) -> None:
    first = city == CITIES[0]
    if (calls if first else calls[:1]) != [("get_population", {"city": city})]:
        raise Wrong(f"{city}: calls: {calls}")
    if first and "67" not in answer:
        raise Wrong(f"{city}: answer without the tool's result: {answer!r}")


class OpenAILoop:
    """The official client. ``ask`` returns the next assistant message as the client's own object."""

    def __init__(self, url: str) -> None:
        from openai import OpenAI

        self.client = OpenAI(base_url=url + "/v1", api_key="none")
        self.model = self.client.models.list().data[0].id

    def converse(self, ask: Callable[[list[Any]], Any]) -> None:
        messages: list[Any] = []
        for city in CITIES:
            messages.append({"role": "user", "content": question(city)})
            calls: list[tuple[str, dict[str, Any]]] = []
            for _ in range(MAX_REPLIES):
                message = ask(messages)
                messages.append(message)
                if not message.tool_calls:
                    break
                for call in message.tool_calls:
                    calls.append((call.function.name, json.loads(call.function.arguments)))
                    messages.append({"role": "tool", "tool_call_id": call.id, "content": RESULT})
            expect(city, calls, messages[-1].content)

    def settings(self, messages: list[Any]) -> dict[str, Any]:
        return {
            "model": self.model,
            "messages": messages,
            "tools": [TOOL],
            "temperature": 0,
            "max_completion_tokens": MAX_TOKENS,
        }


def openai_create(url: str) -> None:
    loop = OpenAILoop(url)
    loop.converse(lambda messages: loop.client.chat.completions.create(**loop.settings(messages)).choices[0].message)


def openai_create_streamed(url: str) -> None:
    """Deltas put together as a reader of OpenAI's guide does it."""
    from openai.types.chat import ChatCompletionMessage

    loop = OpenAILoop(url)

    def ask(messages: list[Any]) -> Any:
        content, reasoning, calls = "", "", {}
        for chunk in loop.client.chat.completions.create(**loop.settings(messages), stream=True):
            for choice in chunk.choices:
                content += choice.delta.content or ""
                reasoning += getattr(choice.delta, "reasoning_content", None) or ""
                for call in choice.delta.tool_calls or []:
                    kept = calls.setdefault(call.index, call)
                    if kept is not call:
                        kept.function.arguments += call.function.arguments or ""
        whole = [call.model_dump() for call in calls.values()] or None
        message = {"role": "assistant", "content": content, "tool_calls": whole, "reasoning_content": reasoning}
        return ChatCompletionMessage.model_validate(message)

    loop.converse(ask)


def openai_parse(url: str) -> None:
    loop = OpenAILoop(url)
    loop.converse(lambda messages: loop.client.chat.completions.parse(**loop.settings(messages)).choices[0].message)


def openai_stream(url: str) -> None:
    loop = OpenAILoop(url)

    def ask(messages: list[Any]) -> Any:
        with loop.client.chat.completions.stream(**loop.settings(messages)) as stream:
            for _ in stream:
                pass
            return stream.get_final_completion().choices[0].message

    loop.converse(ask)


def litellm_loop(url: str, streamed: bool) -> None:
    import litellm

    litellm.suppress_debug_info = True
    loop = OpenAILoop(url)
    where = {"api_base": url + "/v1", "api_key": "none"}

    def ask(messages: list[Any]) -> Any:
        settings = {**loop.settings(messages), "model": f"openai/{loop.model}", **where}
        if not streamed:
            return litellm.completion(**settings).choices[0].message
        chunks = list(litellm.completion(**settings, stream=True))
        return litellm.stream_chunk_builder(chunks, messages=messages).choices[0].message

    loop.converse(ask)


async def openai_agents(url: str, streamed: bool) -> None:
    from agents import Agent, ModelSettings, OpenAIChatCompletionsModel, Runner, function_tool, set_tracing_disabled
    from openai import AsyncOpenAI

    set_tracing_disabled(True)
    client = AsyncOpenAI(base_url=url + "/v1", api_key="none")
    model = OpenAIChatCompletionsModel((await client.models.list()).data[0].id, client)
    calls: list[tuple[str, dict[str, Any]]] = []

    @function_tool
    def get_population(city: str) -> str:
        """Get the population of a city.

        Args:
            city: the city
        """
        calls.append(("get_population", {"city": city}))
        return RESULT

    settings = ModelSettings(temperature=0, max_tokens=MAX_TOKENS)
    agent = Agent(name="cities", model=model, tools=[get_population], model_settings=settings)

    async def run(history: Any) -> Any:
        if not streamed:
            return await Runner.run(agent, history, max_turns=MAX_REPLIES)
        result = Runner.run_streamed(agent, history, max_turns=MAX_REPLIES)
        async for _ in result.stream_events():
            pass
        return result

    history: list[Any] = []
    for city in CITIES:
        calls.clear()
        result = await run([*history, {"role": "user", "content": question(city)}])
        expect(city, calls, result.final_output)
        history = result.to_input_list()
    await client.close()


async def pydantic_ai(url: str, streamed: bool) -> None:
    from openai import AsyncOpenAI
    from pydantic_ai import Agent
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    client = AsyncOpenAI(base_url=url + "/v1", api_key="none")
    name = (await client.models.list()).data[0].id
    model = OpenAIChatModel(name, provider=OpenAIProvider(openai_client=client))
    agent = Agent(model, model_settings={"temperature": 0, "max_tokens": MAX_TOKENS})
    calls: list[tuple[str, dict[str, Any]]] = []

    @agent.tool_plain(docstring_format="google")
    def get_population(city: str) -> str:
        """Get the population of a city.

        Args:
            city: the city
        """
        calls.append(("get_population", {"city": city}))
        return RESULT

    async def run(text: str, history: Any) -> tuple[str, Any]:
        if not streamed:
            result = await agent.run(text, message_history=history)
            return result.output, result.all_messages()
        async with agent.run_stream(text, message_history=history) as stream:
            return await stream.get_output(), stream.all_messages()

    history = None
    for city in CITIES:
        calls.clear()
        answer, history = await run(question(city), history)
        expect(city, calls, answer)
    await client.close()


def langchain(url: str, streamed: bool) -> None:
    from langchain_core.messages import AIMessageChunk, HumanMessage, ToolMessage
    from langchain_openai import ChatOpenAI

    name = OpenAILoop(url).model
    model = ChatOpenAI(model=name, base_url=url + "/v1", api_key="none", temperature=0, max_tokens=MAX_TOKENS)
    bound = model.bind_tools([TOOL])

    def ask(messages: list[Any]) -> Any:
        if not streamed:
            return bound.invoke(messages)
        whole: AIMessageChunk | None = None
        for chunk in bound.stream(messages):
            whole = chunk if whole is None else whole + chunk
        return whole

    messages: list[Any] = []
    for city in CITIES:
        messages.append(HumanMessage(question(city)))
        calls: list[tuple[str, dict[str, Any]]] = []
        for _ in range(MAX_REPLIES):
            message = ask(messages)
            messages.append(message)
            if not message.tool_calls:
                break
            for call in message.tool_calls:
                calls.append((call["name"], call["args"]))
                messages.append(ToolMessage(RESULT, tool_call_id=call["id"], status="success"))
        expect(city, calls, messages[-1].text)


def langchain_agent(url: str) -> None:
    """LangChain's own agent, which sends its tools and history as it likes."""
    from langchain.agents import create_agent
    from langchain_core.tools import tool
    from langchain_openai import ChatOpenAI

    name = OpenAILoop(url).model
    model = ChatOpenAI(model=name, base_url=url + "/v1", api_key="none", temperature=0, max_tokens=MAX_TOKENS)
    calls: list[tuple[str, dict[str, Any]]] = []

    @tool(parse_docstring=True)
    def get_population(city: str) -> str:
        """Get the population of a city.

        Args:
            city: the city
        """
        calls.append(("get_population", {"city": city}))
        return RESULT

    agent: Any = create_agent(model, [get_population])
    messages: list[Any] = []
    for city in CITIES:
        calls.clear()
        result = agent.invoke({"messages": [*messages, ("user", question(city))]})
        messages = result["messages"]
        expect(city, calls, messages[-1].text)


LOOPS: dict[str, Callable[[str], Awaitable[None] | None]] = {
    "openai create": openai_create,
    "openai create, streamed": openai_create_streamed,
    "openai parse": openai_parse,
    "openai stream": openai_stream,
    "litellm": lambda url: litellm_loop(url, streamed=False),
    "litellm, streamed": lambda url: litellm_loop(url, streamed=True),
    "openai-agents": lambda url: openai_agents(url, streamed=False),
    "openai-agents, streamed": lambda url: openai_agents(url, streamed=True),
    "pydantic-ai": lambda url: pydantic_ai(url, streamed=False),
    "pydantic-ai, streamed": lambda url: pydantic_ai(url, streamed=True),
    "langchain-openai": lambda url: langchain(url, streamed=False),
    "langchain-openai, streamed": lambda url: langchain(url, streamed=True),
    "langchain agent": langchain_agent,
}


def main() -> int:
    url, failed = sys.argv[1], 0
    for name, loop in LOOPS.items():
        try:
            waiting = loop(url)
            if waiting is not None:
                asyncio.run(waiting)  # type: ignore[arg-type]
            print(f"{name}: right")
        except Exception as error:  # noqa: BLE001 - a client's own errors are of many kinds; each is told and counted
            failed += 1
            print(f"{name}: WRONG: {type(error).__name__}: {error}")
            if not isinstance(error, Wrong):
                traceback.print_exc()
    print(f"{len(LOOPS) - failed} of {len(LOOPS)} loops right")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
