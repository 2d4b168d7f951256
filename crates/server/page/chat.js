// The conversation: sending, streaming, stopping, editing, exporting.

import { ApiError, events, request } from "./api.js";
import { MessageView } from "./message.js";

const $ = (id) => document.getElementById(id);
const KEPT = "sconce.conversation";
const SETTINGS = ["system", "temperature", "top_p", "max_tokens", "seed"];
const EXAMPLES = [
  "What is the capital of France?",
  "Explain continuous batching in three sentences.",
  "Write a Rust function that reverses a string.",
];

export class Chat {
  /** `onRefused` is called when a request is refused for its key. */
  constructor(onRefused) {
    this.onRefused = onRefused;
    this.messages = [];
    this.views = [];
    this.answering = null;
    this.isEditing = false;
    this.follows = true;
    this.log = $("log");
    this.prompt = $("prompt");
    this.wire();
    this.restore();
  }

  wire() {
    $("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      this.send();
    });
    this.prompt.addEventListener("keydown", (event) => {
      // Not the Enter that ends the composition of a word.
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        this.send();
      }
    });
    this.prompt.addEventListener("input", () => this.fit());
    document.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || document.querySelector("dialog[open]")) return;
      if (this.answering) this.stop();
      else if (this.isEditing) this.cancelEdit();
    });
    $("stop").addEventListener("click", () => this.stop());
    $("clear").addEventListener("click", () => this.clear());
    $("export").addEventListener("click", () => this.export());
    $("cancel-edit").addEventListener("click", () => this.cancelEdit());
    $("toggle-settings").addEventListener("click", ({ currentTarget }) => {
      const isOpen = $("settings").toggleAttribute("hidden") === false;
      currentTarget.setAttribute("aria-expanded", String(isOpen));
      if (isOpen) $("system").focus();
    });
    $("latest").addEventListener("click", () => {
      this.follows = true;
      this.scroll();
      this.prompt.focus();
    });
    this.log.addEventListener("scroll", () => {
      const { scrollTop, scrollHeight, clientHeight } = this.log;
      this.follows = scrollHeight - scrollTop - clientHeight < 48;
      $("latest").hidden = this.follows;
    });
    for (const id of SETTINGS) {
      const kept = localStorage.getItem(`sconce.${id}`);
      if (kept) $(id).value = kept;
      $(id).addEventListener("change", () => localStorage.setItem(`sconce.${id}`, $(id).value));
    }
    for (const text of EXAMPLES) {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = text;
      button.addEventListener("click", () => {
        this.prompt.value = text;
        this.send();
      });
      $("examples").append(button);
    }
  }

  /** Allows chatting, or says why not. */
  allow(reason = "") {
    this.refused = reason;
    this.prompt.disabled = Boolean(reason);
    this.prompt.placeholder = reason || "Message the model";
    for (const button of $("examples").children) button.disabled = Boolean(reason);
    this.show();
  }

  // ---- The conversation

  send() {
    const content = this.prompt.value.trim();
    if (!content || this.answering || this.refused) return;
    if (this.isEditing) {
      this.truncate(this.lastOf("user"));
      this.cancelEdit();
    }
    this.prompt.value = "";
    this.fit();
    this.add({ role: "user", content });
    this.answer();
  }

  async answer() {
    const stats = { sentAt: performance.now(), tokens: 0 };
    const message = { role: "assistant", content: "", stats };
    const body = this.body();
    const view = this.add(message);
    this.answering = new AbortController();
    this.follows = true;
    this.say("Answering");
    this.fail("");
    this.show();
    this.scroll();
    view.item.classList.add("writing");
    try {
      const { signal } = this.answering;
      for await (const event of events(await request("/v1/chat/completions", { body, signal }))) {
        if (event.error) throw new ApiError(500, event.error.message);
        this.take(event, message, view);
      }
      stats.end ??= "error";
      this.say("Answer complete");
    } catch (error) {
      stats.end = error.name === "AbortError" ? "stopped" : "error";
      if (stats.end === "stopped") {
        this.say("Stopped");
      } else {
        this.say("");
        const wait = error.retryAfter ? ` (try again in ${error.retryAfter} s)` : "";
        this.fail(error instanceof ApiError ? error.message + wait : `No answer: ${error.message}`);
        if (error.status === 401) this.onRefused();
      }
    }
    this.answering = null;
    view.settle();
    if (!message.content && !message.reasoning && stats.end === "error") this.truncate(this.messages.length - 1);
    this.keep();
    this.show();
    this.scroll();
  }

  /** Takes one event of the stream. */
  take({ choices, usage }, message, view) {
    const { stats } = message;
    const { delta = {}, finish_reason: end } = choices[0] ?? {};
    const thought = delta.reasoning_content ?? delta.reasoning;
    const shown = () => {
      view.measure();
      this.scroll();
    };
    if (usage) stats.tokens = usage.completion_tokens;
    if (thought || delta.content) {
      stats.lastAt = performance.now();
      stats.firstAt ??= stats.lastAt;
    }
    if (thought) {
      message.reasoning = (message.reasoning ?? "") + thought;
      view.think(thought, shown);
    }
    if (delta.content) {
      stats.answeredAt ??= stats.lastAt;
      message.content += delta.content;
      view.write(delta.content, shown);
    }
    if (end) stats.end = end;
  }

  body() {
    const messages = this.messages.map(({ role, content }) => ({ role, content }));
    const system = $("system").value.trim();
    if (system) messages.unshift({ role: "system", content: system });
    const body = {
      messages,
      stream: true,
      stream_options: { include_usage: true, continuous_usage_stats: true },
    };
    if ($("model").value) body.model = $("model").value;
    // What is left empty is up to the model.
    for (const id of SETTINGS.slice(1)) {
      if ($(id).value.trim()) body[id] = Number($(id).value);
    }
    return body;
  }

  stop() {
    this.answering?.abort();
  }

  /** Answers the last message again. */
  regenerate() {
    if (this.answering || this.refused) return;
    this.truncate(this.lastOf("user") + 1);
    this.answer();
  }

  edit() {
    if (this.answering || this.refused) return;
    this.isEditing = true;
    $("editing").hidden = false;
    this.prompt.value = this.messages[this.lastOf("user")].content;
    this.fit();
    this.prompt.focus();
  }

  cancelEdit() {
    this.isEditing = false;
    $("editing").hidden = true;
    this.prompt.value = "";
    this.fit();
    this.prompt.focus();
  }

  clear() {
    this.stop();
    this.truncate(0);
    if (this.isEditing) this.cancelEdit();
    this.fail("");
    this.keep();
    this.show();
    this.say("Conversation cleared");
    this.prompt.focus();
  }

  export() {
    const settings = Object.fromEntries(SETTINGS.map((id) => [id, $(id).value]));
    const messages = this.messages.map(({ stats, ...message }) => {
      if (!stats) return message;
      const { tokens, end: finish_reason, sentAt, firstAt } = stats;
      return { ...message, tokens, finish_reason, ttft_ms: firstAt ? firstAt - sentAt : null };
    });
    const text = JSON.stringify({ model: $("model").value, settings, messages }, null, 2);
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
    link.download = `sconce-${new Date().toISOString().slice(0, 19).replaceAll(":", "")}.json`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }

  // ---- What is shown

  add(message) {
    const actions = [{ name: "Copy", label: "Copy message", act: (button) => copy(message, button) }];
    if (message.role === "user") {
      actions.push({ name: "Edit", label: "Edit message", act: () => this.edit() });
    } else {
      actions.push({ name: "Again", label: "Answer again", act: () => this.regenerate() });
    }
    const view = new MessageView(message, actions);
    this.messages.push(message);
    this.views.push(view);
    $("messages").append(view.item);
    return view;
  }

  truncate(length) {
    this.messages.length = length;
    for (const view of this.views.splice(length)) view.item.remove();
  }

  lastOf(role) {
    return this.messages.findLastIndex((message) => message.role === role);
  }

  show() {
    const isEmpty = this.messages.length === 0;
    $("empty").hidden = !isEmpty;
    $("clear").hidden = $("export").hidden = isEmpty;
    $("send").hidden = Boolean(this.answering);
    $("send").disabled = Boolean(this.refused);
    $("stop").hidden = !this.answering;
    const last = { user: this.lastOf("user"), assistant: this.lastOf("assistant") };
    this.views.forEach(({ item, message }, index) => {
      item.classList.toggle("last", index === last[message.role] && !this.answering);
    });
  }

  /** Goes on showing the end, unless the reader has scrolled away from it. */
  scroll() {
    if (this.follows) this.log.scrollTop = this.log.scrollHeight;
  }

  say(text) {
    $("status").textContent = text;
  }

  fail(text) {
    $("error").textContent = text;
  }

  fit() {
    this.prompt.style.height = "auto";
    this.prompt.style.height = `${Math.min(this.prompt.scrollHeight, 220)}px`;
  }

  // ---- Across reloads of the tab

  keep() {
    try {
      sessionStorage.setItem(KEPT, JSON.stringify(this.messages));
    } catch {
      // More than the browser keeps: the conversation lasts as long as the page.
      sessionStorage.removeItem(KEPT);
    }
  }

  restore() {
    try {
      JSON.parse(sessionStorage.getItem(KEPT) ?? "[]").forEach((message) => this.add(message));
    } catch {
      this.truncate(0);
    }
    this.show();
    this.scroll();
  }
}

async function copy(message, button) {
  await navigator.clipboard.writeText(message.content);
  button.textContent = "Copied";
  setTimeout(() => (button.textContent = "Copy"), 1500);
}
