"""Drives a running server with the clients and frameworks that people use.

Environment: SCONCE_BASE_URL, SCONCE_MODEL. The model is too weak to choose tools by itself, so
calls are forced by `tool_choice`, and structured output by schemas.
"""

import asyncio
import json
import os
import unittest
from typing import Literal

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
os.environ["OPENAI_AGENTS_DISABLE_TRACING"] = "1"

import anthropic
import instructor
import litellm
import openai
from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
)
from langchain_core.messages import HumanMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel
from pydantic_ai import Agent as PydanticAgent, NativeOutput, ToolOutput
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

URL = os.environ["SCONCE_BASE_URL"]
MODEL = os.environ["SCONCE_MODEL"]
QUESTION = "What is the capital of France?"

client = openai.OpenAI(base_url=f"{URL}/v1", api_key="none", max_retries=0, timeout=180)
claude = anthropic.Anthropic(base_url=URL, api_key="none", max_retries=0, timeout=180)


class Weather(BaseModel):
    """The weather that was asked for."""

    city: Literal["Paris", "Rome"]
    unit: Literal["C", "F"]


SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "enum": ["Paris", "Rome"]},
        "unit": {"type": "string", "enum": ["C", "F"]},
    },
    "required": ["city", "unit"],
    "additionalProperties": False,
}
FUNCTION = {"name": "get_weather", "description": "The weather of a city", "parameters": SCHEMA}


class OpenAI(unittest.TestCase):
    messages = [{"role": "user", "content": "What is the weather in Paris in Celsius?"}]
    tools = [{"type": "function", "function": FUNCTION}]

    def test_a_forced_call_and_its_result(self):
        choice = {"type": "function", "function": {"name": "get_weather"}}
        answer = client.chat.completions.create(
            model=MODEL, messages=self.messages, tools=self.tools, tool_choice=choice, temperature=0
        )
        message = answer.choices[0].message
        self.assertEqual(answer.choices[0].finish_reason, "tool_calls")
        (call,) = message.tool_calls
        Weather.model_validate_json(call.function.arguments)
        result = {"role": "tool", "tool_call_id": call.id, "content": "12 degrees and rain"}
        history = [*self.messages, message.model_dump(exclude_none=True), result]
        answer = client.chat.completions.create(
            model=MODEL, messages=history, tools=self.tools, tool_choice="none", max_tokens=30
        )
        self.assertTrue(answer.choices[0].message.content)

    def test_a_streamed_call_is_the_whole_one(self):
        options = dict(model=MODEL, messages=self.messages, tools=self.tools, temperature=0)
        choice = {"type": "function", "function": {"name": "get_weather"}}
        with client.chat.completions.stream(**options, tool_choice=choice) as stream:
            events = [event.type for event in stream]
            streamed = stream.get_final_completion().choices[0].message.tool_calls[0]
        self.assertIn("tool_calls.function.arguments.delta", events)
        whole = client.chat.completions.create(**options, tool_choice=choice)
        whole = whole.choices[0].message.tool_calls[0]
        self.assertEqual(streamed.function.arguments, whole.function.arguments)

    def test_parsed_answers(self):
        answer = client.chat.completions.parse(
            model=MODEL, messages=self.messages, response_format=Weather
        )
        self.assertIsInstance(answer.choices[0].message.parsed, Weather)
        answer = client.responses.parse(model=MODEL, input=QUESTION, text_format=Weather)
        self.assertIsInstance(answer.output_parsed, Weather)

    def test_tools_beside_a_form(self):
        options = dict(model=MODEL, max_completion_tokens=200, temperature=0)
        tool = openai.pydantic_function_tool(Weather, name="get_weather")
        answer = client.chat.completions.parse(
            **options, messages=self.messages, tools=[tool], response_format=Weather
        )
        message = answer.choices[0].message
        calls = [call.function.parsed_arguments for call in message.tool_calls or []]
        self.assertTrue(message.parsed or calls)
        for said in calls or [message.parsed]:
            self.assertIsInstance(said, Weather)
        with client.chat.completions.stream(
            **options, messages=self.messages, tools=[tool], response_format=Weather
        ) as stream:
            streamed = stream.get_final_completion().choices[0].message
        # The first event has content that is empty.
        self.assertEqual(streamed.content or None, message.content)
        self.assertEqual(streamed.parsed, message.parsed)
        told = client.chat.completions.parse(
            **options, messages=self.messages, tools=[tool], response_format=Weather,
            tool_choice="none",
        )
        self.assertIsInstance(told.choices[0].message.parsed, Weather)

    def test_responses(self):
        first = client.responses.create(model=MODEL, input=QUESTION, temperature=0)
        self.assertIn("Paris", first.output_text)
        with client.responses.stream(model=MODEL, input=QUESTION, temperature=0) as stream:
            text = "".join(e.delta for e in stream if e.type == "response.output_text.delta")
            self.assertEqual(stream.get_final_response().output_text, text)
        self.assertEqual(text, first.output_text)
        next_one = client.responses.create(
            model=MODEL, input="And of Italy?", previous_response_id=first.id, temperature=0
        )
        self.assertGreater(next_one.usage.input_tokens, first.usage.input_tokens)
        self.assertEqual(client.responses.retrieve(first.id).output_text, first.output_text)
        client.responses.delete(first.id)
        with self.assertRaises(openai.NotFoundError):
            client.responses.retrieve(first.id)
        tools = [{"type": "function", "strict": True, **FUNCTION}]
        forced = client.responses.create(
            model=MODEL, input="Weather in Paris?", tools=tools, tool_choice="required",
            parallel_tool_calls=False, temperature=0,
        )
        Weather.model_validate_json(forced.output[0].arguments)

    def test_errors(self):
        with self.assertRaises(openai.BadRequestError) as refused:
            client.responses.create(model=MODEL, input="x", max_output_tokens=0)
        self.assertEqual(refused.exception.param, "max_output_tokens")
        with self.assertRaises(openai.NotFoundError):
            client.responses.create(model="gpt-0", input="x")


