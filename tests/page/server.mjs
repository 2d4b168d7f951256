// The built binary as a process, and requests beside the browser's.

import { execFileSync, spawn } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { createInterface } from "node:readline";

export const ROOT = resolve(import.meta.dirname, "../..");
const BINARY = process.env.SCONCE_BIN ?? join(ROOT, "target/debug/sconce");
const ENV = {
  ...process.env,
  SCONCE_NO_HUB: "1",
  SCONCE_CACHE: join(ROOT, "target/tmp/models-cache"),
};

/** Starts `sconce serve` on a free port; with `tenants`, each gets a key, and so does an administrator. */
export async function start(args, tenants = []) {
  const folder = mkdtempSync(join(tmpdir(), "sconce-page-"));
  const file = join(folder, "sconce.toml");
  const run = (...args) => execFileSync(BINARY, args, { env: ENV, encoding: "utf8" }).trim();
  const keys = {};
  for (const [name, ...flags] of tenants) keys[name] = run("tenant", "add", name, ...flags, "--config", file);
  if (tenants.length) {
    keys.admin = run("tenant", "admin-key", "--config", file);
    args = [...args, "--config", file];
  }
  const options = { env: ENV, cwd: folder, stdio: ["ignore", "pipe", "inherit"] };
  const flags = ["--port", "0", "--disable-access-log"];
  const process_ = spawn(BINARY, ["serve", ...args, ...flags], options);
  const ended = new Promise((done) => process_.once("exit", done));
  const url = await new Promise((found, failed) => {
    createInterface({ input: process_.stdout }).on("line", (line) => {
      const address = /(http:\/\/[^\s/]+)\/v1$/.exec(line);
      if (address) found(address[1]);
    });
    ended.then((code) => failed(new Error(`the server ended with ${code}`)));
  });
  return {
    url,
    keys,
    /** Runs requests of a tenant until the signal ends them. */
    load(key, bodies, signal) {
      return bodies.map(async (body) => {
        while (!signal.aborted) {
          const headers = { Authorization: `Bearer ${key}`, "Content-Type": "application/json" };
          const init = { method: "POST", headers, body: JSON.stringify(body), signal };
          await fetch(`${url}/v1/completions`, init).then((answer) => answer.text()).catch(() => {});
        }
      });
    },
    async stop() {
      process_.kill("SIGKILL");
      await ended;
      rmSync(folder, { recursive: true });
    },
  };
}
