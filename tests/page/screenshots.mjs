// The pictures in docs/screenshots: a real model that several tenants share.

import assert from "node:assert/strict";
import { mkdirSync, statSync } from "node:fs";
import { join } from "node:path";

import { open } from "./browser.mjs";
import { ROOT, start } from "./server.mjs";

const FOLDER = join(ROOT, "docs/screenshots");
const MOST = 200_000;
const OTHERS = [
  ["The history of the lighthouse begins", 400],
  ["In a village by the sea there lived", 600],
  ["A recipe for bread: take", 300],
];

async function shoot(page, name) {
  mkdirSync(FOLDER, { recursive: true });
  const path = join(FOLDER, `${name}.png`);
  await page.screenshot({ path });
  assert.ok(statSync(path).size < MOST, `${path} is smaller than ${MOST} bytes`);
}

const PHONE = { deviceScaleFactor: 1.5, isMobile: true, hasTouch: true, viewport: { width: 390, height: 844 } };
const FLAGS = ["--kv-cache-memory-bytes", "160M", "--max-model-len", "2048", "--served-model-name", "smollm2-135m"];

async function settings(page) {
  await page.click("#toggle-settings");
  await page.fill("#temperature", "0");
  await page.fill("#max_tokens", "220");
  await page.click("#toggle-settings");
}

async function ask(page, question) {
  await page.fill("#prompt", question);
  await page.press("#prompt", "Enter");
}

const answered = (page) => page.locator("#status", { hasText: "Answer complete" }).waitFor({ state: "attached" });

/** So many tokens of the last answer are there. */
const has = (page, characters) => page.waitForFunction((characters) => {
  const last = [...document.querySelectorAll(".assistant .body")].at(-1);
  return last?.textContent.length > characters;
}, characters);

/** Requests beside the page's own, until the signal comes. */
function load(server, keys, signal) {
  OTHERS.forEach(([prompt, max_tokens], index) => {
    const bodies = Array.from({ length: 3 - (index % 2) }, (_, at) => (
      { prompt: `${prompt} ${at}. `.repeat(8 + 9 * at), max_tokens: max_tokens - 70 * at, ignore_eos: true }));
    server.load(keys[index], bodies, signal);
  });
}

async function onOneTenant(browser) {
  const server = await start(FLAGS);
  const stop = new AbortController();
  try {
    load(server, ["", "", ""], stop.signal);
    const { page } = await open(browser, server.url, { colorScheme: "light" });
    await settings(page);
    await ask(page, "What is the capital of France?");
    await answered(page);
    await page.waitForTimeout(45_000);
    await ask(page, "Give me three tips for a first visit, as a list.");
    await has(page, 420);
    await shoot(page, "light");
    await page.context().close();
    const phone = await open(browser, server.url, { ...PHONE, colorScheme: "dark" });
    await settings(phone.page);
    await ask(phone.page, "Give me three tips for a first visit to Paris, as a list.");
    await has(phone.page, 300);
    await shoot(phone.page, "phone");
  } finally {
    stop.abort();
    await server.stop();
  }
}

async function onFourTenants(browser) {
  const server = await start(FLAGS, [["acme"], ["beta", "--weight", "2"], ["chemlab"], ["dawn"]]);
  const stop = new AbortController();
  const { acme, beta, chemlab, dawn, admin } = server.keys;
  try {
    load(server, [beta, chemlab, dawn], stop.signal);
    load(server, [acme, acme, acme], stop.signal);
    const dark = await open(browser, server.url, { key: acme, colorScheme: "dark" });
    await settings(dark.page);
    await ask(dark.page, "What makes a lamp burn brightly?");
    await answered(dark.page);
    // The conversation stays where the key changes.
    await dark.page.evaluate((key) => (sessionStorage["sconce.key"] = key), admin);
    await dark.page.reload();
    await dark.page.waitForTimeout(50_000);
    await shoot(dark.page, "dark");
    await dark.context.close();
    const phone = await open(browser, server.url, { ...PHONE, key: admin, colorScheme: "light" });
    await phone.page.waitForTimeout(20_000);
    await phone.page.click("#glance");
    await phone.page.waitForTimeout(500);
    await shoot(phone.page, "phone-engine");
  } finally {
    stop.abort();
    await server.stop();
  }
}

export async function takeScreenshots(browser) {
  await onOneTenant(browser);
  await onFourTenants(browser);
}
