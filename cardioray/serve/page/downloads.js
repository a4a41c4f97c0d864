// The result as a file, made in the browser: JSON as it was answered, a picture, a PDF.

import { announce, el } from "./dom.js";
import { t } from "./i18n.js";
import { pdfOf } from "./pdf.js";
import { pagesOf, pictureOf } from "./report.js";

const JPEG_QUALITY = 0.92;

export function downloads(run) {
  return [
    ["PNG", async () => blobOf(await pictureOf(run), "image/png")],
    ["PDF", async () => pdfBlob(run)],
    [
      "JSON",
      async () => new Blob([JSON.stringify(run.answer, null, 2)], { type: "application/json" }),
    ],
  ].map(([kind, make]) => button(run, kind, make));
}

function button(run, kind, make) {
  const click = async (event) => {
    const own = event.currentTarget;
    own.disabled = true;
    try {
      save(await make(), `${stem(run)}.${kind.toLowerCase()}`);
      announce(t("download.done", { kind }));
    } finally {
      own.disabled = false;
      own.focus();
    }
  };
  return el(
    "button",
    { type: "button", "data-download": kind.toLowerCase(), on: { click } },
    t("download", { kind }),
  );
}

function stem(run) {
  const moment = run.started.toISOString().slice(0, 16).replace(/[-:]/g, "").replace("T", "-");
  return `cardioray-${run.task.task}-${moment}`;
}

function save(blob, name) {
  const url = URL.createObjectURL(blob);
  const link = el("a", { href: url, download: name });
  link.click();
  // The browser reads the blob after the click; a minute is longer than it waits for a person.
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}

function blobOf(canvas, type, quality) {
  return new Promise((resolve, reject) => {
    canvas.toBlob(
      (blob) => (blob ? resolve(blob) : reject(new Error("The canvas gave no picture."))),
      type,
      quality,
    );
  });
}

async function pdfBlob(run) {
  const pages = [];
  for (const canvas of await pagesOf(run)) {
    const jpeg = new Uint8Array(
      await (await blobOf(canvas, "image/jpeg", JPEG_QUALITY)).arrayBuffer(),
    );
    pages.push({ jpeg, width: canvas.width, height: canvas.height });
  }
  return new Blob(
    [
      pdfOf(pages, {
        title: `CardioRay: ${run.task.task}`,
        lang: document.documentElement.lang,
        created: run.started,
      }),
    ],
    {
      type: "application/pdf",
    },
  );
}
