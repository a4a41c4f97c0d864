// What an answer says beside its targets: beats, outlines, cines, heads; each as a table.

import { el } from "./dom.js";
import { number, t, tOr } from "./i18n.js";

// What is shown elsewhere, or is no matter for a reader.
const ELSEWHERE = ["model", "bundle", "frames", "warnings", "request_id", "overlays", "dicom"];
const HEAVY = ["mask", "contours"];

export function details({ task, answer }) {
  const shown = new Set([...ELSEWHERE, ...task.targets.map(({ name }) => name)]);
  for (const target of task.targets) {
    if (target.one_of?.length) shown.add(target.name.slice(0, -target.positive.length - 1));
  }
  const blocks = Object.entries(answer)
    .filter(([name, value]) => !shown.has(name) && value !== null)
    .map(([name, value]) => block(name, value))
    .filter(Boolean);
  if (!blocks.length) return null;
  return el("details.more", {}, el("summary", {}, t("details.title")), blocks);
}

function block(name, value) {
  const content = contentOf(value);
  if (!content) return null;
  return el("section.detail", {}, el("h4", {}, tOr(`detail.${name}`, name)), content);
}

function contentOf(value) {
  if (Array.isArray(value)) {
    if (!value.length) return null;
    return typeof value[0] === "object" ? table(value) : el("p", {}, value.map(cell).join(", "));
  }
  if (typeof value !== "object") return el("p", {}, cell(value));
  const entries = Object.entries(value).filter(([, own]) => own !== null);
  if (!entries.length) return null;
  if (entries.every(([, own]) => typeof own === "object" && !Array.isArray(own))) {
    return table(entries.map(([key, own]) => ({ "": key, ...own })));
  }
  return el(
    "dl.facts",
    {},
    entries.map(([key, own]) => [el("dt", {}, label(key)), el("dd", {}, cell(own))]),
  );
}

function table(rows) {
  const columns = [...new Set(rows.flatMap((row) => Object.keys(row)))].filter(
    (name) =>
      !HEAVY.includes(name) && rows.some((row) => row[name] !== null && row[name] !== undefined),
  );
  return el(
    "div.scroll",
    { tabindex: "0", role: "group", "aria-label": t("details.table") },
    el(
      "table",
      {},
      el(
        "thead",
        {},
        el(
          "tr",
          {},
          columns.map((name) => el("th", { scope: "col" }, name ? label(name) : t("details.row"))),
        ),
      ),
      el(
        "tbody",
        {},
        rows.map((row) =>
          el(
            "tr",
            {},
            columns.map((name) => el("td", {}, cell(row[name]))),
          ),
        ),
      ),
    ),
  );
}

function label(name) {
  return tOr(`field.${name}`, name.replaceAll("_", " "));
}

function cell(value) {
  if (value === null || value === undefined) return "–";
  if (typeof value === "boolean") return t(value ? "yes" : "no");
  if (typeof value === "number") return Number.isInteger(value) ? String(value) : number(value, 2);
  if (Array.isArray(value)) return value.map(cell).join(", ");
  if (typeof value === "object") {
    return Object.entries(value)
      .map(([key, own]) => `${label(key)} ${cell(own)}`)
      .join(", ");
  }
  return String(value);
}
