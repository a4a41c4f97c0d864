// The start of the page: language, key, and which part of it is shown.

import { fetchJson, useKey } from "./api.js";
import { startAsking } from "./ask.js";
import { announce, el, fill } from "./dom.js";
import { onLanguage, rememberLanguage, t, useLanguage, wantedLanguage } from "./i18n.js";
import { startModels } from "./models.js";
import { problemCard } from "./problems.js";
import { startQuestionnaire } from "./questionnaire.js";

const VIEWS = ["ask", "questionnaire", "models"];
const keyView = document.getElementById("key-view");
let about = null;
let open = false;
let shown = VIEWS[0];

function showView() {
  // Other names in the address, such as that of the skip link, lead to places of the same view.
  const named = location.hash.slice(1);
  if (VIEWS.includes(named)) shown = named;
  for (const name of VIEWS) {
    document.getElementById(`view-${name}`).hidden = !open || name !== shown;
    const link = document.querySelector(`[data-view=${name}]`);
    if (name === shown) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = `${t(`nav.${shown}`)} – CardioRay`;
}

function askForKey(problem = null) {
  open = false;
  const field = el("input", {
    id: "key",
    type: "password",
    autocomplete: "off",
    spellcheck: "false",
    required: true,
    "aria-describedby": "key-help",
  });
  const submit = async (event) => {
    event.preventDefault();
    useKey(field.value);
    await openPage();
  };
  keyView.hidden = false;
  fill(
    keyView,
    el(
      "form.panel.key-form",
      { on: { submit } },
      el("h1.view-title", {}, t("key.title")),
      el("label", { for: "key" }, t("key.label")),
      field,
      el("p.faint", { id: "key-help" }, t("key.help")),
      problem && problemCard(problem),
      el("button.primary", { type: "submit" }, t("key.use")),
    ),
  );
  showView();
  field.focus();
}

async function openPage() {
  let tasks;
  try {
    tasks = await fetchJson("api/tasks");
  } catch (problem) {
    if (problem.status === 401) {
      askForKey(problem);
      announce(problem.title);
      return;
    }
    throw problem;
  }
  keyView.hidden = true;
  fill(keyView);
  open = true;
  const onKey = (problem) => askForKey(problem);
  startAsking(tasks, about, { onKey, lookAgain: openPage });
  startQuestionnaire(about, onKey);
  startModels(tasks, onKey);
  showView();
}

async function start() {
  await useLanguage(wantedLanguage());
  for (const button of document.querySelectorAll("[data-lang]")) {
    button.addEventListener("click", async () => {
      await useLanguage(button.dataset.lang);
      rememberLanguage(button.dataset.lang);
    });
  }
  window.addEventListener("hashchange", showView);
  onLanguage(() => {
    if (about?.needs_key && !open) askForKey();
    showView();
  });
  try {
    about = await fetchJson("api/page");
    document.getElementById("version").textContent = `CardioRay ${about.version}`;
    if (about.needs_key) askForKey();
    else await openPage();
  } catch (problem) {
    keyView.hidden = false;
    const again = el(
      "button.primary",
      { type: "button", on: { click: () => location.reload() } },
      t("again"),
    );
    fill(keyView, el("div.panel", {}, problemCard(problem), again));
  }
}

start();
