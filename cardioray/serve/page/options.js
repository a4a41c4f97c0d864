// What else a task may be told: overlay, model, frames, size of a pixel.

import { el, fresh } from "./dom.js";
import { t, tOr } from "./i18n.js";

/** The fields of the options of a task, or of every task; they write into `options`. */
export function optionFields(task, options) {
  const overlay = el("input", {
    type: "checkbox",
    id: "overlay",
    checked: options.overlay,
    on: {
      change: () => {
        options.overlay = overlay.checked;
      },
    },
  });
  const shown = [el("p.check", {}, overlay, el("label", { for: "overlay" }, t("option.overlay")))];
  if (task?.takes_spacing) shown.push(text("spacing_mm", options));
  const more = task ? moreFields(task, options) : [];
  if (more.length) {
    shown.push(el("details.more", {}, el("summary", {}, t("option.more")), more));
  }
  return el("div.options", {}, shown);
}

function moreFields(task, options) {
  const fields = [];
  if (task.models.length > 1) {
    const models = task.models.map((model) => [model.default ? "" : model.name, model.name]);
    fields.push(choice("model", models, options));
  }
  if (task.overlays.length > 1 && task.overlays.every((each) => each.of === "frames")) {
    const methods = task.overlays.map(({ method }) => [method, tOr(`method.${method}`, method)]);
    fields.push(choice("method", methods, options));
  }
  fields.push(text("frame", options));
  if (task.takes_key_frames) fields.push(text("key_frames", options));
  return fields;
}

function choice(name, choices, options) {
  const id = fresh("option");
  const select = el(
    "select",
    {
      id,
      on: {
        change: () => {
          options[name] = select.value;
        },
      },
    },
    choices.map(([value, label]) => el("option", { value }, label)),
  );
  select.value = options[name] ?? choices[0][0];
  return el("p.field", {}, el("label", { for: id }, t(`option.${name}`)), select);
}

function text(name, options) {
  const [id, help] = [fresh("option"), fresh("help")];
  const input = el("input", {
    id,
    type: "text",
    autocomplete: "off",
    value: options[name] ?? "",
    "aria-describedby": help,
    on: {
      input: () => {
        options[name] = input.value.trim();
      },
    },
  });
  return el(
    "p.field",
    {},
    el("label", { for: id }, t(`option.${name}`)),
    input,
    el("span.faint.small", { id: help }, t(`option.${name}.help`)),
  );
}

/** The overlay that fits what is sent, "" for none. */
export function chosenOverlay(task, options, cine) {
  if (!options.overlay) return "";
  if (options.method) return options.method;
  const fitting = task.overlays.find((each) => (each.of === "cines") === cine);
  return (fitting ?? task.overlays[0])?.method ?? "";
}

/** The query of a request. */
export function optionParameters(options, overlay) {
  const query = new URLSearchParams();
  if (overlay) query.set("overlay", overlay);
  for (const name of ["model", "frame", "spacing_mm", "key_frames"]) {
    if (options[name])
      query.set(name, name === "model" ? options[name] : options[name].replace(/\s/g, ""));
  }
  return query;
}
