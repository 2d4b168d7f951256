// The page: a key where one is needed, the theme, and the two halves.

import { key, request } from "./api.js";
import { Chat } from "./chat.js";
import { EnginePanel } from "./engine.js";

const $ = (id) => document.getElementById(id);
const THEMES = ["system", "light", "dark"];
const SHAPES = {
  system: "M4 5h16v11H4zM9 20h6M12 16v4",
  light: "M12 8a4 4 0 1 0 0 8 4 4 0 0 0 0-8zM12 2v3M12 19v3M2 12h3M19 12h3M5 5l2 2M17 17l2 2M5 19l2-2M17 7l2-2",
  dark: "M20 14.5A8.5 8.5 0 0 1 9.5 4 8.5 8.5 0 1 0 20 14.5z",
};

function showTheme() {
  const theme = localStorage.getItem("sconce.theme") ?? "system";
  if (theme === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  $("theme").setAttribute("aria-label", `Theme: ${theme === "system" ? "as the system" : theme}`);
  $("theme").title = $("theme").getAttribute("aria-label");
  $("theme-shape").setAttribute("d", SHAPES[theme]);
}

showTheme();
const engine = new EnginePanel();
const chat = new Chat(() => forgetKey());

$("theme").addEventListener("click", () => {
  const at = THEMES.indexOf(localStorage.getItem("sconce.theme") ?? "system");
  localStorage.setItem("sconce.theme", THEMES[(at + 1) % THEMES.length]);
  showTheme();
  engine.map.draw();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => engine.map.draw());

/** Learns what is served here, and with that whether a key is needed. */
async function begin() {
  try {
    const { data } = await (await request("/v1/models")).json();
    showModels(data.map(({ id }) => id));
    document.title = data[0] ? `${data[0].id} · Sconce` : "Sconce";
    chat.allow();
    $("prompt").focus({ preventScroll: true });
  } catch (error) {
    if (error.status === 401) {
      forgetKey();
      return;
    }
    showModels([]);
    if (error.status === 403) chat.allow("An administrator’s key: the engine only");
    else chat.fail(`The server does not answer: ${error.message}`);
  }
  $("key").hidden = !key.get();
  engine.restart();
}

/** One name is a text, several are a choice. */
function showModels(names) {
  $("model").replaceChildren(...names.map((name) => new Option(name, name)));
  $("model").hidden = names.length < 2;
  $("model-name").textContent = names.length === 1 ? names[0] : "";
}

function askForKey(reason) {
  chat.allow("This server needs a key");
  $("key").hidden = false;
  $("key-error").textContent = reason;
  if (!$("key-dialog").open) $("key-dialog").showModal();
}

/** The server does not take the key that there is, or there is none. */
function forgetKey() {
  const reason = key.get() ? "The server does not know this key." : "";
  key.set("");
  askForKey(reason);
}

/** Goes on with the key that there was. */
function keepKey() {
  $("key-dialog").close();
  $("key-input").value = "";
  if (key.get()) begin();
}

$("key").addEventListener("click", () => askForKey(""));
$("key-cancel").addEventListener("click", keepKey);
$("key-dialog").addEventListener("cancel", keepKey);
$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  key.set($("key-input").value.trim());
  $("key-dialog").close();
  $("key-input").value = "";
  begin();
});

begin();
