// Markdown as models write it, to DOM nodes. Text only ever becomes text nodes, so an answer
// can bring no markup of its own.

const FENCE = /^ {0,3}(`{3,}|~{3,})[ \t]*([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})(?:[ \t]+(.*?))?(?:[ \t]+#+)?[ \t]*$/;
const RULE = /^ {0,3}([-*_])(?:[ \t]*\1){2,}[ \t]*$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( {0,3})([-*+]|\d{1,9}[.)])(?:( {1,4})(?=\S)|[ \t]*$| {5,})/;
const TABLE_RULE = /^ {0,3}\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)*\|?[ \t]*$/;
const DEPTH = 12;

/** Shows a text that grows. What is before its last block is final and never parsed again. */
export class MarkdownStream {
  constructor(container) {
    this.container = container;
    this.source = "";
    this.settled = 0;
    this.tail = null;
    this.frame = 0;
  }

  /** Appends text, which is shown in the next frame; `shown` is called then. */
  push(text, shown) {
    this.source += text;
    this.frame ||= requestAnimationFrame(() => {
      this.frame = 0;
      this.render();
      shown?.();
    });
  }

  /** Shows all there is now. */
  finish() {
    cancelAnimationFrame(this.frame);
    this.frame = 0;
    this.render(true);
  }

  render(isWhole = false) {
    let text = this.source.slice(this.settled);
    // What may yet become an item, a rule or a fence is not shown as a paragraph before.
    if (!isWhole) text = text.replace(/(^|\n)[ \t]*(?:\d{1,9}|[-*+_~`]{1,2})$/, "$1");
    const lines = text.split("\n");
    let at = 0;
    for (;;) {
      const block = readBlock(lines, at);
      if (!block) break;
      const isLast = !readBlock(lines, block.end);
      this.show(block);
      if (isLast) break;
      for (; at < block.end; at++) this.settled += lines[at].length + 1;
      this.tail = null;
    }
  }

  /** Puts the block in the place of what was shown of it before. */
  show(block) {
    const text = this.tail?.dataset.kind === "code" && this.tail.querySelector("code").firstChild;
    if (block.kind === "code" && text && block.text.startsWith(text.data)) {
      text.appendData(block.text.slice(text.data.length));
      return;
    }
    const node = renderBlock(block, 0);
    if (this.tail) this.tail.replaceWith(node);
    else this.container.append(node);
    this.tail = node;
  }
}

/** The block that begins at or after line `at`; nothing if only blank lines follow. */
function readBlock(lines, at) {
  while (at < lines.length && !lines[at].trim()) at++;
  if (at >= lines.length) return null;
  const line = lines[at];
  const fence = FENCE.exec(line);
  if (fence) {
    const close = new RegExp(`^ {0,3}${fence[1][0]}{${fence[1].length},}[ \\t]*$`);
    let end = at + 1;
    while (end < lines.length && !close.test(lines[end])) end++;
    const indent = new RegExp(`^ {0,${line.search(/\S/)}}`);
    const text = lines.slice(at + 1, end).map((line) => line.replace(indent, "")).join("\n");
    return { kind: "code", language: fence[2].trim().split(/\s/)[0], text, end: end + 1 };
  }
  const heading = HEADING.exec(line);
  if (heading) return { kind: "heading", level: heading[1].length, text: heading[2] ?? "", end: at + 1 };
  if (RULE.test(line)) return { kind: "rule", end: at + 1 };
  if (QUOTE.test(line)) {
    let end = at;
    while (end < lines.length && lines[end].trim() && (QUOTE.test(lines[end]) || !begins(lines[end]))) end++;
    return { kind: "quote", lines: lines.slice(at, end).map((line) => line.replace(QUOTE, "")), end };
  }
  if (ITEM.test(line)) return readList(lines, at);
  if (line.includes("|") && TABLE_RULE.test(lines[at + 1] ?? "")) {
    const rule = cells(lines[at + 1]);
    if (rule.length === cells(line).length) {
      let end = at + 2;
      while (end < lines.length && lines[end].trim() && !begins(lines[end])) end++;
      const aligns = rule.map((cell) =>
        cell.endsWith(":") ? (cell.startsWith(":") ? "center" : "right") : "left");
      return { kind: "table", head: cells(line), rows: lines.slice(at + 2, end).map(cells), aligns, end };
    }
  }
  let end = at + 1;
  while (end < lines.length && lines[end].trim() && !begins(lines[end])) end++;
  return { kind: "paragraph", text: lines.slice(at, end).join("\n").trim(), end };
}

