"""Drives a running server with the official client.

Environment: SCONCE_BASE_URL, SCONCE_MODEL, SCONCE_API_KEY.
"""

import asyncio
import json
import os
import time
import unittest
import urllib.request

import openai

BASE_URL = os.environ["SCONCE_BASE_URL"]
MODEL = os.environ["SCONCE_MODEL"]
KEY = os.environ["SCONCE_API_KEY"]
CAPITAL = [{"role": "user", "content": "What is the capital of France?"}]

client = openai.OpenAI(base_url=f"{BASE_URL}/v1", api_key=KEY, max_retries=0, timeout=120)


def chat(**options):
    options = {"model": MODEL, "messages": CAPITAL, "temperature": 0, "max_tokens": 24} | options
    return client.chat.completions.create(**options)


def complete(**options):
    options = {"model": MODEL, "prompt": "One, two, three,", "temperature": 0} | options
    return client.completions.create(**options)


class Models(unittest.TestCase):
    def test_list_and_retrieve(self):
        models = client.models.list().data
        self.assertEqual([model.id for model in models], [MODEL])
        self.assertEqual(client.models.retrieve(MODEL).id, MODEL)
        with self.assertRaises(openai.NotFoundError):
            client.models.retrieve("gpt-5")


class Chat(unittest.TestCase):
    def test_whole(self):
        answer = chat()
        choice = answer.choices[0]
        self.assertIn("Paris", choice.message.content)
        self.assertEqual(choice.message.role, "assistant")
        self.assertEqual(choice.finish_reason, "stop")
        usage = answer.usage
        self.assertEqual(usage.total_tokens, usage.prompt_tokens + usage.completion_tokens)
        self.assertGreater(usage.prompt_tokens, 10)

    def test_stream_is_the_whole_in_pieces(self):
        whole = chat()
        chunks = list(chat(stream=True, stream_options={"include_usage": True}))
        self.assertEqual(chunks[0].choices[0].delta.role, "assistant")
        pieces = [c.choices[0].delta.content or "" for c in chunks if c.choices]
        self.assertEqual("".join(pieces), whole.choices[0].message.content)
        self.assertGreater(len(pieces), 3)
        self.assertEqual(chunks[-2].choices[0].finish_reason, "stop")
        self.assertEqual(chunks[-1].choices, [])
        self.assertEqual(chunks[-1].usage, whole.usage)
        self.assertTrue(all(c.usage is None for c in chunks[:-1]))
        self.assertEqual(len({c.id for c in chunks}), 1)

    def test_continuous_usage(self):
        options = {"include_usage": True, "continuous_usage_stats": True}
        chunks = list(chat(stream=True, stream_options=options))
        counts = [chunk.usage.completion_tokens for chunk in chunks]
        self.assertEqual(counts, sorted(counts))
        self.assertGreater(counts[-1], 0)

    def test_content_parts_and_system(self):
        parts = [{"type": "text", "text": "What is the capital of France?"}]
        messages = [
            {"role": "system", "content": "You answer questions."},
            {"role": "user", "content": parts},
        ]
        self.assertIn("Paris", chat(messages=messages).choices[0].message.content)

    def test_max_tokens(self):
        for name in ("max_tokens", "max_completion_tokens"):
            answer = chat(**{"max_tokens": openai.NOT_GIVEN, name: 3})
            self.assertEqual(answer.choices[0].finish_reason, "length")
            self.assertEqual(answer.usage.completion_tokens, 3)

    def test_stop_never_leaks(self):
        whole = chat(stop=" is")
        self.assertEqual(whole.choices[0].message.content, "The capital of France")
        self.assertEqual(whole.choices[0].finish_reason, "stop")
        chunks = chat(stop=["France is", "zzz"], stream=True)
        text = "".join(c.choices[0].delta.content or "" for c in chunks)
        self.assertEqual(text, "The capital of ")

    def test_logprobs(self):
        content = chat(logprobs=True, top_logprobs=3).choices[0].logprobs.content
        self.assertIn("Paris", "".join(at.token for at in content))
        for at in content:
            self.assertLessEqual(at.logprob, 0)
            self.assertEqual(len(at.top_logprobs), 3)
            values = [top.logprob for top in at.top_logprobs]
            self.assertEqual(values, sorted(values, reverse=True))
            self.assertEqual(at.top_logprobs[0].token, at.token)
            self.assertAlmostEqual(at.top_logprobs[0].logprob, at.logprob, places=5)
            self.assertEqual(bytes(at.bytes).decode(), at.token)

    def test_n_and_seed(self):
        options = {"n": 3, "seed": 5, "temperature": 1.2, "top_p": 0.95, "max_tokens": 12}
        first, second = chat(**options), chat(**options)
        texts = [choice.message.content for choice in first.choices]
        self.assertEqual(texts, [choice.message.content for choice in second.choices])
        self.assertEqual([choice.index for choice in first.choices], [0, 1, 2])
        self.assertGreater(len(set(texts)), 1)
        streamed = ["", "", ""]
        for chunk in chat(stream=True, **options):
            for choice in chunk.choices:
                streamed[choice.index] += choice.delta.content or ""
        self.assertEqual(streamed, texts)

    def test_vllm_extras(self):
        extra = {
            "top_k": 20, "min_p": 0.05, "repetition_penalty": 1.1, "ignore_eos": True,
            "min_tokens": 4, "chat_template_kwargs": {},
        }
        answer = chat(extra_body=extra, temperature=0.8, max_tokens=40)
        self.assertEqual(answer.usage.completion_tokens, 40)
        self.assertEqual(answer.choices[0].finish_reason, "length")


