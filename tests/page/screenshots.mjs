// The pictures in docs/screenshots: a real model that several tenants share.

import assert from "node:assert/strict";
import { mkdirSync, statSync } from "node:fs";
import { join } from "node:path";

import { open } from "./browser.mjs";
import { ROOT, start } from "./server.mjs";

const FOLDER = join(ROOT, "docs/screenshots");
const MOST = 200_000;
const QUESTION = "What is a KV cache in a language model? Answer in two short paragraphs.";
const OTHERS = [
  ["The history of the lighthouse begins", 400],
  ["In a village by the sea there lived", 600],
  ["A recipe for bread: take", 300],
];

async function settle(page, seconds) {
  // The panel's minute fills up.
  await page.waitForTimeout(seconds * 1000);
}

async function shoot(page, name) {
  mkdirSync(FOLDER, { recursive: true });
  const path = join(FOLDER, `${name}.png`);
  await page.screenshot({ path });
  assert.ok(statSync(path).size < MOST, `${path} is smaller than ${MOST} bytes`);
}

export async function takeScreenshots(browser) {
  const tenants = [["acme"], ["beta", "--weight", "2"], ["chemlab"], ["dawn"]];
  const server = await start(["--kv-cache-memory-bytes", "160M", "--served-model-name", "smollm2-135m"], tenants);
  const stop = new AbortController();
  try {
    const names = ["beta", "chemlab", "dawn"];
    OTHERS.forEach(([prompt, max_tokens], index) => {
      const bodies = Array.from({ length: 3 - index % 2 }, (_, at) => (
        { prompt: `${prompt} ${at}. `.repeat(8 + 9 * at), max_tokens: max_tokens - 70 * at, ignore_eos: true }));
      server.load(server.keys[names[index]], bodies, stop.signal);
    });
    const ask = async (page) => {
      await page.click("#toggle-settings");
      await page.fill("#temperature", "0");
      await page.fill("#max_tokens", "160");
      await page.click("#toggle-settings");
      await page.fill("#prompt", QUESTION);
      await page.press("#prompt", "Enter");
      await page.locator("#status", { hasText: "Answer complete" }).waitFor({ state: "attached" });
    };
    const view = { key: server.keys.acme, viewport: { width: 1280, height: 800 } };
    const light = await open(browser, server.url, { ...view, colorScheme: "light" });
    await ask(light.page);
    await settle(light.page, 20);
    await shoot(light.page, "light");
    await light.page.evaluate((key) => sessionStorage.setItem("sconce.key", key), server.keys.admin);
    await light.page.emulateMedia({ colorScheme: "dark" });
    await light.page.reload();
    await settle(light.page, 30);
    await shoot(light.page, "dark");
    await light.context.close();
    const phone = await open(browser, server.url, {
      key: server.keys.acme, colorScheme: "dark", deviceScaleFactor: 1.5, isMobile: true,
      hasTouch: true, viewport: { width: 390, height: 844 },
    });
    await ask(phone.page);
    await shoot(phone.page, "phone");
    await phone.context.close();
    const phoneEngine = await open(browser, server.url, {
      key: server.keys.admin, colorScheme: "light", deviceScaleFactor: 1.5, isMobile: true,
      hasTouch: true, viewport: { width: 390, height: 844 },
    });
    await settle(phoneEngine.page, 15);
    await phoneEngine.page.evaluate(() => document.getElementById("engine").scrollIntoView());
    await settle(phoneEngine.page, 1);
    await shoot(phoneEngine.page, "phone-engine");
    await phoneEngine.context.close();
  } finally {
    stop.abort();
    await server.stop();
  }
}
