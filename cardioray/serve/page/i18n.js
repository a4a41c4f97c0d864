// The words of the page. The language stands in the address and nowhere else.

const LANGUAGES = ["en", "th"];
let words = {};
let current = "en";
const watchers = [];

/** The language that the address names, else the browser's own. */
export function wantedLanguage() {
  const named = new URLSearchParams(location.search).get("lang");
  if (LANGUAGES.includes(named)) return named;
  return navigator.language.toLowerCase().startsWith("th") ? "th" : "en";
}

export function language() {
  return current;
}

export async function useLanguage(name) {
  const response = await fetch(`page/i18n/${name}.json`);
  if (!response.ok) throw new Error(`page/i18n/${name}.json: ${response.status}`);
  words = await response.json();
  current = name;
  document.documentElement.lang = name;
  for (const node of document.querySelectorAll("[data-t]")) node.textContent = t(node.dataset.t);
  for (const node of document.querySelectorAll("[data-t-label]")) {
    node.setAttribute("aria-label", t(node.dataset.tLabel));
  }
  for (const button of document.querySelectorAll("[data-lang]")) {
    button.setAttribute("aria-pressed", String(button.dataset.lang === name));
  }
  for (const watcher of watchers) watcher();
}

/** Remember the language in the address, without a new entry in the history. */
export function rememberLanguage(name) {
  const address = new URL(location.href);
  address.searchParams.set("lang", name);
  history.replaceState(null, "", address);
}

export function onLanguage(watcher) {
  watchers.push(watcher);
}

/**
 * A text of the present language.
 * @param {string} key as in the files of i18n/.
 * @param {Object} values what stands in {braces}.
 */
export function t(key, values = {}) {
  const text = words[key];
  if (text === undefined) throw new Error(`i18n/${current}.json has no ${key}.`);
  return text.replace(/\{(\w+)\}/g, (whole, name) =>
    name in values ? String(values[name]) : whole,
  );
}

/** The same, or another text where the files know none. */
export function tOr(key, other) {
  return key in words ? words[key] : other;
}

export function number(value, digits = 0) {
  return new Intl.NumberFormat(current === "th" ? "th-TH-u-nu-latn" : "en-GB", {
    minimumFractionDigits: digits,
    maximumFractionDigits: digits,
  }).format(value);
}

export function percent(share, digits = 0) {
  return `${number(100 * share, digits)} %`;
}

export function size(bytes) {
  const [value, unit] = bytes >= 2 ** 20 ? [bytes / 2 ** 20, "MiB"] : [bytes / 1024, "KiB"];
  return `${number(value, value < 10 ? 1 : 0)} ${unit}`;
}

export function moment(date) {
  return new Intl.DateTimeFormat(current === "th" ? "th-TH-u-nu-latn" : "en-GB", {
    dateStyle: "medium",
    timeStyle: "short",
  }).format(date);
}

// What servers say is English. Sentences that come with many answers are known in both languages.
const KNOWN = [
  [/^Trained on phantoms: figures say nothing about patients\.$/, "warning.phantoms"],
  [/^Patients were not known: the same patient may be in training and test/, "warning.patients"],
  [/^Too few calibration patients: /, "warning.calibration"],
  [/^(?:\w+: )?Input unlike the training /, "warning.unlike"],
];

/** A sentence of the server: what it means in the present language, and whether it is its own words. */
export function told(sentence) {
  if (current === "en") return { text: sentence, own: true };
  const known = KNOWN.find(([pattern]) => pattern.test(sentence));
  return known ? { text: t(known[1]), own: false } : { text: sentence, own: true };
}
