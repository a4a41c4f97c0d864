// The answers: what was asked, the cards, what to know before believing them, and what else was said.

import { targetCards } from "./cards.js";
import { details } from "./details.js";
import { el, fill } from "./dom.js";
import { downloads } from "./downloads.js";
import { number, t, told, tOr } from "./i18n.js";
import { showCard } from "./models.js";
import { overlayFigure } from "./overlay.js";
import { problemCard } from "./problems.js";

/**
 * Show everything that is known so far.
 * @param {HTMLElement} box where.
 * @param {Object} state of the form.
 * @param {{retry: Function, askAnyway: Function, choose: Function}} act what buttons do.
 */
export function showAnswers(box, state, act) {
  const idle = !state.work;
  box.setAttribute("aria-busy", String(!idle));
  if (!state.sorted.length && !state.runs.length) {
    fill(box, idle ? emptyPanel() : el("div.empty", {}, el("p", {}, t("work.running"))));
    return;
  }
  fill(
    box,
    state.sorted.length > 0 && sortedPanel(state, idle ? act : null),
    state.runs.map((run) => runPanel(run, idle ? act : null)),
  );
}

function emptyPanel() {
  return el(
    "div.empty",
    {},
    el("h2", {}, t("empty.title")),
    el(
      "ol",
      {},
      ["empty.1", "empty.2", "empty.3"].map((key) => el("li", {}, t(key))),
    ),
  );
}

// How files were sorted

function sortedPanel({ sorted, tasks, runs }, act) {
  return el(
    "section.panel.sorted",
    {},
    el("h2", { tabindex: "-1" }, t("sorted.title")),
    sorted.map((each) => sortedFile(each, tasks, runs, act)),
  );
}

function sortedFile({ file, verdicts, problem }, tasks, runs, act) {
  const rows = verdicts
    .map((verdict) => ({ verdict, task: tasks.find((each) => each.task === verdict.task) }))
    .filter(({ task }) => task);
  const known = rows.filter(({ verdict }) => verdict.familiar);
  const unlike = rows.filter(({ verdict }) => verdict.reads && !verdict.familiar);
  const refused = rows.filter(({ verdict }) => !verdict.reads);
  const asked = ({ task }) =>
    runs.some((run) => run.task === task && run.files.some(({ url }) => url === file.url));
  return el(
    "div.sorted-file",
    {},
    el("h3.file-name", {}, file.file.name),
    problem && problemCard(problem),
    known.length > 0 && el("p.verdict.known", {}, t("sorted.known")),
    known.length > 0 &&
      el(
        "ul.plain-list",
        {},
        known.map((row) => knownItem(row, asked(row), act)),
      ),
    !problem &&
      !known.length &&
      el("p.verdict.unlike", {}, t(unlike.length ? "sorted.unlike" : "sorted.unreadable")),
    unlike.length > 0 && unlikeList(unlike, known.length > 0, file, act),
    refused.length > 0 &&
      el(
        "details",
        {},
        el("summary", {}, t("sorted.refused", { count: refused.length })),
        el("ul.plain-list", {}, refused.map(refusedItem)),
      ),
  );
}

function knownItem({ task }, asked, act) {
  return el(
    "li",
    {},
    el("strong", {}, titleOf(task)),
    !task.takes_plain_files &&
      !asked &&
      el(
        "p.small",
        {},
        t("sorted.fields"),
        " ",
        act &&
          el(
            "button.quiet",
            { type: "button", on: { click: () => act.choose(task) } },
            t("sorted.choose"),
          ),
      ),
  );
}

function unlikeList(rows, closed, file, act) {
  const items = rows.map(({ task, verdict }) =>
    el(
      "li",
      {},
      el("strong", {}, titleOf(task)),
      verdict.findings.map((text) => el("p.small", { lang: "en" }, text)),
      act && anywayButton(task, file, act),
    ),
  );
  const list = el("ul.plain-list", {}, items);
  if (!closed) return list;
  return el("details", {}, el("summary", {}, t("sorted.others", { count: rows.length })), list);
}

function anywayButton(task, file, act) {
  if (!task.takes_plain_files) {
    return el(
      "button.quiet",
      { type: "button", on: { click: () => act.choose(task) } },
      t("sorted.choose"),
    );
  }
  return el(
    "button.quiet",
    { type: "button", on: { click: () => act.askAnyway(task, file) } },
    t("sorted.anyway"),
  );
}

function refusedItem({ task, verdict }) {
  return el(
    "li",
    {},
    el("strong", {}, titleOf(task)),
    el("p.small", { lang: "en" }, verdict.problem.detail),
  );
}

function titleOf(task) {
  return tOr(`task.${task.task}.title`, task.title);
}

// Answers

function runPanel(run, act) {
  if (run.problem) {
    const again =
      act && el("button", { type: "button", on: { click: () => act.retry(run) } }, t("again"));
    return el(
      "article.panel.result",
      {},
      heading(run),
      problemCard(run.problem, ...(again ? [again] : [])),
    );
  }
  if (!run.answer)
    return el("article.panel.result", {}, heading(run), el("p.faint", {}, t("work.running")));
  return el(
    "article.panel.result",
    {},
    heading(run),
    warnings(run),
    overlayFigure(run),
    targetCards(run),
    details(run),
    foot(run),
  );
}

function heading(run) {
  const names = run.files.map(({ file }) => file.name).join(", ");
  return el(
    "header.result-head",
    {},
    el("h2", { tabindex: "-1" }, titleOf(run.task)),
    el("p.faint.small", {}, names),
  );
}

/** What to know before believing the answer. */
function warnings(run) {
  const said = [...run.answer.warnings];
  if (run.note) said.unshift(run.note);
  if (!said.length) return null;
  return el(
    "div.warnings",
    {},
    el("h3", {}, t("warnings.title")),
    el(
      "ul",
      {},
      said.map((sentence) => {
        const { text, own } = told(sentence);
        if (own) return el("li", { lang: "en" }, text);
        return el("li", {}, text, el("span.faint.small.block", { lang: "en" }, sentence));
      }),
    ),
  );
}

function foot(run) {
  const { answer, task } = run;
  const open = (event) => showCard(task, answer.model, event.currentTarget);
  return el(
    "footer.result-foot",
    {},
    el(
      "p.faint.small",
      {},
      t("result.from", {
        model: answer.model,
        bundle: answer.bundle,
        seconds: number(run.seconds, 1),
      }),
    ),
    el(
      "p.actions",
      {},
      el("button", { type: "button", on: { click: open } }, t("card.open")),
      downloads(run),
    ),
  );
}
