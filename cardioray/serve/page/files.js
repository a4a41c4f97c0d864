// The files that somebody picked: what each is, a look at it, and what it is said to show.

import { fetchBlob, Problem } from "./api.js";
import { el } from "./dom.js";
import { size, t, tOr } from "./i18n.js";
import { player } from "./player.js";

const SIGNATURES = [
  ["DICM", 128, "dicom"],
  ["\x89PNG", 0, "png"],
  ["\xff\xd8\xff", 0, "jpeg"],
  ["BM", 0, "bmp"],
  ["II*\0", 0, "tiff"],
  ["MM\0*", 0, "tiff"],
  ["%PDF", 0, "pdf"],
  ["GIF8", 0, "gif"],
  ["WEBP", 8, "webp"],
  ["AVI ", 8, "avi"],
  ["ftyp", 4, "mp4"],
  ["moov", 4, "mp4"],
  ["mdat", 4, "mp4"],
  ["\x1aE\xdf\xa3", 0, "matroska"],
  ["\x1f\x8b", 0, "gzip"],
];
const PICTURES = ["png", "jpeg", "bmp", "gif", "webp"];
const CLIPS = ["mp4", "matroska", "avi"];
const LONGEST_SIGNATURE = 132;

/**
 * A picked file: what its bytes say that it is, the field that it stands in ("" for none), and what
 * the server shows of it where the browser cannot.
 * @typedef {{file: File, kind: string, url: string, shows: string, seen: ?{url: string, type: string}}} Picked
 */

/** Read what a file is from its first bytes, whatever its name says. */
export async function picked(file) {
  const head = new Uint8Array(await file.slice(0, LONGEST_SIGNATURE).arrayBuffer());
  const text = String.fromCharCode(...head);
  const found = SIGNATURES.find(([sign, at]) => text.startsWith(sign, at));
  const kind = found ? found[2] : "other";
  return { file, kind, url: URL.createObjectURL(file), shows: "", seen: null };
}

export function release(files) {
  for (const { url, seen } of files) {
    URL.revokeObjectURL(url);
    if (seen) URL.revokeObjectURL(seen.url);
  }
}

/** What the name of a file says that it shows, of some fields; "" where it says nothing. */
export function guessedField(name, fields) {
  const upper = name.toUpperCase();
  const view = /A4C|4CH/.test(upper) ? "A4C" : /A2C|2CH/.test(upper) ? "A2C" : "";
  const phase = /(?:^|[^A-Z])(ED|ES)(?:[^A-Z]|$)/.exec(upper)?.[1] ?? "";
  const said = [
    view && phase ? `${view}-${phase}` : "",
    phase && !view ? phase : "",
    phase ? "" : view,
  ];
  return fields.find((field) => said.includes(field.shows))?.name ?? "";
}

export function isClip(kind) {
  return CLIPS.includes(kind);
}

/**
 * A look at a file: the picture, the first page, the clip; else a card that says what it is.
 * @param {Picked} file
 */
export function preview(file) {
  const { kind, url, seen } = file;
  const { name } = file.file;
  if (seen) return shown(seen, name);
  if (PICTURES.includes(kind)) {
    const image = el("img.look", { src: url, alt: t("preview.picture", { name }) });
    image.addEventListener("error", () => image.replaceWith(plainCard(file)));
    return image;
  }
  if (kind === "mp4" || kind === "matroska") {
    const clip = player(url, t("preview.clip", { name }));
    clip.querySelector("video").addEventListener("error", () => clip.replaceWith(plainCard(file)));
    return clip;
  }
  if (kind === "pdf" && navigator.pdfViewerEnabled) {
    return el("iframe.look.page", {
      src: `${url}#page=1&toolbar=0&navpanes=0&view=Fit`,
      title: t("preview.page", { name }),
    });
  }
  return plainCard(file);
}

function shown({ url, type }, name) {
  if (type.startsWith("video/")) return player(url, t("preview.clip", { name }));
  return el("img.look", { src: url, alt: t("preview.picture", { name }) });
}

/** What a file is, and a way to have the server show it. */
function plainCard(file) {
  const { kind } = file;
  const note = el("span.faint", {}, t("preview.none"));
  const ask = el("button.quiet", { type: "button" }, t("preview.ask"));
  const card = el(
    "div.look.plain",
    {},
    el("span.plain-kind", {}, kind === "other" ? "?" : kind.toUpperCase()),
    note,
    ask,
  );
  ask.addEventListener("click", async () => {
    ask.disabled = true;
    note.textContent = t("preview.asking");
    const data = new FormData();
    data.append("file", file.file);
    try {
      const blob = await fetchBlob("api/look", data);
      file.seen = { url: URL.createObjectURL(blob), type: blob.type };
      card.replaceWith(preview(file));
    } catch (problem) {
      if (!(problem instanceof Problem)) throw problem;
      note.textContent = tOr(`problem.${problem.kind}`, problem.title);
      ask.remove();
    }
  });
  return card;
}

export function describe({ file, kind }) {
  return `${tOr(`kind.${kind}`, t("kind.other"))}, ${size(file.size)}`;
}