/** Whether a line begins a block in the middle of a paragraph. */
function begins(line) {
  if (FENCE.test(line) || HEADING.test(line) || RULE.test(line) || QUOTE.test(line)) return true;
  const item = ITEM.exec(line);
  return Boolean(item?.[3]) && (item[2].length === 1 || parseInt(item[2], 10) === 1);
}

function readList(lines, at) {
  const first = ITEM.exec(lines[at]);
  const ordered = first[2].length > 1;
  const mark = first[2].at(-1);
  const items = [];
  let isLoose = false;
  let end = at;
  while (end < lines.length) {
    const item = ITEM.exec(lines[end]);
    if (!item || RULE.test(lines[end]) || item[2].at(-1) !== mark || item[2].length > 1 !== ordered) break;
    const indent = item[1].length + item[2].length + (item[3]?.length ?? 1);
    const body = [lines[end].slice(indent)];
    let blank = 0;
    for (end++; end < lines.length; end++) {
      const line = lines[end];
      if (!line.trim()) {
        blank++;
        body.push("");
      } else if (line.search(/\S/) >= indent) {
        isLoose ||= blank > 0 && /^\S/.test(line.slice(indent));
        blank = 0;
        body.push(line.slice(indent));
      } else if (!blank && !begins(line) && !ITEM.test(line)) {
        body.push(line.trimStart());
      } else break;
    }
    if (blank && ITEM.test(lines[end] ?? "") && !RULE.test(lines[end])) isLoose = true;
    items.push(body);
  }
  return { kind: "list", ordered, start: parseInt(first[2], 10), items, isLoose, end };
}

function cells(line) {
  const text = line.trim().replace(/^\|/, "").replace(/(?<!\\)\|$/, "");
  return text.split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll("\\|", "|"));
}

function element(name, ...children) {
  const node = document.createElement(name);
  node.append(...children);
  return node;
}

function renderBlocks(lines, into, depth, isTight = false) {
  for (let at = 0, block; (block = readBlock(lines, at)); at = block.end) {
    if (isTight && block.kind === "paragraph") inline(block.text, into);
    else into.append(renderBlock(block, depth));
  }
  return into;
}

function renderBlock(block, depth) {
  if (depth > DEPTH) return element("p", (block.lines ?? block.items?.flat() ?? [block.text]).join("\n"));
  switch (block.kind) {
    case "code": return renderCode(block);
    // The page has two levels of its own.
    case "heading": return inline(block.text, element(`h${Math.min(block.level + 2, 6)}`));
    case "rule": return element("hr");
    case "quote": return renderBlocks(block.lines, element("blockquote"), depth + 1);
    case "list": {
      const list = element(block.ordered ? "ol" : "ul");
      if (block.ordered && block.start !== 1) list.start = block.start;
      for (const item of block.items) {
        list.append(renderBlocks(item, element("li"), depth + 1, !block.isLoose));
      }
      return list;
    }
    case "table": {
      const row = (name, texts) => element("tr", ...block.aligns.map((align, index) => {
        const cell = inline(texts[index] ?? "", element(name));
        cell.className = align;
        return cell;
      }));
      const body = element("tbody", ...block.rows.map((texts) => row("td", texts)));
      const table = element("div", element("table", element("thead", row("th", block.head)), body));
      table.className = "scroll";
      return table;
    }
    default: return inline(block.text, element("p"));
  }
}

