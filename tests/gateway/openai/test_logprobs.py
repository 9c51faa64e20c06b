"""Tokens and their log-probabilities as text."""

import json
import math

from expertfleet.gateway.events.served_model import Model
from expertfleet.gateway.openai.logprobs import chat_logprobs, completion_logprobs
from expertfleet.proto.generated import generate_pb2 as pb


def test_bytes_that_are_no_text_are_spelled_out_and_stay_apart(model: Model) -> None:
    lead = [id_ for id_ in range(256) if model.tokenizer.token_bytes(id_)[0] >= 0xC2][:2]
    entry = pb.TokenLogprobs(logprob=-1, top_ids=lead, top_logprobs=[-1, -2])
    shown, offset = completion_logprobs([lead[0]], [entry], model, 5)
    assert len(shown["top_logprobs"][0]) == 2
    assert shown["tokens"][0].startswith("bytes:\\x")
    assert (shown["text_offset"], offset) == ([5], 5 + len(shown["tokens"][0]))
    (token,) = chat_logprobs([lead[0]], [entry], model)
    assert bytes(token["bytes"]) == model.tokenizer.token_bytes(lead[0])


def test_an_impossible_token_stays_json(model: Model) -> None:
    entry = pb.TokenLogprobs(logprob=-math.inf, top_ids=[1], top_logprobs=[-math.inf])
    json.dumps(chat_logprobs([0], [entry], model), allow_nan=False)
    json.dumps(completion_logprobs([0], [entry], model, 0), allow_nan=False)
