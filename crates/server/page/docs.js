// The reference at /docs: what /openapi.json says, to look up and to search.

const $ = (id) => document.getElementById(id);
const PLACE = "#/components/schemas/";

/** An element with attributes and children; texts stay texts. */
function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children.flat().filter((child) => child !== undefined && child !== ""));
  return element;
}

const theme = localStorage.getItem("sconce.theme") ?? "system";
if (theme !== "system") document.documentElement.dataset.theme = theme;

const spec = await (await fetch("openapi.json", { cache: "no-cache" })).json();
const schemas = spec.components.schemas;
const resolve = (schema) => (schema?.$ref ? schemas[schema.$ref.slice(PLACE.length)] : schema ?? {});

/** What can be chosen: operations by their ids, schemas by their names. */
const entries = [];
for (const [path, operations] of Object.entries(spec.paths)) {
  for (const [method, operation] of Object.entries(operations)) {
    const [[kind, { schema: body }] = [undefined, {}]] = Object.entries(operation.requestBody?.content ?? {});
    const fields = Object.keys(resolve(body).properties ?? {});
    const words = [method, path, operation.summary, operation.description, ...fields];
    const [id, group] = [`op-${operation.operationId}`, operation.tags[0]];
    entries.push({ id, group, method, path, operation, body, kind, words });
  }
}
for (const [name, schema] of Object.entries(schemas)) {
  const words = [name, schema.description, ...Object.keys(schema.properties ?? {})];
  entries.push({ id: `schema-${name}`, group: "Schemas", name, schema, words });
}

/** A type in words, with links to what has a name. */
function typeOf(schema) {
  if (schema.$ref) {
    const name = schema.$ref.slice(PLACE.length);
    return [h("a", { href: `#schema-${name}` }, name)];
  }
  if (schema.const !== undefined) return [JSON.stringify(schema.const)];
  if (schema.enum) return [schema.enum.map((value) => JSON.stringify(value)).join(" | ")];
  if (schema.contentSchema) return ["JSON: ", ...typeOf(schema.contentSchema)];
  const alternatives = schema.anyOf;
  if (alternatives) {
    return alternatives.flatMap((one, at) => [at ? " | " : "", ...typeOf(one)]);
  }
  const kinds = [schema.type ?? "any"].flat();
  return kinds.flatMap((kind, at) => {
    const or = at ? " | " : "";
    if (kind === "array") return [or, "list of ", ...typeOf(schema.items ?? {})];
    if (kind === "object" && schema.additionalProperties?.type) {
      return [or, "map of ", ...typeOf(schema.additionalProperties)];
    }
    return [or, kind];
  });
}

/** What a value must keep to, in words. */
function limits(schema) {
  const words = [];
  const say = (name, text) => schema[name] !== undefined && words.push(text(schema[name]));
  say("minimum", (x) => `at least ${x}`);
  say("exclusiveMinimum", (x) => `above ${x}`);
  say("maximum", (x) => `at most ${x}`);
  say("minItems", (x) => `at least ${x} entries`);
  say("maxItems", (x) => `at most ${x} entries`);
  say("minLength", (x) => `at least ${x} characters`);
  say("maxLength", (x) => `at most ${x} characters`);
  say("default", (x) => `default ${JSON.stringify(x)}`);
  const said = words.join(", ");
  return said && `${said[0].toUpperCase()}${said.slice(1)}.`;
}

/** Paragraphs, in which backticks quote code. */
const text = (description = "") => description.split("\n\n").map((part) => h("p", {},
  part.split("`").map((words, at) => (at % 2 ? h("code", {}, words) : words))));

function fieldTable(caption, fields, required = []) {
  const rows = Object.entries(fields).map(([name, schema]) => h("tr", {},
    h("th", { scope: "row" }, name,
      required.includes(name) ? h("span", { class: "must" }, "required") : ""),
    h("td", {}, h("span", { class: "type" }, typeOf(schema)), text(schema.description),
      limits(schema) ? h("p", {}, limits(schema)) : "")));
  return h("table", {}, h("caption", { class: "hidden" }, caption), h("tbody", {}, rows));
}

/** A schema's fields, or the alternatives that it is. */
function showSchema(schema) {
  if (schema.properties) return [fieldTable("Fields", schema.properties, schema.required)];
  if (!schema.anyOf) return [h("p", { class: "type" }, typeOf(schema))];
  return schema.anyOf.flatMap((one) => [
    h("h3", {}, ...(one.properties?.type ? typeOf(one.properties.type) : typeOf(one))),
    ...text(one.description),
    one.properties ? fieldTable("Fields", one.properties, one.required) : "",
  ]);
}

