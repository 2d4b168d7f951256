// A pinned playwright-core under target/, and the system's Chromium.

import { execFileSync } from "node:child_process";
import { copyFileSync, existsSync, mkdirSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";

import { ROOT } from "./server.mjs";

const FILES = ["package.json", "package-lock.json"];

function playwright() {
  const folder = join(ROOT, "target/tmp/page-test");
  const lock = (folder) => readFileSync(join(folder, "package-lock.json"), "utf8");
  const isInstalled = existsSync(join(folder, "node_modules/playwright-core"))
    && lock(folder) === lock(import.meta.dirname);
  if (!isInstalled) {
    mkdirSync(folder, { recursive: true });
    for (const name of FILES) copyFileSync(join(import.meta.dirname, name), join(folder, name));
    execFileSync("npm", ["ci", "--silent"], { cwd: folder, stdio: "inherit" });
  }
  return createRequire(join(folder, "package.json"))("playwright-core");
}

/** Starts Chromium, without the connections that it makes of its own. */
export function launch() {
  return playwright().chromium.launch({
    executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
    args: [
      "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
      "--disable-background-networking", "--disable-component-update", "--disable-sync",
    ],
  });
}

/** A page of a server, and all that went wrong on it: it must stay empty. */
export async function open(browser, url, { key, ...options } = {}) {
  const context = await browser.newContext({ viewport: { width: 1280, height: 800 }, ...options });
  if (key) await context.addInitScript((key) => (sessionStorage["sconce.key"] ??= key), key);
  const page = await context.newPage();
  page.setDefaultTimeout(60_000);
  const wrong = [];
  page.on("pageerror", (error) => wrong.push(String(error)));
  page.on("console", (message) => {
    // What the server refuses is logged by the browser, and shown by the page.
    const isRefusal = message.text().startsWith("Failed to load resource");
    if (message.type() === "error" && !isRefusal) wrong.push(message.text());
  });
  page.on("request", (request) => {
    const isElsewhere = new URL(request.url()).origin !== new URL(url).origin;
    if (isElsewhere && !/^(blob|data):/.test(request.url())) wrong.push(request.url());
  });
  await page.goto(url);
  return { page, wrong, context };
}
