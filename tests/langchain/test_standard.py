"""LangChain's standard integration tests of a chat model, of ChatOpenAI against a running server.

Environment: SCONCE_BASE_URL, SCONCE_MODEL. What the model is too weak for is marked so.
"""

import os

import pytest
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests


class TestChatOpenAI(ChatModelIntegrationTests):
    @property
    def chat_model_class(self):
        return ChatOpenAI

    @property
    def chat_model_params(self):
        body = {"parallel_tool_calls": False}
        if "_calling" not in os.environ["PYTEST_CURRENT_TEST"]:
            # Otherwise the model repeats itself until its answer is cut; but in a call it is to
            # repeat a number of the question.
            body["repetition_penalty"] = 1.2
        return {
            "base_url": f"{os.environ['SCONCE_BASE_URL']}/v1",
            "api_key": "none",
            "model": os.environ["SCONCE_MODEL"],
            "max_retries": 0,
            "max_tokens": 120,
            "temperature": 0,
            "stream_usage": True,
            "extra_body": body,
        }

    @property
    def structured_output_kwargs(self):
        return {"method": "json_schema"}

    @property
    def supports_json_mode(self):
        return True

    @pytest.mark.xfail(reason="the model must choose a tool by itself, and is too weak to")
    def test_agent_loop(self, model):
        super().test_agent_loop(model)

    @pytest.mark.xfail(reason="the model must choose a tool by itself, and is too weak to")
    def test_unicode_tool_call_integration(self, model):
        super().test_unicode_tool_call_integration(model)

    @pytest.mark.xfail(reason="the model must choose an object's keys by itself")
    def test_json_mode(self, model):
        super().test_json_mode(model)
