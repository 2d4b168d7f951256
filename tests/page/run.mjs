// The page in a browser, on the built binary: node tests/page/run.mjs [--screenshots]
//
// Needs Node.js 20, npm, Chromium (Debian: apt-get install chromium; another's path in CHROMIUM)
// and target/debug/sconce (another's in SCONCE_BIN). With --screenshots it writes those of
// docs/screenshots anew.

import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";

import { launch, open } from "./browser.mjs";
import { takeScreenshots } from "./screenshots.mjs";
import { start } from "./server.mjs";

let browser;
before(async () => (browser = await launch()));
after(() => browser.close());

const send = async (page, text) => {
  await page.fill("#prompt", text);
  await page.press("#prompt", "Enter");
};
const status = (page, text) => page.locator("#status", { hasText: text }).waitFor({ state: "attached" });
const answer = (page) => page.locator("#messages > .assistant .body").last();
const grows = (page, length) => page.waitForFunction((length) => {
  const bodies = document.querySelectorAll("#messages > .assistant .body");
  return bodies.length && bodies[bodies.length - 1].textContent.length > length;
}, length);

describe("a server of one tenant, without keys", () => {
  let server;
  before(async () => (server = await start(["null:5ms", "--max-model-len", "4096"])));
  after(() => server.stop());

  test("an answer comes token by token, is measured, and its status is said", async () => {
    const { page, wrong } = await open(browser, server.url);
    await page.click("#toggle-settings");
    await page.fill("#max_tokens", "300");
    await send(page, "Hello");
    await status(page, "Answering");
    await grows(page, 3);
    const early = (await answer(page).textContent()).length;
    assert.ok(early < 300, "it is shown before it is whole");
    await grows(page, early);
    await status(page, "Answer complete");
    assert.match(await answer(page).textContent(), /^abcdefghijklmnopqrstuvwxyzabc/);
    const stats = await page.locator(".assistant .stats").textContent();
    assert.match(stats, /^first token .* · [\d.]+ tokens\/s · 300 tokens · token limit$/);
    // What was said and answered outlives a reload, and goes when it is cleared.
    await page.reload();
    assert.equal(await page.locator("#messages > li").count(), 2);
    await page.click("#clear");
    assert.equal(await page.locator("#messages > li").count(), 0);
    assert.deepEqual(wrong, []);
  });

  test("an answer can be stopped, begun again, and its question edited", async () => {
    const { page, wrong } = await open(browser, server.url);
    await send(page, "Never ends");
    await grows(page, 10);
    await page.keyboard.press("Escape");
    await status(page, "Stopped");
    assert.match(await page.locator(".assistant .stats").textContent(), /stopped$/);
    // The engine has ended it too.
    await page.locator("#running", { hasText: /^0$/ }).waitFor();
    await page.click('.assistant [data-action="Again"]');
    await grows(page, 10);
    await page.click("#stop");
    await status(page, "Stopped");
    assert.equal(await page.locator("#messages > li").count(), 2);
    await page.click('.user [data-action="Edit"]');
    assert.equal(await page.inputValue("#prompt"), "Never ends");
    await send(page, "Another question");
    await grows(page, 10);
    await page.keyboard.press("Escape");
    await status(page, "Stopped");
    assert.deepEqual(await page.locator(".user .body").allTextContents(), ["Another question"]);
    const [download] = await Promise.all([page.waitForEvent("download"), page.click("#export")]);
    const chunks = [];
    for await (const chunk of await download.createReadStream()) chunks.push(chunk);
    const { messages } = JSON.parse(Buffer.concat(chunks));
    assert.deepEqual(messages.map(({ role }) => role), ["user", "assistant"]);
    assert.equal(messages[1].finish_reason, "stopped");
    assert.deepEqual(wrong, []);
  });

  test("a reader who has scrolled up stays there", async () => {
    const { page } = await open(browser, server.url, { viewport: { width: 900, height: 420 } });
    await page.fill("#prompt", "A long question\n".repeat(60));
    await page.press("#prompt", "Enter");
    await grows(page, 10);
    const isAtEnd = () => page.evaluate(() => {
      const { scrollTop, scrollHeight, clientHeight } = document.getElementById("log");
      return scrollHeight - scrollTop - clientHeight < 48;
    });
    assert.ok(await isAtEnd(), "it follows the answer");
    await page.evaluate(() => (document.getElementById("log").scrollTop = 0));
    await page.locator("#latest").waitFor();
    await grows(page, 200);
    assert.equal(await page.evaluate(() => document.getElementById("log").scrollTop), 0);
    await page.click("#latest");
    await page.keyboard.press("Escape");
    assert.ok(await isAtEnd());
  });

  test("Markdown is shown as nodes, and the same whether it comes whole or in pieces", async () => {
    const { page, wrong } = await open(browser, server.url);
    const source = SAMPLES.join("\n\n");
    const shown = await page.evaluate(async ({ samples, hostile, source }) => {
      const { MarkdownStream } = await import("/page/markdown.js");
      const render = (pieces) => {
        const container = document.createElement("div");
        const stream = new MarkdownStream(container);
        for (const piece of pieces) {
          stream.source += piece;
          stream.render();
        }
        stream.finish();
        return container.innerHTML;
      };
      return {
        each: samples.map((sample) => render([sample])),
        hostile: hostile.map((sample) => render([sample]).length),
        whole: render([source]),
        pieces: render([...source]),
      };
    }, { samples: SAMPLES, hostile: HOSTILE, source });
    assert.equal(shown.pieces, shown.whole);
    assert.ok(shown.hostile.every((length) => length > 3000));
    const text = shown.whole;
    for (const [index, expected] of EXPECTED) {
      assert.ok(shown.each[index].includes(expected), `${expected} in ${shown.each[index]}`);
    }
    for (const word of ["<script", "<img", "javascript:alert(1)\"", "onerror=\""]) {
      assert.ok(!text.includes(word), `no ${word} in ${text}`);
    }
    assert.deepEqual(wrong, []);
  });

  test("what a model thinks is folded away, and errors are told", async () => {
    const { page, wrong } = await open(browser, server.url);
    const chunks = [
      { reasoning_content: "Let me " }, { reasoning_content: "think." }, { content: "It is **4**." },
    ].map((delta) => ({ choices: [{ delta, finish_reason: null }] }));
    chunks.push({ choices: [{ delta: {}, finish_reason: "stop" }] });
    const body = chunks.map((chunk) => `data: ${JSON.stringify(chunk)}\n\n`).join("");
    const headers = { "Content-Type": "text/event-stream" };
    await page.route("**/v1/chat/completions", (route) => route.fulfill({ headers, body: `${body}data: [DONE]\n\n` }));
    await send(page, "What is 2 + 2?");
    await status(page, "Answer complete");
    assert.equal(await page.locator(".assistant .body strong").textContent(), "4");
    const thought = page.locator(".thought");
    assert.equal(await thought.evaluate((node) => node.open), false);
    assert.match(await thought.textContent(), /Let me think\./);
    await page.unroute("**/v1/chat/completions");
    await page.click("#toggle-settings");
    await page.fill("#temperature", "-1");
    await send(page, "Too cold");
    await page.locator('[role="alert"]', { hasText: "temperature" }).waitFor();
    assert.deepEqual(wrong, []);
  });

  test("the reference shows every operation and is searched by the keyboard alone", async () => {
    const { page, wrong } = await open(browser, `${server.url}/docs`);
    const spec = await (await fetch(`${server.url}/openapi.json`)).json();
    const links = page.locator("#list a");
    await links.first().waitFor();
    const ids = Object.values(spec.paths).flatMap(Object.values).map((one) => `#op-${one.operationId}`);
    const names = Object.keys(spec.components.schemas).map((name) => `#schema-${name}`);
    const hrefs = await links.evaluateAll((all) => all.map((link) => link.getAttribute("href")));
    assert.deepEqual(hrefs.toSorted(), [...ids, ...names].toSorted());
    await page.keyboard.press("/");
    await page.keyboard.type("thinking_token_budget");
    assert.equal(await page.locator("#found").textContent(), "2 found");
    await page.keyboard.press("Enter");
    await page.locator("#detail h2", { hasText: "/v1/chat/completions" }).waitFor();
    const fields = page.locator("#detail th", { hasText: "thinking_token_budget" });
    await fields.first().waitFor();
    assert.match(await page.locator("#detail pre").textContent(), /^curl http.*-d '\{/s);
    await page.fill("#search", "");
    // Each entry can be shown.
    for (const href of hrefs) {
      await page.goto(`${server.url}/docs${href}`);
      await page.locator(`#list a[aria-current][href="${href}"]`).waitFor();
      assert.ok((await page.locator("#detail").textContent()).length > 20, href);
    }
    assert.deepEqual(wrong, []);
  });

  test("every control has a name, and the keyboard reaches what the mouse does", async () => {
    const { page } = await open(browser, server.url);
    const nameless = await page.evaluate(() => {
      const controls = [...document.querySelectorAll("button, input, select, textarea, a[href]")];
      const name = (node) => node.getAttribute("aria-label") || node.labels?.[0]?.textContent || node.textContent;
      return controls.filter((node) => !node.hidden && !name(node)?.trim()).map((node) => node.outerHTML);
    });
    assert.deepEqual(nameless.filter((html) => !html.includes('id="glance"')), []);
    await page.waitForFunction(() => document.activeElement.id === "prompt");
    assert.equal(await page.locator("#log [aria-live], #log [role=log], #log[aria-live]").count(), 0);
    await page.keyboard.press("Tab");
    assert.equal(await page.evaluate(() => document.activeElement.id), "toggle-settings");
    await page.keyboard.press("Enter");
    assert.equal(await page.getAttribute("#toggle-settings", "aria-expanded"), "true");
    // The theme goes round: the system's, light, dark.
    for (const theme of ["light", "dark", undefined]) {
      await page.click("#theme");
      assert.equal(await page.evaluate(() => document.documentElement.dataset.theme), theme);
    }
  });
});

describe("a server of two tenants", () => {
  let server;
  before(async () => (server = await start(["null:5ms"], [["acme"], ["beta", "--weight", "3"]])));
  after(() => server.stop());

  test("it asks for a key, and takes a right one only", async () => {
    const { page, wrong } = await open(browser, server.url);
    await page.locator("#key-dialog[open]").waitFor();
    await page.fill("#key-input", "sk-wrong");
    await page.press("#key-input", "Enter");
    await page.locator("#key-error", { hasText: "does not know" }).waitFor();
    await page.fill("#key-input", server.keys.acme);
    await page.press("#key-input", "Enter");
    await page.locator("#live.on").waitFor();
    await send(page, "Hello");
    await grows(page, 10);
    await page.keyboard.press("Escape");
    assert.equal(await page.locator("#tenant-rows tr").count(), 1, "a tenant sees itself");
    assert.deepEqual(wrong, []);
  });

  test("the KV map moves, in the colours of those who hold its blocks", async () => {
    const { page, wrong } = await open(browser, server.url, { key: server.keys.admin });
    await page.locator("#live.on").waitFor();
    assert.ok(await page.locator("#prompt").isDisabled(), "an administrator's key speaks for no tenant");
    const body = { prompt: "x".repeat(4000), max_tokens: 20_000 };
    const [one, other] = [new AbortController(), new AbortController()];
    server.load(server.keys.acme, [body, body], one.signal);
    server.load(server.keys.beta, [body], other.signal);
    const rows = page.locator("#tenant-rows tr");
    const cell = (row, column) => rows.nth(row).locator("td").nth(column);
    await cell(0, 0).filter({ hasText: /^2$/ }).waitFor();
    await cell(1, 0).filter({ hasText: /^1$/ }).waitFor();
    assert.equal(await cell(1, 4).textContent(), "3", "its weight");
    // As many pixels of each tenant's colour as it has blocks, or more where a block has several.
    const colours = () => page.evaluate(() => {
      const canvas = document.getElementById("map");
      const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
      const counts = {};
      for (const pixel of new Uint32Array(data.buffer)) counts[pixel] = (counts[pixel] ?? 0) + 1;
      return Object.values(counts).sort((a, b) => a - b);
    });
    await page.waitForFunction(() => {
      const [, , acme, beta] = [...document.querySelectorAll("#legend li")];
      return beta && !acme.textContent.endsWith(" 0") && !beta.textContent.endsWith(" 0");
    });
    const before = await colours();
    assert.ok(before.length >= 3, `free blocks and two tenants': ${before}`);
    const count = () => cell(0, 2).textContent();
    const held = await count();
    await page.waitForFunction((held) => {
      return document.querySelector("#tenant-rows tr td:nth-child(4)").textContent !== held;
    }, held);
    other.abort();
    await cell(1, 0).filter({ hasText: /^0$/ }).waitFor();
    await page.waitForFunction(() => document.querySelectorAll("#legend li")[3].textContent.endsWith(" 0"));
    assert.equal((await colours()).length, before.length - 1, "beta's colour has gone");
    one.abort();
    assert.deepEqual(wrong, []);
  });
});

test("screenshots", { skip: !process.argv.includes("--screenshots") }, () => takeScreenshots(browser));

const SAMPLES = [
  "# A heading\nand a paragraph with **bold**, *italic*, _too_, `code <b>` and ~~gone~~",
  "- one\n- two\n  - nested\n\n    more\n- three",
  "1. first\n2. second\n\n10. tenth",
  "```rust\nfn main() {\n    println!(\"<script>\");\n}\n```",
  "| a | b |\n|---|--:|\n| 1 | `x\\|y` |\n| 2 | **3** |",
  "> quoted\n> - in a list\nlazily",
  "[safe](https://example.com/a_(b)) [unsafe](javascript:alert(1)) https://example.com/x.",
  "<script>alert(1)</script><img src=x onerror=alert(1)>",
  "snake_case_name and 2 * 3 * 4, \\*escaped\\*, ***both***",
  "---\nafter a rule  \nand a break",
  "```\nnever closed",
];
// Parsed in no time, or the test does not end.
const HOSTILE = [
  "*a **b** **c** **d** unmatched ".repeat(500),
  "[".repeat(5000) + "`".repeat(2000) + "**".repeat(2000) + "_a ".repeat(2000),
  "> ".repeat(3000),
  "- ".repeat(3000) + "a",
];
const EXPECTED = [
  [0, "<h3>A heading</h3>"],
  [0, "<strong>bold</strong>, <em>italic</em>, <em>too</em>, <code>code &lt;b&gt;</code> and <del>gone</del>"],
  [1, "<ul><li>one</li><li>two<ul><li><p>nested</p><p>more</p></li></ul></li><li>three</li></ul>"],
  [2, "<ol><li><p>first</p></li><li><p>second</p></li><li><p>tenth</p></li></ol>"],
  [3, "<span>rust</span>"],
  [3, "println!(\"&lt;script&gt;\");\n}</code>"],
  [4, "<th class=\"right\">b</th>"],
  [4, "<code>x|y</code>"],
  [5, "<blockquote><p>quoted</p><ul><li>in a list\nlazily</li></ul></blockquote>"],
  [6, "href=\"https://example.com/a_(b)\" rel=\"noopener noreferrer nofollow\""],
  [6, "[unsafe](javascript:alert(1))"],
  [6, ">https://example.com/x</a>."],
  [7, "&lt;script&gt;alert(1)&lt;/script&gt;"],
  [8, "snake_case_name and 2 * 3 * 4, *escaped*, <strong><em>both</em></strong>"],
  [9, "<hr><p>after a rule<br>and a break</p>"],
];
