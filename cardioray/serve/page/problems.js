// Errors as the server tells them, with its kind in the present language.

import { el } from "./dom.js";
import { t, tOr } from "./i18n.js";

/**
 * @param {import("./api.js").Problem} problem
 * @param {...Node} actions buttons.
 */
export function problemCard(problem, ...actions) {
  const english = { lang: "en" };
  return el(
    "div.problem",
    { role: "alert" },
    el("p.problem-title", {}, tOr(`problem.${problem.kind}`, problem.title ?? t("error.page"))),
    el("p", problem.status ? english : {}, problem.detail ?? String(problem)),
    problem.accepted && el("p.faint", english, problem.accepted),
    problem.status > 0 && el("p.faint.small", {}, reference(problem)),
    actions.length > 0 && el("p.actions", {}, actions),
  );
}

function reference(problem) {
  const id = problem.requestId ? ` · ${t("error.request")} ${problem.requestId}` : "";
  return `HTTP ${problem.status}${id}`;
}
