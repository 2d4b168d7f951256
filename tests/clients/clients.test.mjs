// Drives a running server with OpenAI's and Anthropic's clients for TypeScript.
//
// Environment: SCONCE_BASE_URL, SCONCE_MODEL.

import assert from "node:assert/strict";
import { test } from "node:test";

import Anthropic from "@anthropic-ai/sdk";
import OpenAI from "openai";

const { SCONCE_BASE_URL: url, SCONCE_MODEL: model } = process.env;
const openai = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0 });
const anthropic = new Anthropic({ baseURL: url, apiKey: "none", maxRetries: 0 });

const messages = [{ role: "user", content: "What is the capital of France?" }];
const schema = {
  type: "object",
  properties: { city: { type: "string", enum: ["Paris", "Rome"] } },
  required: ["city"],
  additionalProperties: false,
};

test("openai: chat, whole and streamed", async () => {
  const whole = await openai.chat.completions.create({ model, messages, temperature: 0 });
  assert.match(whole.choices[0].message.content, /Paris/);
  const stream = openai.chat.completions.stream({ model, messages, temperature: 0 });
  const pieces = [];
  for await (const chunk of stream) pieces.push(chunk.choices[0]?.delta.content ?? "");
  assert.equal(pieces.join(""), whole.choices[0].message.content);
  assert.ok(pieces.length > 3);
});

test("openai: a forced call, streamed", async () => {
  const stream = openai.chat.completions.stream({
    model,
    messages,
    temperature: 0,
    tools: [{ type: "function", function: { name: "get_weather", parameters: schema } }],
    tool_choice: { type: "function", function: { name: "get_weather" } },
  });
  const { message, finish_reason } = (await stream.finalChatCompletion()).choices[0];
  assert.equal(finish_reason, "tool_calls");
  const { city } = JSON.parse(message.tool_calls[0].function.arguments);
  assert.ok(schema.properties.city.enum.includes(city));
});

test("openai: a schema's answer", async () => {
  const answer = await openai.chat.completions.create({
    model,
    messages,
    response_format: { type: "json_schema", json_schema: { name: "place", schema, strict: true } },
  });
  const { city } = JSON.parse(answer.choices[0].message.content);
  assert.ok(schema.properties.city.enum.includes(city));
});

test("openai: responses, whole and streamed", async () => {
  const input = messages[0].content;
  const whole = await openai.responses.create({ model, input, temperature: 0 });
  const stream = await openai.responses.create({ model, input, temperature: 0, stream: true });
  let text = "";
  let last;
  for await (const event of stream) {
    if (event.type === "response.output_text.delta") text += event.delta;
    last = event;
  }
  assert.equal(text, whole.output_text);
  assert.equal(last.type, "response.completed");
  const next = { model, input: "And of Italy?", previous_response_id: whole.id };
  const { usage } = await openai.responses.create(next);
  assert.ok(usage.input_tokens > whole.usage.input_tokens);
});

test("openai: errors are of their kind", async () => {
  const refused = openai.chat.completions.create({ model, messages, temperature: -1 });
  await assert.rejects(refused, (error) => {
    assert.ok(error instanceof OpenAI.BadRequestError);
    assert.equal(error.param, "temperature");
    return true;
  });
});

test("anthropic: a message, whole and streamed", async () => {
  const ask = { model, messages, max_tokens: 30, temperature: 0 };
  const whole = await anthropic.messages.create(ask);
  const [block] = whole.content;
  assert.match(block.text, /Paris/);
  const message = await anthropic.messages.stream(ask).finalMessage();
  assert.equal(message.content[0].text, block.text);
  assert.equal(message.stop_reason, "end_turn");
});

test("anthropic: a forced call, streamed", async () => {
  const stream = anthropic.messages.stream({
    model,
    messages,
    max_tokens: 200,
    tools: [{ name: "get_weather", input_schema: schema }],
    tool_choice: { type: "tool", name: "get_weather" },
  });
  const message = await stream.finalMessage();
  assert.equal(message.stop_reason, "tool_use");
  const call = message.content.find((block) => block.type === "tool_use");
  assert.ok(schema.properties.city.enum.includes(call.input.city));
});

test("anthropic: errors are of their kind", async () => {
  const refused = anthropic.messages.create({ model: "claude-0", messages, max_tokens: 5 });
  await assert.rejects(refused, Anthropic.NotFoundError);
});
