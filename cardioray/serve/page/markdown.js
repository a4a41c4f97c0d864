// The part of Markdown that model cards are written in, as elements: headings, paragraphs, lists,
// tables, code, emphasis. Links and pictures of a bundle lead nowhere here and become their text.

import { el } from "./dom.js";

export function markdown(text, lowest = 3) {
  const lines = text.replace(/^---\n[\s\S]*?\n---\n/, "").split("\n");
  const blocks = [];
  let at = 0;
  while (at < lines.length) {
    const [block, next] = readBlock(lines, at, lowest);
    if (block) blocks.push(block);
    at = next;
  }
  return blocks;
}

function readBlock(lines, at, lowest) {
  const line = lines[at];
  if (!line.trim()) return [null, at + 1];
  if (line.startsWith("```")) return readCode(lines, at);
  const heading = /^(#{1,6}) +(.*)$/.exec(line);
  if (heading) {
    const level = Math.min(6, heading[1].length + lowest - 1);
    return [el(`h${level}`, {}, inline(heading[2])), at + 1];
  }
  if (line.startsWith("|")) return readTable(lines, at);
  if (line.startsWith(">")) return readQuote(lines, at);
  if (/^[-*] /.test(line)) return readList(lines, at);
  return readParagraph(lines, at);
}

function readCode(lines, at) {
  let end = at + 1;
  while (end < lines.length && !lines[end].startsWith("```")) end += 1;
  const code = el("code", {}, lines.slice(at + 1, end).join("\n"));
  return [el("pre", { tabindex: "0" }, code), end + 1];
}

function readQuote(lines, at) {
  let end = at;
  while (end < lines.length && lines[end].startsWith(">")) end += 1;
  const text = lines.slice(at, end).map((line) => line.replace(/^> ?/, ""));
  return [el("blockquote", {}, markdown(text.join("\n"))), end];
}

function readTable(lines, at) {
  let end = at;
  while (end < lines.length && lines[end].startsWith("|")) end += 1;
  const rows = lines.slice(at, end).map((line) =>
    line
      .replace(/^\||\|$/g, "")
      .split("|")
      .map((text) => text.trim()),
  );
  const [head, , ...body] = rows;
  const row = (cells, tag, props) =>
    el(
      "tr",
      {},
      cells.map((text) => el(tag, props, inline(text))),
    );
  const table = el(
    "table",
    {},
    head.some(Boolean) && el("thead", {}, row(head, "th", { scope: "col" })),
    el(
      "tbody",
      {},
      body.map((cells) => row(cells, "td", {})),
    ),
  );
  return [
    el(
      "div.scroll",
      { tabindex: "0", role: "group", "aria-label": head.join(", ") || body[0][0] },
      table,
    ),
    end,
  ];
}

function readList(lines, at) {
  const items = [];
  let end = at;
  while (end < lines.length && lines[end].trim()) {
    if (/^[-*] /.test(lines[end])) items.push(lines[end].slice(2));
    else items[items.length - 1] += ` ${lines[end].trim()}`;
    end += 1;
  }
  return [
    el(
      "ul",
      {},
      items.map((text) => el("li", {}, inline(text))),
    ),
    end,
  ];
}

function readParagraph(lines, at) {
  let end = at;
  while (end < lines.length && lines[end].trim() && !/^(#|```|\||>|[-*] )/.test(lines[end]))
    end += 1;
  if (end === at) end += 1;
  const text = lines
    .slice(at, end)
    .join(" ")
    .replace(/!\[([^\]]*)\]\([^)]*\)/g, "")
    .trim();
  return [text ? el("p", {}, inline(text)) : null, end];
}

const INLINE = /(`[^`]+`|\*\*[^*]+\*\*|!?\[[^\]]*\]\([^)]*\))/;

function inline(text) {
  return text
    .split(INLINE)
    .filter(Boolean)
    .map((part) => {
      if (part.startsWith("`") && part.endsWith("`") && part.length > 1)
        return el("code", {}, part.slice(1, -1));
      if (part.startsWith("**")) return el("strong", {}, part.slice(2, -2));
      const link = /^!?\[([^\]]*)\]\([^)]*\)$/.exec(part);
      return link ? link[1] : part;
    });
}
