"""/v1/chat/completions: from the checked request to a job.

Knows nothing of what becomes of it. Messages are read, ids of tool calls renumbered, the template rendered.
"""

from ...checkpoint.chat_template import TemplateError
from ..engine.prepared_request import PreparedRequest
from ..events.answer import Ending
from ..events.output_parser import Parser
from ..events.served_model import Model
from ..http.errors import bad_value, unsupported
from .messages import read_messages
from .sampling import draw_seed, generate_request, seed_of, stop_ids
from .schemas import ChatRequest
from .tool_ids import renumber
from .tools import Toolbox, read_tools


def chat_job(request: ChatRequest, model: Model, request_id: str, ignored: list[str]) -> PreparedRequest[ChatRequest]:
    unread: set[str] = set()
    toolbox = read_tools(request, unread)
    _check_tools(toolbox, model)
    messages, first_call_number = renumber(read_messages(request.messages, unread))
    try:
        prompt_ids = model.template.render_ids(messages, list(toolbox.declared) or None)
    except TemplateError as error:
        raise bad_value("messages", str(error).removeprefix("messages: ")) from error
    seed = draw_seed() if request.seed is None else request.seed
    markers = model.markers
    opening = [*markers.sections, *([] if markers.call is None else [markers.call])]
    tools = toolbox.parameters if toolbox.callable else None
    thinks = model.ends_in_thinking(prompt_ids)
    return PreparedRequest(
        request=request,
        request_id=request_id,
        response_id=f"chatcmpl-{request_id}",
        sequences=tuple(
            generate_request(
                request,
                model,
                request_id=f"{request_id}-{index}",
                prompt_ids=prompt_ids,
                seed=seed_of(seed, index),
                forbidden=opening if toolbox.forbids_calls else (),
            )
            for index in range(request.n)
        ),
        ending=Ending(
            stop_ids=frozenset(stop_ids(request, model)),
            stops=tuple(request.stop),
            keep_stop=request.include_stop_str_in_output,
            one_call=toolbox.one_call,
        ),
        new_reader=lambda: Parser(markers, model.tokenizer.is_special, model.new_decoder(), tools, thinks=thinks),
        prompts=(prompt_ids,),
        ignored=(*ignored, *sorted(unread)),
        first_call_number=first_call_number,
    )


def _check_tools(toolbox: Toolbox, model: Model) -> None:
    markers = model.markers
    if toolbox.declared and not (markers.sections and None not in (markers.call, markers.arguments)):
        raise unsupported("tools", "this model's vocabulary has no tool-call markers")
