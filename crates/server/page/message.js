// One message of the conversation, as it is shown.

import { MarkdownStream } from "./markdown.js";

const ENDS = { length: "token limit", stop: "", stopped: "stopped", error: "failed" };

/** Seconds as people read them. */
export function seconds(value) {
  if (value == null) return "–";
  if (value < 0.001) return `${(value * 1e6).toFixed(0)} µs`;
  if (value < 1) return `${(value * 1e3).toPrecision(value < 0.01 ? 2 : 3)} ms`;
  return `${value.toFixed(value < 10 ? 2 : 1)} s`;
}

/** Tokens a second after the first; nothing for an answer of one token. */
export function speed({ tokens, firstAt, lastAt }) {
  return tokens > 1 && lastAt > firstAt ? (tokens - 1) / ((lastAt - firstAt) / 1e3) : null;
}

/** Shows `message`: {role, content, reasoning?, stats?, error?}. */
export class MessageView {
  constructor(message, actions) {
    this.message = message;
    this.item = document.createElement("li");
    this.item.className = message.role;
    const who = document.createElement("h3");
    who.className = "hidden";
    who.textContent = message.role === "user" ? "You" : "Model";
    this.body = document.createElement("div");
    this.body.className = "body";
    this.foot = document.createElement("div");
    this.foot.className = "foot";
    this.stats = document.createElement("span");
    this.stats.className = "stats";
    this.foot.append(this.stats);
    for (const { name, label, act } of actions) {
      const button = document.createElement("button");
      button.type = "button";
      button.className = "quiet";
      button.dataset.action = name;
      button.textContent = name;
      button.setAttribute("aria-label", label);
      button.addEventListener("click", () => act(button));
      this.foot.append(button);
    }
    this.item.append(who, this.body, this.foot);
    if (message.role === "user") {
      this.body.textContent = message.content;
      return;
    }
    this.markdown = new MarkdownStream(this.body);
    this.thoughts = null;
    if (message.reasoning) this.think(message.reasoning);
    if (message.content) this.markdown.push(message.content);
    this.settle();
  }

  /** Shows more of the answer; `shown` is called once it is. */
  write(text, shown) {
    this.markdown.push(text, shown);
    this.item.classList.add("writing");
  }

  /** Shows more of what the model thinks before it answers. */
  think(text, shown) {
    if (!this.thoughts) {
      this.thought = document.createElement("details");
      this.thought.className = "thought";
      this.summary = document.createElement("summary");
      this.summary.textContent = "Thinking…";
      const inner = document.createElement("div");
      this.thought.append(this.summary, inner);
      this.body.before(this.thought);
      this.thoughts = new MarkdownStream(inner);
    }
    this.thoughts.push(text, shown);
  }

  /** Says how fast it comes, or how it came. */
  measure() {
    const { stats } = this.message;
    if (!stats) return;
    const perSecond = speed(stats);
    const parts = [
      stats.firstAt && `first token ${seconds((stats.firstAt - stats.sentAt) / 1e3)}`,
      perSecond && `${perSecond.toFixed(perSecond < 100 ? 1 : 0)} tokens/s`,
      stats.tokens && `${stats.tokens} token${stats.tokens === 1 ? "" : "s"}`,
      ENDS[stats.end] ?? stats.end,
    ];
    this.stats.textContent = parts.filter(Boolean).join(" · ");
  }

  /** Shows all of it, as it will stay. */
  settle() {
    this.markdown.finish();
    this.thoughts?.finish();
    const { stats } = this.message;
    if (this.thoughts) {
      const took = stats?.answeredAt && stats.firstAt ? (stats.answeredAt - stats.firstAt) / 1e3 : null;
      this.summary.textContent = took == null ? "Thoughts" : `Thought for ${seconds(took)}`;
    }
    this.measure();
    this.item.classList.remove("writing");
  }
}
