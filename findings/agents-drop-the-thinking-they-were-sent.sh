#!/usr/bin/env bash
# openai 3.57.0, langchain-openai 1.7.4, openai-agents 0.24.0, pydantic-ai-slim 2.68.0, litellm 1.110.2, Python 3.11, 2026-12-01.
#
# A chat server answers with `reasoning_content` and a tool call. Each library runs the tool and asks again, with its defaults.
# Expected: the second request holds the assistant's message as it came, `reasoning_content` included, which servers of thinking
#   models want back (DeepSeek's and Moonshot's documents ask for it within a tool loop).
# Seen: two send it back, two drop it without a word. And what openai's own parse() gives, appended to the messages as its
#   documents show, carries `parsed_arguments`, a key that OpenAI's chat API does not define for a request.
# Output:
#   langchain-openai: no reasoning_content
#   litellm: reasoning_content
#   openai-agents: no reasoning_content
#   openai parse(): reasoning_content, parsed_arguments
#   pydantic-ai: reasoning_content
# Exits 1 if this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check openai==3.57.0 langchain-openai==1.7.4 \
  openai-agents==0.24.0 'pydantic-ai-slim[openai]==2.68.0' litellm==1.110.2 2>/dev/null
cat > "$folder/loops.py" <<'PY'
import asyncio
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

CALL = {"id": "c0", "type": "function", "function": {"name": "f", "arguments": "{}"}}
TOOL = {"type": "function", "function": {"name": "f", "strict": True, "parameters": {
    "type": "object", "properties": {}, "required": [], "additionalProperties": False}}}
bodies = []


class Chat(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        bodies.append(body)
        first = all(message["role"] != "tool" for message in body["messages"])
        message = {"role": "assistant", "content": None if first else "done", "reasoning_content": "hm"}
        if first:
            message["tool_calls"] = [CALL]
        answer = json.dumps({
            "id": "a", "object": "chat.completion", "created": 1, "model": "m",
            "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
            "choices": [{"index": 0, "finish_reason": "tool_calls" if first else "stop", "message": message}],
        }).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_):
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Chat)
threading.Thread(target=server.serve_forever, daemon=True).start()
url = f"http://127.0.0.1:{server.server_port}/v1"


def with_langchain():
    from langchain_core.messages import HumanMessage, ToolMessage
    from langchain_openai import ChatOpenAI

    model = ChatOpenAI(model="m", base_url=url, api_key="k").bind_tools([TOOL])
    question = HumanMessage("q")
    answer = model.invoke([question])
    model.invoke([question, answer, ToolMessage("1", tool_call_id=answer.tool_calls[0]["id"])])


def with_litellm():
    import litellm

    messages = [{"role": "user", "content": "q"}]
    more = {"model": "openai/m", "api_base": url, "api_key": "k", "tools": [TOOL]}
    messages.append(litellm.completion(messages=messages, **more).choices[0].message)
    messages.append({"role": "tool", "tool_call_id": "c0", "content": "1"})
    litellm.completion(messages=messages, **more)


def with_agents():
    from agents import Agent, OpenAIChatCompletionsModel, Runner, function_tool, set_tracing_disabled
    from openai import AsyncOpenAI

    set_tracing_disabled(True)

    @function_tool
    def f() -> str:
        return "1"

    model = OpenAIChatCompletionsModel("m", AsyncOpenAI(base_url=url, api_key="k"))
    asyncio.run(Runner.run(Agent(name="a", model=model, tools=[f]), "q"))


def with_parse():
    from openai import OpenAI

    client = OpenAI(base_url=url, api_key="k")
    messages = [{"role": "user", "content": "q"}]
    messages.append(client.chat.completions.parse(model="m", messages=messages, tools=[TOOL]).choices[0].message)
    messages.append({"role": "tool", "tool_call_id": "c0", "content": "1"})
    client.chat.completions.parse(model="m", messages=messages, tools=[TOOL])


def with_pydantic_ai():
    from pydantic_ai import Agent
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    agent = Agent(OpenAIChatModel("m", provider=OpenAIProvider(base_url=url, api_key="k")))

    @agent.tool_plain
    def f() -> str:
        return "1"

    agent.run_sync("q")


seen = {}
for name, loop in {"langchain-openai": with_langchain, "litellm": with_litellm, "openai-agents": with_agents,
                   "openai parse()": with_parse, "pydantic-ai": with_pydantic_ai}.items():
    bodies.clear()
    loop()
    (message,) = (each for each in bodies[1]["messages"] if each["role"] == "assistant")
    found = ["reasoning_content" if message.get("reasoning_content") == "hm" else "no reasoning_content"]
    found += ["parsed_arguments"] * ("parsed_arguments" in message["tool_calls"][0]["function"])
    seen[name] = ", ".join(found)
    print(f"{name}: {seen[name]}")
sys.exit(0 if seen == {
    "langchain-openai": "no reasoning_content", "litellm": "reasoning_content", "openai-agents": "no reasoning_content",
    "openai parse()": "reasoning_content, parsed_arguments", "pydantic-ai": "reasoning_content",
} else 1)
PY
LITELLM_LOCAL_MODEL_COST_MAP=True "$folder/venv/bin/python" "$folder/loops.py" 2>/dev/null