class Anthropic(unittest.TestCase):
    messages = [{"role": "user", "content": QUESTION}]
    tools = [{"name": "get_weather", "description": "The weather", "input_schema": SCHEMA}]

    def test_a_message_whole_and_streamed(self):
        options = dict(model=MODEL, max_tokens=40, messages=self.messages)
        options["extra_body"] = {"temperature": 0}
        whole = claude.messages.create(**options)
        self.assertIn("Paris", whole.content[0].text)
        self.assertEqual(whole.stop_reason, "end_turn")
        with claude.messages.stream(**options) as stream:
            text = "".join(stream.text_stream)
            usage = stream.get_final_message().usage
        self.assertEqual(text, whole.content[0].text)
        self.assertEqual(usage.output_tokens, whole.usage.output_tokens)
        counted = claude.messages.count_tokens(model=MODEL, messages=self.messages)
        cached = whole.usage.cache_read_input_tokens
        self.assertEqual(counted.input_tokens, whole.usage.input_tokens + cached)

    def test_a_forced_call_and_its_result(self):
        choice = {"type": "tool", "name": "get_weather"}
        options = dict(model=MODEL, max_tokens=200, messages=self.messages, tools=self.tools)
        answer = claude.messages.create(**options, tool_choice=choice)
        self.assertEqual(answer.stop_reason, "tool_use")
        (call,) = [block for block in answer.content if block.type == "tool_use"]
        Weather.model_validate(call.input)
        result = {"type": "tool_result", "tool_use_id": call.id, "content": "rain"}
        history = [
            *self.messages,
            {"role": "assistant", "content": [b.model_dump(exclude_none=True) for b in answer.content]},
            {"role": "user", "content": [result, {"type": "text", "text": "So?"}]},
        ]
        last = claude.messages.create(**options | {"messages": history}, tool_choice={"type": "none"})
        self.assertTrue(last.content)
        with claude.messages.stream(**options, tool_choice=choice) as stream:
            Weather.model_validate(stream.get_final_message().content[0].input)

    def test_parsed_answers(self):
        options = dict(model=MODEL, max_tokens=200, messages=self.messages)
        answer = claude.messages.parse(**options, output_format=Weather)
        self.assertIsInstance(answer.parsed_output, Weather)
        with claude.messages.stream(**options, output_format=Weather) as stream:
            self.assertIsInstance(stream.get_final_message().parsed_output, Weather)
        schema = {"type": "json_schema", "schema": SCHEMA}
        answer = claude.messages.create(**options, output_config={"format": schema})
        Weather.model_validate_json(answer.content[0].text)
        # By its older name, which the client no longer sends itself.
        answer = claude.messages.create(**options, extra_body={"output_format": schema})
        Weather.model_validate_json(answer.content[0].text)
        tools = [self.tools[0] | {"strict": True}]
        answer = claude.messages.parse(**options, output_format=Weather, tools=tools)
        for block in answer.content:
            if block.type == "tool_use":
                Weather.model_validate(block.input)
            else:
                self.assertIsInstance(block.parsed_output, Weather)

    def test_errors(self):
        with self.assertRaises(anthropic.NotFoundError):
            claude.messages.create(model="claude-0", max_tokens=5, messages=self.messages)
        with self.assertRaises(anthropic.BadRequestError) as refused:
            claude.messages.create(model=MODEL, max_tokens=5, messages=[])
        self.assertEqual(refused.exception.body["error"]["type"], "invalid_request_error")


