// The engine beside the chat: what `/v1/live` says, four times a second.

import { events, request } from "./api.js";
import { KvMap, colour } from "./kv_map.js";
import { seconds } from "./message.js";

const $ = (id) => document.getElementById(id);
const POINTS = 240;
const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const short = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });

export class EnginePanel {
  constructor() {
    this.map = new KvMap($("map"));
    this.speeds = [];
    this.tenants = [];
    this.watching = null;
    // A page that nobody sees asks for nothing.
    document.addEventListener("visibilitychange", () => (document.hidden ? this.pause() : this.watch()));
  }

  /** Watches until paused; where the server does not answer, tries again. */
  async watch() {
    if (this.watching || document.hidden) return;
    const { signal } = (this.watching = new AbortController());
    for (let failures = 0; !signal.aborted; ) {
      let wait = Math.min(1 << failures, 15);
      try {
        let isFirst = true;
        for await (const event of events(await request("/v1/live", { signal }))) {
          if (isFirst) this.map.reset(event.kv_blocks.total);
          isFirst = false;
          failures = 0;
          this.show(event);
        }
        wait = 1;
        this.say("reconnecting");
      } catch (error) {
        if (signal.aborted) return;
        this.say(error.status === 503 ? "busy" : error.status ? "not allowed" : "unreachable");
        // Another key is the only remedy; the page watches again once there is one.
        if (error.status === 401 || error.status === 403) return this.pause();
        if (error.retryAfter) wait = Math.max(wait, error.retryAfter);
      }
      failures++;
      await new Promise((done) => setTimeout(done, wait * 1000));
    }
  }

  pause() {
    this.watching?.abort();
    this.watching = null;
  }

  /** Watches with another key. */
  restart() {
    this.pause();
    this.speeds = [];
    this.watch();
  }

  say(state) {
    $("live").textContent = state;
    $("live").className = `live ${state === "live" ? "on" : ""}`;
    if (state !== "live") $("glance").hidden = true;
  }

  show(event) {
    this.say("live");
    const { running, waiting, kv_blocks: blocks, tenants } = event;
    const perSecond = event.generated_tokens_per_second;
    $("running").textContent = whole.format(running);
    $("waiting").textContent = whole.format(waiting);
    $("speed").textContent = whole.format(perSecond);
    $("glance").textContent = `${whole.format(running)} running · ${whole.format(perSecond)} tok/s`;
    $("glance").hidden = false;
    for (const [name, { p50, p99 }] of [["ttft", event.ttft_seconds], ["itl", event.itl_seconds]]) {
      $(`${name}50`).textContent = seconds(p50);
      $(`${name}99`).textContent = seconds(p99);
    }
    this.spark(perSecond);
    this.map.apply(blocks.changes);
    const part = blocks.total ? (blocks.used / blocks.total) * 100 : 0;
    const own = event.sees_all ? "" : "yours: ";
    $("kv-used").textContent =
      `${own}${whole.format(blocks.used)} of ${whole.format(blocks.total)} blocks · ${part.toFixed(part < 10 ? 1 : 0)} %`;
    this.tenants = tenants;
    this.showLegend();
    this.showTenants();
  }

  /** The last minute's tokens a second. */
  spark(perSecond) {
    this.speeds.push(perSecond);
    if (this.speeds.length > POINTS) this.speeds.shift();
    const most = Math.max(...this.speeds, 1);
    const start = POINTS - this.speeds.length;
    const line = this.speeds
      .map((speed, index) => `${start + index},${(38 - (speed / most) * 36).toFixed(1)}`).join("L");
    $("spark-line").setAttribute("d", `M${line}`);
    $("spark-area").setAttribute("d", `M${start},40L${line}L${POINTS - 1},40Z`);
  }

  showLegend() {
    const { counts } = this.map;
    const names = new Map(this.tenants.map(({ code, name }) => [code, name]));
    const codes = [...names.keys()].filter((code) => code < 255).slice(0, 12);
    const entries = [[0, "free"], [1, "cached"], ...codes.map((code) => [code, names.get(code)])];
    if (counts[255]) entries.push([255, "others"]);
    const { stride } = this.map;
    $("map").title = stride > 1 ? `Each cell is ${stride} blocks` : "Each cell is a block";
    const legend = $("legend");
    while (legend.children.length > entries.length) legend.lastChild.remove();
    entries.forEach(([code, name], index) => {
      const item = legend.children[index] ?? legend.appendChild(entry());
      item.firstChild.style.background = colour(code);
      item.lastChild.textContent = `${name} ${whole.format(counts[code])}`;
    });
  }

  showTenants() {
    const rows = $("tenant-rows");
    $("tenants").classList.toggle("unmetered", this.tenants.every(({ joules }) => joules == null));
    while (rows.children.length > this.tenants.length) rows.lastChild.remove();
    this.tenants.forEach((tenant, index) => {
      const row = rows.children[index] ?? rows.appendChild(tenantRow());
      const [name, ...cells] = row.children;
      name.firstChild.style.background = colour(tenant.code);
      const texts = [
        whole.format(tenant.running),
        whole.format(tenant.waiting),
        whole.format(tenant.kv_blocks),
        tenant.share ? `${Math.round(tenant.share * 100)} %` : "–",
        tenant.weight,
        short.format(tenant.prompt_tokens + tenant.generated_tokens),
        seconds(tenant.device_seconds || null),
        tenant.joules == null ? "–" : `${short.format(tenant.joules)} J`,
      ];
      name.lastChild.textContent = tenant.name;
      cells.forEach((cell, at) => (cell.textContent = texts[at]));
      cells[5].title = `${whole.format(tenant.prompt_tokens)} of prompts (${whole.format(tenant.cached_tokens)} cached), ${whole.format(tenant.generated_tokens)} generated`;
    });
  }
}

function swatch() {
  const node = document.createElement("span");
  node.className = "swatch";
  return node;
}

function entry() {
  const item = document.createElement("li");
  item.append(swatch(), document.createElement("span"));
  return item;
}

function tenantRow() {
  const row = document.createElement("tr");
  const name = document.createElement("th");
  name.scope = "row";
  name.append(swatch(), document.createElement("span"));
  row.append(name, ...Array.from({ length: 8 }, () => document.createElement("td")));
  return row;
}
