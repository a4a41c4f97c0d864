// The form: files, the question, options; and the way from them to answers.

import { Problem } from "./api.js";
import { announce, el, fill, fresh } from "./dom.js";
import { guessedField, picked, release } from "./files.js";
import { number, onLanguage, percent, t, tOr } from "./i18n.js";
import { optionFields } from "./options.js";
import { filesFieldset, guessFields } from "./picking.js";
import { showAnswers } from "./results.js";
import { answerOf, verdictsOf } from "./study.js";

const AUTO = "auto";

const form = document.getElementById("ask-form");
const answers = document.getElementById("answers");
const boxes = {
  files: el("div"),
  tasks: el("div"),
  options: el("div"),
  actions: el("div"),
};

const state = {
  tasks: [],
  about: null,
  act: null,
  starting: [],
  files: [],
  task: AUTO,
  options: { overlay: true },
  // Why nothing was sent: the key of a text, "" for no reason.
  fault: "",
  // What is under way: its controller, what it does in words, and the share that is done.
  work: null,
  // What the gates said of each file, and what the tasks answered.
  sorted: [],
  runs: [],
};

let started = false;

/**
 * @param {Object[]} tasks that the server tells of, those that are not ready among them.
 * @param {Object} about what the server says of the page.
 * @param {{onKey: Function, lookAgain: Function}} act when a key is needed; to ask for tasks anew.
 */
export function startAsking(tasks, about, act) {
  Object.assign(state, { tasks: tasks.filter((task) => task.ready), about, act });
  state.starting = tasks.filter((task) => !task.ready).map((task) => task.app);
  if (!started) {
    started = true;
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      ask();
    });
    fill(form, Object.values(boxes));
    onLanguage(render);
  }
  render();
}

function render() {
  renderFiles();
  renderTasks();
  renderOptions();
  renderActions();
  renderAnswers();
}

/** The chosen task; null where files decide. */
function chosen() {
  return state.tasks.find((task) => task.task === state.task) ?? null;
}

// Files

function renderFiles() {
  fill(boxes.files, filesFieldset(state.files, chosen(), { add: addFiles, remove: removeFile }));
}

async function addFiles(list) {
  const added = await Promise.all([...list].map(picked));
  state.files.push(...added);
  state.fault = "";
  guessFields(state.files, chosen());
  renderFiles();
  renderActions();
  announce(t("files.added", { count: added.length }));
  document.getElementById("files-input").focus();
}

function removeFile(file) {
  state.files.splice(state.files.indexOf(file), 1);
  // Answers go on showing what they are about.
  const answered = state.runs.some(({ files }) => files.some(({ url }) => url === file.url));
  if (!answered) release([file]);
  renderFiles();
  document.getElementById("files-input").focus();
}

// The question

function renderTasks() {
  if (!state.tasks.some((task) => task.task === state.task)) state.task = AUTO;
  const choices = [
    [AUTO, t("task.auto"), t("task.auto.help")],
    ...state.tasks.map((task) => [
      task.task,
      taskTitle(task),
      tOr(`accepts.${task.task}`, task.accepted),
    ]),
  ];
  fill(
    boxes.tasks,
    el(
      "fieldset",
      {},
      el("legend", {}, t("task.title")),
      state.tasks.length === 0
        ? el("p", {}, t("task.none"))
        : el("div.choices", {}, choices.map(taskChoice)),
      startingNote(),
    ),
  );
}

/** Which tasks are not there yet, and a way to look again. */
function startingNote() {
  if (state.tasks.length && !state.starting.length) return null;
  const names = state.starting.join(", ");
  const again = { type: "button", on: { click: state.act.lookAgain } };
  return el(
    "p.small",
    {},
    names && t("task.starting", { names }),
    " ",
    el("button.quiet", again, t("task.again")),
  );
}

function taskChoice([name, title, help]) {
  const describedBy = fresh("task-help");
  const input = el("input", {
    type: "radio",
    name: "task",
    value: name,
    checked: name === state.task,
    "aria-describedby": describedBy,
    on: {
      change: () => {
        state.task = name;
        state.options = { overlay: state.options.overlay };
        guessFields(state.files, chosen());
        renderFiles();
        renderOptions();
      },
    },
  });
  return el(
    "label.choice",
    {},
    input,
    el(
      "span",
      {},
      el("span.choice-title", {}, title),
      el("span.faint.small", { id: describedBy }, help),
    ),
  );
}

function taskTitle(task) {
  return tOr(`task.${task.task}.title`, task.title);
}

function renderOptions() {
  fill(boxes.options, optionFields(chosen(), state.options));
}

// Under way

