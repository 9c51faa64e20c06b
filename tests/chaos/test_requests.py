from harness.plan import Load
from harness.requests import make_requests

from expertfleet.checkpoint.chat_template import ChatTemplate
from expertfleet.checkpoint.tokenizer import Tokenizer
from expertfleet.demo.bundled import NANO_K2


def test_prompts_are_as_long_as_asked_for_and_the_seeds_alone() -> None:
    tokenizer = Tokenizer.from_dir(NANO_K2)
    template = ChatTemplate.from_dir(NANO_K2, tokenizer)
    load = Load(max_tokens=9, streams=6, prompt_tokens=(10, 600, 1500), seed=4)
    bodies = make_requests(load, NANO_K2)
    assert bodies == make_requests(load, NANO_K2)
    assert bodies != make_requests(Load(max_tokens=9, streams=6, prompt_tokens=(10, 600, 1500), seed=5), NANO_K2)
    lengths = [len(template.render_ids(body["messages"], body.get("tools", []))) for body in bodies]
    for index, wanted in enumerate((10, 600, 1500, 10, 600, 1500)):
        assert wanted <= lengths[index]
    assert max(lengths[1], lengths[4]) < 1500
    assert len({body["messages"][-1]["content"] for body in bodies}) > 1
    assert [body["temperature"] for body in bodies] == [0.0, 1.0] * 3


def test_sampling_is_the_loads() -> None:
    temperatures = {
        sampling: [
            body["temperature"] for body in make_requests(Load(max_tokens=9, streams=3, sampling=sampling), NANO_K2)
        ]
        for sampling in ("greedy", "seeded")
    }
    assert temperatures == {"greedy": [0.0] * 3, "seeded": [1.0] * 3}