class Completions(unittest.TestCase):
    def test_kinds_of_prompts(self):
        text = complete(max_tokens=8).choices[0].text
        self.assertIn("four", text)
        url = urllib.request.Request(
            f"{BASE_URL}/tokenize",
            data=b'{"prompt": "One, two, three,"}',
            headers={"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"},
        )
        tokens = json.load(urllib.request.urlopen(url))["tokens"]
        self.assertEqual(complete(prompt=tokens, max_tokens=8).choices[0].text, text)
        many = complete(prompt=["One, two, three,", "A B C"], max_tokens=8)
        self.assertEqual(len(many.choices), 2)
        self.assertEqual(many.choices[0].text, text)
        lists = complete(prompt=[tokens, tokens], max_tokens=8)
        self.assertEqual([choice.text for choice in lists.choices], [text, text])
        self.assertEqual(lists.usage.prompt_tokens, 2 * len(tokens))

    def test_default_length_and_stream(self):
        whole = complete()
        self.assertEqual(whole.usage.completion_tokens, 16)
        chunks = list(complete(stream=True))
        self.assertEqual("".join(c.choices[0].text for c in chunks), whole.choices[0].text)
        self.assertEqual(chunks[-1].choices[0].finish_reason, "length")

    def test_echo_and_logprobs(self):
        answer = complete(echo=True, logprobs=2, max_tokens=4).choices[0]
        self.assertTrue(answer.text.startswith("One, two, three,"))
        logprobs = answer.logprobs
        self.assertEqual("".join(logprobs.tokens), answer.text)
        self.assertIsNone(logprobs.token_logprobs[0])
        self.assertTrue(all(value <= 0 for value in logprobs.token_logprobs[1:]))
        self.assertEqual(logprobs.text_offset[1], len(logprobs.tokens[0]))
        scored = complete(echo=True, logprobs=1, max_tokens=0)
        self.assertEqual(scored.choices[0].text, "One, two, three,")
        self.assertEqual(
            scored.choices[0].logprobs.token_logprobs,
            logprobs.token_logprobs[: len(scored.choices[0].logprobs.tokens)],
        )

    def test_stop_token_and_bias(self):
        first = complete(max_tokens=1, logprobs=1).choices[0]
        free = complete(max_tokens=6).choices[0].text
        banned = complete(max_tokens=6, logit_bias={"2": -100, "0": -100}).choices[0].text
        self.assertEqual(free, banned)
        forced = complete(max_tokens=3, logit_bias={"300": 100}).choices[0]
        self.assertNotEqual(forced.text[: len(first.text)], first.text)
        stopped = complete(max_tokens=9, extra_body={"stop_token_ids": [28]})
        self.assertEqual(stopped.choices[0].finish_reason, "stop")
        self.assertEqual(stopped.choices[0].stop_reason, 28)


