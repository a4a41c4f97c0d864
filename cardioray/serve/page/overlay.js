// Where an answer comes from: heat maps and outlines over frames, videos of cines with their curve.

import { el, fresh } from "./dom.js";
import { preview } from "./files.js";
import { t, tOr } from "./i18n.js";
import { player } from "./player.js";

export function overlayFigure(run) {
  const overlays = run.answer.overlays ?? [];
  if (!overlays.length) return null;
  const stage = el("div.stage");
  const caption = el("figcaption.small.faint");
  const names = overlays.map((overlay, index) => nameOf(overlay, index, overlays.length));
  let shown = 0;
  let over = true;
  const show = () => {
    const overlay = overlays[shown];
    // Frames are counted over the files; a file of several frames is shown as a whole.
    const file = run.files[run.files.length === run.answer.frames ? overlay.frame : 0];
    stage.replaceChildren(over ? overlayElement(overlay, names[shown]) : preview(file));
    caption.textContent = over
      ? tOr(`overlay.${overlay.method}.caption`, t("overlay.heat.caption"))
      : t("overlay.original");
  };
  const id = fresh("toggle");
  const toggle = el("input", {
    id,
    type: "checkbox",
    role: "switch",
    checked: true,
    on: {
      change: () => {
        over = toggle.checked;
        show();
      },
    },
  });
  show();
  return el(
    "figure.overlay",
    {},
    el("p.check", {}, toggle, el("label", { for: id }, t("overlay.toggle"))),
    overlays.length > 1 &&
      picker(names, (index) => {
        shown = index;
        show();
      }),
    stage,
    caption,
  );
}

function nameOf(overlay, index, count) {
  const what = tOr(`overlay.${overlay.method}`, overlay.method);
  if (overlay.view) return `${what}, ${overlay.view}`;
  return count > 1 ? `${what}, ${t("overlay.number", { number: index + 1, count })}` : what;
}

function picker(names, choose) {
  const id = fresh("picker");
  const select = el(
    "select",
    { id, on: { change: () => choose(select.selectedIndex) } },
    names.map((name) => el("option", {}, name)),
  );
  return el("p.inline-field", {}, el("label", { for: id }, t("overlay.which")), select);
}

function overlayElement(overlay, name) {
  if (overlay.png) return el("img.look", { src: overlay.png, alt: name });
  const values = overlay.importance ?? [];
  const top = values.indexOf(Math.max(...values));
  return el(
    "div",
    {},
    player(overlay.video, name),
    values.length > 0 &&
      el("p.small.faint", {}, t("overlay.curve", { frame: top, count: values.length })),
  );
}
