// The models of every task, and their cards.

import { fetchJson, Problem } from "./api.js";
import { el, fill } from "./dom.js";
import { onLanguage, t, tOr } from "./i18n.js";
import { markdown } from "./markdown.js";
import { problemCard } from "./problems.js";

const view = document.getElementById("view-models");
const dialog = document.getElementById("card-dialog");
const state = { tasks: [], onKey: () => {} };
let started = false;

export function startModels(tasks, onKey) {
  Object.assign(state, { tasks: tasks.filter((task) => task.ready), onKey });
  if (!started) {
    started = true;
    onLanguage(render);
    dialog.addEventListener("click", (event) => {
      if (event.target === dialog) dialog.close();
    });
  }
  render();
}

function render() {
  fill(
    view,
    el("h1.view-title", {}, t("models.title")),
    el("p.lead", {}, t("models.lead")),
    state.tasks.length === 0 && el("p", {}, t("task.none")),
    el("div.model-list", {}, state.tasks.map(taskPanel)),
  );
}

function taskPanel(task) {
  return el(
    "section.panel",
    {},
    el("h2", {}, tOr(`task.${task.task}.title`, task.title)),
    el("p", { lang: "en" }, task.intended_use),
    el("p.small.faint", { lang: "en" }, task.accepted),
    el(
      "ul.plain-list",
      {},
      task.models.map((model) => modelItem(task, model)),
    ),
    el("p.small", {}, el("a", { href: `${task.path}/docs` }, t("models.docs"))),
  );
}

function modelItem(task, model) {
  const open = (event) => showCard(task, model.name, event.currentTarget);
  return el(
    "li.model",
    {},
    el(
      "span",
      {},
      el("strong", {}, model.name),
      model.default && task.models.length > 1 && ` (${t("models.default")})`,
      el(
        "span.small.faint.block",
        {},
        t("models.facts", { bundle: model.bundle, created: model.created.slice(0, 10) }),
      ),
    ),
    el("button", { type: "button", on: { click: open } }, t("card.open")),
  );
}

/** Show the card of a model over the page; the focus goes back to the button that opened it. */
export async function showCard(task, name, opener) {
  const close = el("button", { type: "button", on: { click: () => dialog.close() } }, t("close"));
  const body = el("div.card-body", { lang: "en" }, el("p", {}, t("work.running")));
  fill(
    dialog,
    el("header.card-head", {}, el("h2", { id: "card-title" }, t("card.title", { name })), close),
    body,
  );
  dialog.addEventListener("close", () => opener.focus(), { once: true });
  dialog.showModal();
  try {
    const query = new URLSearchParams({ model: name });
    const card = await fetchJson(`${task.path}/card?${query}`);
    fill(body, markdown(card.card));
  } catch (problem) {
    if (!(problem instanceof Problem)) throw problem;
    if (problem.status === 401) {
      dialog.close();
      state.onKey(problem);
    } else {
      fill(body, problemCard(problem));
    }
  }
}