function curl({ method, path, operation, body, kind }) {
  const base = new URL(spec.servers[0].url, location).href.replace(/\/$/, "");
  const lines = [`curl ${base}${path}`];
  if (method !== "get" && !body) lines[0] = `curl -X ${method.toUpperCase()} ${base}${path}`;
  if (!operation.security) lines.push(`-H "Authorization: Bearer $SCONCE_KEY"`);
  if (kind === "multipart/form-data") {
    const fields = Object.entries(resolve(body).properties ?? {});
    lines.push(...fields.map(([name, { format }]) => `-F ${name}=${format === "binary" ? "@FILE" : "…"}`));
  } else if (body) {
    const example = JSON.stringify(resolve(body).examples?.[0] ?? {}, null, 2);
    lines.push(`-H "Content-Type: application/json"`);
    lines.push(`-d '${example.replaceAll("'", "'\\''")}'`);
  }
  return lines.join(" \\\n  ");
}

function example(entry) {
  const code = curl(entry);
  const copy = h("button", { type: "button", class: "quiet" }, "Copy");
  copy.addEventListener("click", async () => {
    await navigator.clipboard.writeText(code);
    copy.textContent = "Copied";
  });
  return h("div", { class: "code" }, h("div", {}, "curl", copy),
    h("pre", { tabindex: 0, "aria-label": "An example for curl" }, code));
}

function answers(operation) {
  const rows = Object.entries(operation.responses).map(([status, { description, content }]) => {
    const kinds = Object.entries(content ?? {}).map(([kind, { schema, itemSchema }]) =>
      h("p", { class: "type" }, `${kind}: `,
        ...(itemSchema ? ["events of ", ...typeOf(itemSchema.properties.data)] : typeOf(schema))));
    return h("tr", {}, h("th", { scope: "row" }, status), h("td", {}, text(description), kinds));
  });
  return h("table", {}, h("caption", { class: "hidden" }, "Answers"), h("tbody", {}, rows));
}

function showOperation(entry) {
  const { operation, body } = entry;
  const parts = [example(entry)];
  if (operation.parameters) {
    const fields = operation.parameters.map(({ name, schema, description }) =>
      [name, { ...schema, description }]);
    const required = operation.parameters.filter((one) => one.required).map(({ name }) => name);
    parts.push(h("h3", {}, "Parameters"));
    parts.push(fieldTable("Parameters", Object.fromEntries(fields), required));
  }
  if (body) parts.push(h("h3", {}, "Body: ", ...typeOf(body)), ...showSchema(resolve(body)));
  return [...parts, h("h3", {}, "Answers"), answers(operation)];
}

const chosen = () => entries.find(({ id }) => `#${id}` === location.hash) ?? entries[0];

/** Marks in the list what is shown. */
function mark() {
  for (const link of $("list").querySelectorAll("a")) {
    if (link.hash === `#${chosen().id}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
}

function show(moves) {
  const entry = chosen();
  const { name, method, path, operation, schema } = entry;
  const title = name ?? path;
  $("detail").replaceChildren(
    h("h2", {}, method ? h("span", { class: "method" }, method) : "", title),
    ...(operation ? [h("p", {}, operation.summary), ...text(operation.description)]
      : text(schema.description)),
    ...(operation ? showOperation(entry) : showSchema(schema)));
  document.title = `${title} · Sconce`;
  $("detail").scrollTop = 0;
  mark();
  if (moves) $("detail").focus({ preventScroll: true });
}

function list() {
  const asked = $("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  const found = entries.filter(({ words }) => {
    const all = words.join(" ").toLowerCase();
    return asked.every((word) => all.includes(word));
  });
  const groups = Map.groupBy(found, ({ group }) => group);
  $("list").replaceChildren(...[...groups].flatMap(([group, members]) => [
    h("h2", {}, group),
    h("ul", {}, members.map(({ id, method, name, path }) => h("li", {}, h("a", { href: `#${id}` },
      method ? h("span", { class: "method" }, method) : "", name ?? path)))),
  ]));
  mark();
  $("found").textContent = asked.length ? `${found.length} found` : "";
}

list();
show(false);
addEventListener("hashchange", () => show(true));
$("search").addEventListener("input", list);
$("search").addEventListener("keydown", (event) => {
  const first = $("list").querySelector("a");
  if (event.key === "Enter" && first) location.hash = first.hash;
});
addEventListener("keydown", (event) => {
  if (event.key !== "/" || event.target.matches("input, textarea")) return;
  event.preventDefault();
  $("search").focus();
});