class LiteLLM(unittest.TestCase):
    options = dict(api_base=f"{URL}/v1", api_key="none", model=f"openai/{MODEL}", temperature=0)
    messages = [{"role": "user", "content": QUESTION}]

    def test_chat_whole_and_streamed(self):
        whole = litellm.completion(messages=self.messages, **self.options)
        self.assertIn("Paris", whole.choices[0].message.content)
        chunks = litellm.completion(messages=self.messages, stream=True, **self.options)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        self.assertEqual(text, whole.choices[0].message.content)

    def test_a_prompt_beyond_the_context_is_known_as_that(self):
        long = [{"role": "user", "content": "word " * 5000}]
        with self.assertRaises(litellm.ContextWindowExceededError):
            litellm.completion(messages=long, **self.options)

    def test_anthropics_wire(self):
        options = dict(api_base=URL, api_key="none", model=f"anthropic/{MODEL}", max_tokens=30)
        answer = litellm.completion(messages=self.messages, **options)
        self.assertTrue(answer.choices[0].message.content)


class LangChain(unittest.TestCase):
    model = ChatOpenAI(base_url=f"{URL}/v1", api_key="none", model=MODEL, temperature=0)

    def test_chat_whole_streamed_and_at_once(self):
        whole = self.model.invoke([HumanMessage(QUESTION)])
        self.assertIn("Paris", whole.content)
        self.assertGreater(whole.usage_metadata["output_tokens"], 0)
        streamed = "".join(chunk.content for chunk in self.model.stream(QUESTION))
        self.assertEqual(streamed, whole.content)
        self.assertEqual(len(self.model.batch([QUESTION] * 4)), 4)

    def test_tools_and_structured_output(self):
        @tool
        def get_weather(city: Literal["Paris", "Rome"], unit: Literal["C", "F"]) -> str:
            """The weather of a city."""
            return "rain"

        bound = self.model.bind_tools([get_weather], tool_choice="get_weather")
        (call,) = bound.invoke("Weather in Paris?").tool_calls
        self.assertEqual(get_weather.invoke(call["args"]), "rain")
        for method in ["json_schema", "function_calling"]:
            answer = self.model.with_structured_output(Weather, method=method).invoke(QUESTION)
            self.assertIsInstance(answer, Weather)


class Instructor(unittest.TestCase):
    def test_structured_output_of_every_kind(self):
        for mode in [instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA, instructor.Mode.TOOLS_STRICT]:
            with self.subTest(mode):
                wrapped = instructor.from_openai(client, mode=mode)
                answer = wrapped.chat.completions.create(
                    model=MODEL, messages=[{"role": "user", "content": "Weather in Paris?"}],
                    response_model=Weather, max_retries=0,
                )
                self.assertIsInstance(answer, Weather)


class PydanticAI(unittest.TestCase):
    def test_text_and_output_of_every_kind(self):
        # Its Anthropic model does not fit that client's current version.
        provider = OpenAIProvider(base_url=f"{URL}/v1", api_key="none")
        model = OpenAIChatModel(MODEL, provider=provider)
        self.assertTrue(PydanticAgent(model).run_sync(QUESTION).output)
        for kind in [ToolOutput, NativeOutput]:
            with self.subTest(kind.__name__):
                agent = PydanticAgent(model, output_type=kind(Weather))
                self.assertIsInstance(agent.run_sync("Weather in Paris?").output, Weather)


class OpenAIAgents(unittest.TestCase):
    def test_an_agent_calls_a_tool_and_answers(self):
        called = []

        @function_tool
        def get_weather(city: Literal["Paris", "Rome"]) -> str:
            """The weather of a city."""
            called.append(city)
            return "rain"

        openai_client = openai.AsyncOpenAI(base_url=f"{URL}/v1", api_key="none")
        for kind in [OpenAIChatCompletionsModel, OpenAIResponsesModel]:
            with self.subTest(kind.__name__):
                called.clear()
                agent = Agent(
                    name="weather",
                    model=kind(MODEL, openai_client),
                    tools=[get_weather],
                    model_settings=ModelSettings(tool_choice="required", parallel_tool_calls=False),
                )
                result = asyncio.run(Runner.run(agent, "Weather in Paris?", max_turns=3))
                self.assertEqual(len(called), 1)
                self.assertTrue(result.final_output)


if __name__ == "__main__":
    unittest.main(verbosity=2)