class Errors(unittest.TestCase):
    def refused(self, kind=openai.BadRequestError, **options):
        with self.assertRaises(kind) as caught:
            chat(**options)
        return caught.exception

    def test_wrong_requests(self):
        self.assertEqual(self.refused(openai.NotFoundError, model="gpt-5").code, "model_not_found")
        error = self.refused(extra_body={"temprature": 1})
        self.assertIn("temprature", error.message)
        self.assertIn("did you mean temperature", error.message)
        self.assertEqual(self.refused(temperature=-1).param, "temperature")
        self.assertIn("top_p", self.refused(top_p=2).message)
        self.assertEqual(self.refused(messages=[]).param, "messages")
        self.assertEqual(self.refused(n=100000).param, "n")
        self.assertIn("messages", self.refused(messages="hello").message)
        error = self.refused(messages=[{"role": "user", "content": "word " * 9000}])
        self.assertEqual(error.code, "context_length_exceeded")

    def test_unsupported_fields(self):
        self.assertEqual(self.refused(functions=[{"name": "f"}]).param, "functions")
        schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"not": {}}}}
        param = self.refused(response_format=schema).param
        self.assertEqual(param, "response_format.json_schema.schema")
        image = [{"type": "image_url", "image_url": {"url": "data:,"}}]
        self.refused(messages=[{"role": "user", "content": image}])
        # What asks for nothing is accepted.
        chat(response_format={"type": "text"}, tools=[], user="somebody", max_tokens=1)

    def test_key(self):
        other = openai.OpenAI(base_url=f"{BASE_URL}/v1", api_key="wrong", max_retries=0)
        with self.assertRaises(openai.AuthenticationError) as caught:
            other.models.list()
        self.assertEqual(caught.exception.code, "invalid_api_key")


class Metering(unittest.TestCase):
    def check(self, usage):
        metering = usage.model_extra["metering"]
        self.assertGreater(metering["device_seconds"], 0)
        self.assertGreater(metering["kv_block_seconds"], 0)
        self.assertGreaterEqual(metering["queue_seconds"], 0)
        self.assertIn("joules", metering)
        self.assertIsNone(metering["price"])

    def test_what_an_answer_took(self):
        self.check(chat(extra_body={"include_metering": True}).usage)
        self.assertNotIn("metering", chat().usage.model_extra or {})

    def test_what_a_stream_took(self):
        options = {"include_usage": True, "include_metering": True}
        chunks = list(chat(stream=True, stream_options=options))
        self.check(chunks[-1].usage)

    def test_a_timeout_that_is_too_short(self):
        with self.assertRaises(openai.APIStatusError) as caught:
            chat(max_tokens=2000, extra_body={"timeout": 0.2, "ignore_eos": True})
        self.assertIn(caught.exception.status_code, (503, 504))