function renderActions() {
  const { work, fault } = state;
  if (!work) {
    fill(
      boxes.actions,
      fault && el("p.problem", { id: "ask-fault", role: "alert" }, t(fault)),
      el(
        "button.primary.wide",
        { type: "submit", disabled: state.tasks.length === 0 },
        t("ask.go"),
      ),
    );
    return;
  }
  const cancel = () => work.controller.abort(new DOMException("cancelled", "AbortError"));
  work.bar = el("progress", { max: 1, "aria-label": t("work.label") });
  work.text = el("p.work-text");
  fill(
    boxes.actions,
    el(
      "div.work",
      {},
      work.text,
      work.bar,
      el("button.wide", { type: "button", id: "cancel", on: { click: cancel } }, t("cancel")),
    ),
  );
  showWork();
}

function showWork() {
  const { work } = state;
  work.text.textContent = work.words;
  if (work.share === null) work.bar.removeAttribute("value");
  else work.bar.value = work.share;
}

function working(words, share = null) {
  const { work } = state;
  const said = work.words;
  Object.assign(work, { words, share });
  showWork();
  if (said !== words && share === null) announce(words);
}

function watch(what) {
  const { work } = state;
  return {
    signal: work.controller.signal,
    onUpload: (share) => {
      if (share < 1) working(`${what}: ${t("work.upload", { share: percent(share) })}`, share);
      else working(`${what}: ${t("work.compute")}`);
    },
    onBusy: (seconds) => working(`${what}: ${t("work.busy", { seconds: number(seconds) })}`),
  };
}

// Asking

async function ask() {
  if (state.work) return;
  state.fault = faultOf();
  if (state.fault) {
    renderActions();
    document.getElementById("files-input").focus();
    return;
  }
  Object.assign(state, { sorted: [], runs: [] });
  await underWay(async () => {
    if (state.task === AUTO) await letFilesDecide();
    else await askTask(chosen(), state.files);
  });
}

function faultOf() {
  if (!state.files.length) return "fault.files";
  const task = chosen();
  if (task && !task.takes_plain_files && state.files.some((file) => !file.shows)) {
    return "fault.shows";
  }
  return "";
}

async function underWay(act) {
  state.work = { controller: new AbortController(), words: t("work.begin"), share: null };
  renderActions();
  renderAnswers();
  document.getElementById("cancel").focus();
  try {
    await act();
    announce(t("work.done"));
  } catch (error) {
    if (error.name !== "AbortError") throw error;
    announce(t("work.cancelled"));
    state.fault = "work.cancelled";
  } finally {
    state.work = null;
    renderActions();
    renderAnswers();
  }
  answers.querySelector("h2")?.focus();
}

/** Ask the gate of every task about each file, and the tasks that know it for an answer. */
async function letFilesDecide() {
  for (const [index, file] of state.files.entries()) {
    const which = t("work.sorting", { number: index + 1, count: state.files.length });
    try {
      const verdicts = await verdictsOf(file, watch(which));
      state.sorted.push({ file, verdicts });
    } catch (problem) {
      if (!(problem instanceof Problem)) throw problem;
      if (problem.status === 401) state.act.onKey(problem);
      state.sorted.push({ file, verdicts: [], problem });
    }
  }
  for (const task of state.tasks) {
    const known = filesKnownTo(task);
    // A task that has to be told what files show is asked where their names tell it.
    if (known.length && (task.takes_plain_files || known.every(({ shows }) => shows))) {
      await askTask(task, known);
    }
  }
}

function filesKnownTo(task) {
  return state.sorted
    .filter(({ verdicts }) => verdicts.some((each) => each.task === task.task && each.familiar))
    .map(({ file }) => ({ ...file, shows: guessedField(file.file.name, task.fields) }));
}

/** Ask one task about files as one study, and keep what becomes of it. */
async function askTask(task, files) {
  const run = {
    task,
    files: [...files],
    options: { ...state.options },
    started: new Date(),
    levels: state.about.levels,
    note: "",
  };
  state.runs.push(run);
  const begun = performance.now();
  try {
    run.answer = await answerOf(run, watch(taskTitle(task)));
    run.seconds = (performance.now() - begun) / 1000;
  } catch (problem) {
    if (!(problem instanceof Problem)) {
      state.runs.pop();
      throw problem;
    }
    run.problem = problem;
    if (problem.status === 401) state.act.onKey(problem);
  }
  renderAnswers();
}

function renderAnswers() {
  showAnswers(answers, state, {
    retry: (run) =>
      underWay(async () => {
        state.runs.splice(state.runs.indexOf(run), 1);
        await askTask(run.task, run.files);
      }),
    askAnyway: (task, file) => underWay(() => askTask(task, [file])),
    choose: (task) => {
      state.task = task.task;
      guessFields(state.files, chosen());
      renderFiles();
      renderTasks();
      renderOptions();
      form.querySelector("select, input")?.focus();
    },
  });
}