function renderCode({ language, text }) {
  const copy = element("button", "Copy");
  copy.type = "button";
  copy.className = "quiet";
  copy.setAttribute("aria-label", "Copy code");
  const code = element("code", document.createTextNode(text));
  copy.addEventListener("click", async () => {
    await navigator.clipboard.writeText(code.textContent);
    copy.textContent = "Copied";
    setTimeout(() => (copy.textContent = "Copy"), 1500);
  });
  const pre = element("pre", code);
  pre.tabIndex = 0;
  const block = element("div", element("div", element("span", language), copy), pre);
  block.className = "code";
  block.dataset.kind = "code";
  return block;
}

// No alternative can match one text in two ways, and emphasis is bounded: what a model writes
// costs no more than its length, or so.
const INLINE = new RegExp(
  [
    /\\([!-/:-@[-`{-~])/, // 1: an escaped character
    /(?<!`)(`+)(?!`)([^]{0,5000}?[^`])\2(?!`)/, // 2, 3: code
    /!?\[((?:[^[\]\\]|\\.|\[[^[\]]*\])*)\]\(<?([^\s()<>]*(?:\([^\s()]*\)[^\s()<>]*)*)>?(?:\s+"[^"]*")?\)/, // 4, 5: a link
    /<?(https?:\/\/[^\s<>`]*[^\s<>`.,:;!?'")\]*_])>?/, // 6: an address
    /\*\*(?=\S)([^]{0,2000}?\S)\*\*(?!\*)|(?<!\w)__(?=\S)([^]{0,2000}?\S)__(?!\w)/, // 7, 8: bold
    /\*(?=[^\s*])((?:[^*]|\*\*[^*]+\*\*){1,2000}?)(?<!\s)\*(?!\*)/, // 9: italic
    /(?<!\w)_(?=[^\s_])([^_]{1,2000})(?<!\s)_(?!\w)/, // 10: the same
    /~~(?=\S)([^]{0,2000}?\S)~~/, // 11: struck out
    /(?: {2,}|\\)\n/, // a line break
  ].map((part) => part.source).join("|"),
  "g",
);
const LONGEST = 50_000;

/** Appends a text with its emphasis, code and links. */
function inline(text, into, depth = 0) {
  let end = 0;
  if (depth < DEPTH && text.length < LONGEST) {
    for (const match of text.matchAll(INLINE)) {
      into.append(text.slice(end, match.index));
      into.append(span(match, depth));
      end = match.index + match[0].length;
    }
  }
  into.append(text.slice(end));
  return into;
}

function span(match, depth) {
  const [whole, escaped, , code, label, target, address, ...emphasis] = match;
  const [bold, bold2, italic, italic2, struck] = emphasis;
  if (escaped) return escaped;
  if (code !== undefined) {
    return element("code", /^ .*\S.* $/s.test(code) ? code.slice(1, -1) : code);
  }
  if (target !== undefined) {
    const link = linkTo(target);
    return link ? inline(label, link, depth + 1) : whole;
  }
  if (address) {
    const link = linkTo(address);
    link?.append(address);
    return link ?? whole;
  }
  if (bold ?? bold2) return inline(bold ?? bold2, element("strong"), depth + 1);
  if (italic ?? italic2) return inline(italic ?? italic2, element("em"), depth + 1);
  if (struck) return inline(struck, element("del"), depth + 1);
  return element("br");
}

/** A link to another site, which learns nothing of this page; nothing for other schemes. */
function linkTo(target) {
  if (!/^https?:\/\//i.test(target) || !URL.canParse(target)) return null;
  const link = element("a");
  link.href = target;
  link.rel = "noopener noreferrer nofollow";
  link.target = "_blank";
  return link;
}