class Batches(unittest.TestCase):
    ENDPOINT = "/v1/chat/completions"

    def upload(self, bodies):
        """A file of these requests, by their custom ids."""
        lines = [
            json.dumps({"custom_id": name, "method": "POST", "url": self.ENDPOINT, "body": body})
            for name, body in bodies.items()
        ]
        content = "\n".join(lines).encode()
        file = client.files.create(file=("requests.jsonl", content), purpose="batch")
        self.assertEqual((file.filename, file.bytes), ("requests.jsonl", len(content)))
        self.assertEqual(client.files.content(file.id).read(), content)
        return file

    def create(self, file, **options):
        options = {"endpoint": self.ENDPOINT, "completion_window": "24h"} | options
        return client.batches.create(input_file_id=file.id, **options)

    def ended(self, batch):
        """The batch once it has ended, which clients learn by asking."""
        for _ in range(1200):
            if batch.status in ("completed", "failed", "cancelled", "expired"):
                return batch
            time.sleep(0.1)
            batch = client.batches.retrieve(batch.id)
        self.fail(f"it does not end: {batch}")

    def lines(self, id):
        text = client.files.content(id).text
        return {line["custom_id"]: line for line in map(json.loads, text.splitlines())}

    def test_answers_are_those_of_the_requests_alone(self):
        ask = {"model": MODEL, "messages": CAPITAL, "temperature": 0, "max_tokens": 24}
        seeded = {f"seed {seed}": ask | {"temperature": 1, "seed": seed} for seed in range(4)}
        wrong = {"hot": ask | {"temperature": "hot"}, "other": ask | {"model": "gpt-5"}}
        file = self.upload({"plain": ask} | seeded | wrong)
        batch = self.create(file, metadata={"run": "7"})
        self.assertEqual((batch.input_file_id, batch.endpoint), (file.id, self.ENDPOINT))
        batch = self.ended(batch)
        self.assertEqual((batch.status, batch.metadata), ("completed", {"run": "7"}))
        counts = batch.request_counts
        self.assertEqual((counts.total, counts.completed, counts.failed), (7, 5, 2))
        self.assertGreaterEqual(batch.completed_at, batch.created_at)
        answers = self.lines(batch.output_file_id)
        self.assertEqual(set(answers), {"plain", *seeded})
        for name, body in ({"plain": ask} | seeded).items():
            response = answers[name]["response"]
            self.assertEqual((response["status_code"], answers[name]["error"]), (200, None))
            alone = client.chat.completions.create(**body).choices[0].message.content
            self.assertEqual(response["body"]["choices"][0]["message"]["content"], alone, name)
        errors = self.lines(batch.error_file_id)
        self.assertEqual(
            {name: line["response"]["status_code"] for name, line in errors.items()},
            {"hot": 400, "other": 404},
        )
        self.assertEqual(errors["hot"]["response"]["body"]["error"]["param"], "temperature")
        self.assertIn(batch.id, [listed.id for listed in client.batches.list(limit=1)])
        for id in (batch.output_file_id, batch.error_file_id):
            self.assertEqual(client.files.retrieve(id).purpose, "batch_output")
            self.assertTrue(client.files.delete(id).deleted)
            with self.assertRaises(openai.NotFoundError):
                client.files.content(id)
        with self.assertRaises(openai.ConflictError):
            client.batches.cancel(batch.id)

    def test_a_file_that_is_no_batch(self):
        file = client.files.create(file=("a.jsonl", b"{}\n"), purpose="batch")
        batch = self.ended(self.create(file))
        self.assertEqual((batch.status, batch.errors.data[0].line), ("failed", 1))
        with self.assertRaises(openai.NotFoundError) as refused:
            client.batches.create(
                input_file_id="file-0", endpoint=self.ENDPOINT, completion_window="24h"
            )
        self.assertEqual(refused.exception.param, "input_file_id")
        with self.assertRaises(openai.BadRequestError) as refused:
            client.files.create(file=("a.txt", b"x"), purpose="assistants")
        self.assertEqual(refused.exception.param, "purpose")

    def test_a_batch_that_is_given_up(self):
        ask = {"model": MODEL, "messages": CAPITAL, "max_tokens": 40, "ignore_eos": True}
        batch = self.create(self.upload({str(index): ask for index in range(200)}))
        batch = client.batches.cancel(batch.id)
        self.assertEqual(batch.status, "cancelling")
        batch = self.ended(batch)
        self.assertEqual(batch.status, "cancelled")
        self.assertLess(batch.request_counts.completed, 200)


class Concurrency(unittest.TestCase):
    def test_many_streams_and_disconnects(self):
        expected = chat().choices[0].message.content

        async def one(other, index):
            stream = await other.chat.completions.create(
                model=MODEL, messages=CAPITAL, temperature=0, max_tokens=24, stream=True
            )
            text = ""
            async for chunk in stream:
                text += chunk.choices[0].delta.content or ""
                if index % 2 and len(text) > 5:
                    await stream.close()
                    return None
            return text

        async def all_of_them():
            async with openai.AsyncOpenAI(base_url=f"{BASE_URL}/v1", api_key=KEY) as other:
                return await asyncio.gather(*(one(other, index) for index in range(16)))

        texts = asyncio.run(all_of_them())
        self.assertEqual([text for text in texts if text], [expected] * 8)
        for _ in range(100):
            metrics = urllib.request.urlopen(f"{BASE_URL}/metrics").read().decode()
            lines = [l for l in metrics.splitlines() if l.startswith("vllm:kv_cache_usage_perc")]
            if float(lines[0].split()[-1]) == 0:
                return
            chat(max_tokens=1)
        self.fail("blocks are still held")


if __name__ == "__main__":
    unittest.main()
