// The four scores of the ECG questionnaire.

import { fetchJson, Problem } from "./api.js";
import { card } from "./cards.js";
import { announce, el, fill } from "./dom.js";
import { language, onLanguage, t } from "./i18n.js";
import { problemCard } from "./problems.js";

const NUMBERS = { year_of_birth: 1, height: 1, weight: 1 };
const ORDER = [
  "year_of_birth",
  "female",
  "height",
  "weight",
  "diabetes_mellitus",
  "hypertension",
  "history_mi",
  "history_ptca_cabg",
  "history_cad",
  "history_hf",
  "history_ckd",
];
const BUDDHIST_ERA = 543;

const view = document.getElementById("view-questionnaire");
const state = {
  levels: null,
  onKey: () => {},
  scores: [],
  chosen: new Set(),
  data: {},
  cards: null,
  problem: null,
};
let started = false;

export async function startQuestionnaire(about, onKey) {
  Object.assign(state, { levels: about.levels, onKey });
  state.scores = await fetchJson("api/assessment");
  if (!started) {
    started = true;
    state.chosen = new Set(state.scores.map(({ name }) => name));
    onLanguage(async () => {
      if (state.cards) await ask();
      else render();
    });
  }
  render();
}

function needed() {
  const names = new Set(
    state.scores.filter(({ name }) => state.chosen.has(name)).flatMap(({ answers }) => answers),
  );
  return ORDER.filter((name) => names.has(name));
}

function render() {
  const submit = async (event) => {
    event.preventDefault();
    await ask();
    const wrong = view.querySelector("[aria-invalid=true]");
    (wrong ?? view.querySelector("#scores h2"))?.focus();
  };
  fill(
    view,
    el("h1.view-title", {}, t("scores.title")),
    el("p.lead", {}, t("scores.lead")),
    el(
      "div.columns",
      {},
      el(
        "form.panel",
        { novalidate: true, on: { submit } },
        scoreChoice(),
        el("fieldset", {}, el("legend", {}, t("scores.answers")), needed().map(question)),
        el(
          "button.primary.wide",
          { type: "submit", disabled: state.chosen.size === 0 },
          t("scores.go"),
        ),
      ),
      el("div.answers", { id: "scores" }, outcome()),
    ),
  );
}

function scoreChoice() {
  const box = ({ name }) => {
    const input = el("input", {
      type: "checkbox",
      id: `score-${name}`,
      checked: state.chosen.has(name),
      on: {
        change: () => {
          if (input.checked) state.chosen.add(name);
          else state.chosen.delete(name);
          render();
          document.getElementById(`score-${name}`).focus();
        },
      },
    });
    return el("p.check", {}, input, el("label", { for: `score-${name}` }, t(`score.${name}`)));
  };
  return el("fieldset", {}, el("legend", {}, t("scores.choose")), state.scores.map(box));
}

function question(name) {
  return name in NUMBERS ? numberQuestion(name) : choiceQuestion(name);
}

function fault(name) {
  return state.problem?.fields.includes(name) ?? false;
}

function faultText(name) {
  if (!fault(name)) return null;
  const given = state.data[name] !== undefined && state.data[name] !== "";
  return el(
    "span.field-fault",
    { id: `${name}-fault` },
    t(given ? "scores.impossible" : "scores.missing"),
  );
}

function numberQuestion(name) {
  const input = el("input", {
    id: name,
    type: "text",
    inputmode: "decimal",
    autocomplete: "off",
    value: state.data[name] ?? "",
    "aria-describedby": `${name}-help${fault(name) ? ` ${name}-fault` : ""}`,
    "aria-invalid": fault(name) ? "true" : null,
    on: {
      input: () => {
        state.data[name] = input.value.trim().replace(",", ".");
      },
    },
  });
  const help =
    name === "year_of_birth"
      ? t("question.year_of_birth.help", { year: 1960 + BUDDHIST_ERA, common: 1960 })
      : t(`question.${name}.help`);
  return el(
    "p.field",
    {},
    el("label", { for: name }, t(`question.${name}`)),
    input,
    el("span.faint.small", { id: `${name}-help` }, help),
    faultText(name),
  );
}

function choiceQuestion(name) {
  const answers =
    name === "female"
      ? [
          ["1", "female"],
          ["0", "male"],
        ]
      : [
          ["1", "yes"],
          ["0", "no"],
        ];
  const radio = ([value, word], index) => {
    const input = el("input", {
      type: "radio",
      name,
      value,
      checked: state.data[name] === value,
      "aria-invalid": fault(name) && index === 0 ? "true" : null,
      on: {
        change: () => {
          state.data[name] = value;
        },
      },
    });
    return el("label.pill", {}, input, t(word));
  };
  const described = fault(name) ? `${name}-fault` : null;
  return el(
    "fieldset.question",
    { "aria-describedby": described },
    el("legend", {}, t(`question.${name}`)),
    el("span.pills", {}, answers.map(radio)),
    faultText(name),
  );
}

async function ask() {
  const selectedDiseases = state.scores
    .map(({ name }) => name)
    .filter((name) => state.chosen.has(name));
  const data = Object.fromEntries(needed().map((name) => [name, state.data[name] ?? null]));
  Object.assign(state, { cards: null, problem: null });
  try {
    const cards = await fetchJson(`api/assessment?lang=${language()}`, { selectedDiseases, data });
    state.cards = cards.map((each, index) => ({ ...each, name: selectedDiseases[index] }));
    announce(t("work.done"));
  } catch (problem) {
    if (!(problem instanceof Problem)) throw problem;
    state.problem = problem;
    if (problem.status === 401) state.onKey(problem);
  }
  render();
}

function outcome() {
  if (state.problem) {
    const names = state.problem.fields.map((name) => t(`question.${name}`)).join(", ");
    return el(
      "div.panel",
      {},
      problemCard(state.problem),
      names && el("p", {}, t("scores.which", { names })),
    );
  }
  if (!state.cards)
    return el(
      "div.empty",
      {},
      el("h2", {}, t("scores.empty.title")),
      el("p", {}, t("scores.empty")),
    );
  return el(
    "section.panel",
    {},
    el("h2", { tabindex: "-1" }, t("scores.result")),
    el(
      "div.cards",
      {},
      state.cards.map((each) => card(saidOf(each), state.levels)),
    ),
    el("p.small.faint", {}, t("scores.source")),
  );
}

function saidOf({ name, description, average, probability }) {
  return {
    kind: "question",
    name,
    title: t(`score.${name}`),
    meaning: description,
    limits: "",
    note: t(average === null ? "scores.noaverage" : "scores.levels"),
    probability: probability / 100,
    threshold: null,
    above: false,
    className: "",
    uncertain: null,
    range: null,
    average: average === null ? null : average / 100,
    averageName: t("mark.published"),
  };
}
