"""Drives a running server of an encoder with the official client.

Environment: SCONCE_BASE_URL, SCONCE_MODEL, SCONCE_API_KEY.
"""

import math
import os
import unittest

import openai

BASE_URL = os.environ["SCONCE_BASE_URL"]
MODEL = os.environ["SCONCE_MODEL"]
KEY = os.environ["SCONCE_API_KEY"]
TEXTS = [
    "What is the capital of France?",
    "Paris is the capital of France.",
    "Photosynthesis turns light into sugar.",
]

client = openai.OpenAI(base_url=f"{BASE_URL}/v1", api_key=KEY, max_retries=0, timeout=120)


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


class Embeddings(unittest.TestCase):
    def test_base64_which_the_client_asks_for_and_floats_are_the_same(self):
        answer = client.embeddings.create(model=MODEL, input=TEXTS)
        self.assertEqual([item.index for item in answer.data], [0, 1, 2])
        self.assertEqual(answer.usage.prompt_tokens, answer.usage.total_tokens)
        floats = client.embeddings.create(model=MODEL, input=TEXTS, encoding_format="float")
        for ours, theirs in zip(answer.data, floats.data, strict=True):
            self.assertEqual(len(ours.embedding), 384)
            self.assertAlmostEqual(math.hypot(*ours.embedding), 1, places=5)
            for a, b in zip(ours.embedding, theirs.embedding, strict=True):
                self.assertAlmostEqual(a, b, places=7)

    def test_what_belongs_together_is_near(self):
        question, answer, other = (
            item.embedding for item in client.embeddings.create(model=MODEL, input=TEXTS).data
        )
        self.assertGreater(dot(question, answer), 0.7)
        self.assertLess(dot(question, other), 0.2)

    def test_errors(self):
        with self.assertRaises(openai.BadRequestError) as refused:
            client.embeddings.create(model=MODEL, input="word " * 400)
        self.assertEqual(refused.exception.code, "context_length_exceeded")
        with self.assertRaises(openai.BadRequestError):
            client.embeddings.create(model=MODEL, input="a", dimensions=64)
        with self.assertRaises(openai.BadRequestError) as refused:
            client.completions.create(model=MODEL, prompt="a")
        self.assertIn("makes embeddings", str(refused.exception))
        with self.assertRaises(openai.NotFoundError):
            client.embeddings.create(model="gpt-5", input="a")


if __name__ == "__main__":
    unittest.main()
