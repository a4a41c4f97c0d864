// The first part of the form: files are dropped or picked, shown, and said what they show.

import { el, fresh } from "./dom.js";
import { describe, guessedField, preview } from "./files.js";
import { t, tOr } from "./i18n.js";

/**
 * @param {Object[]} files that were picked.
 * @param {?Object} task that they are for; null where they decide.
 * @param {{add: (list: FileList) => void, remove: (file: Object) => void}} act
 */
export function filesFieldset(files, task, act) {
  const items = files.map((file) => fileItem(file, task, act));
  return el(
    "fieldset",
    {},
    el("legend", {}, t("files.title")),
    dropZone(act),
    el("p.faint.small", { id: "files-help" }, t("files.help")),
    items.length > 0 && el("ul.picked", {}, items),
  );
}

function dropZone(act) {
  const input = el("input.visually-hidden", {
    id: "files-input",
    type: "file",
    multiple: true,
    "aria-describedby": "files-help",
    on: { change: () => act.add(input.files) },
  });
  const zone = el(
    "label.drop",
    { for: "files-input" },
    input,
    el("span.drop-main", {}, t("files.drop")),
    el("span.button-like", {}, t("files.pick")),
  );
  for (const name of ["dragenter", "dragover"]) {
    zone.addEventListener(name, (event) => {
      event.preventDefault();
      zone.classList.add("over");
    });
  }
  zone.addEventListener("dragleave", () => zone.classList.remove("over"));
  zone.addEventListener("drop", (event) => {
    event.preventDefault();
    zone.classList.remove("over");
    act.add(event.dataTransfer.files);
  });
  return zone;
}

function fileItem(file, task, act) {
  const { name } = file.file;
  const label = t("files.remove.named", { name });
  const remove = { type: "button", "aria-label": label, on: { click: () => act.remove(file) } };
  return el(
    "li.picked-file",
    {},
    preview(file),
    el(
      "div.picked-facts",
      {},
      el("p.file-name", {}, name),
      el("p.faint.small", {}, describe(file)),
      showsField(file, task),
      el("button.quiet", remove, t("files.remove")),
    ),
  );
}

/** Which field a file stands in: what it is said to show. */
function showsField(file, task) {
  if (!task?.fields.length) return null;
  const id = fresh("shows");
  const change = () => {
    file.shows = select.value;
  };
  const options = task.fields.map(({ name, shows }) =>
    el("option", { value: name }, tOr(`shows.${shows}`, shows)),
  );
  const unsaid = t(task.takes_plain_files ? "shows.unsaid" : "shows.choose");
  const select = el("select", { id, on: { change } }, el("option", { value: "" }, unsaid), options);
  select.value = file.shows;
  return el("p.inline-field", {}, el("label", { for: id }, t("shows.label")), select);
}

/** Say for each file what its name says, where nobody has said it in words of this task. */
export function guessFields(files, task) {
  const fields = task?.fields ?? [];
  for (const file of files) {
    if (!fields.some(({ name }) => name === file.shows)) {
      file.shows = guessedField(file.file.name, fields);
    }
  }
}
