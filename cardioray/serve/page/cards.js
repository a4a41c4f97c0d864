// Result cards: a question with its probability, a number with its interval, a choice.

import { el } from "./dom.js";
import { number, percent, t, tOr } from "./i18n.js";

/**
 * What an answer says, target by target, in one form for every task.
 * @typedef {Object} Said
 * @property {"question"|"number"|"choice"} kind
 * @property {string} name of the target.
 * @property {string} title in words.
 */

/** The findings of an answer in the order of the targets of its task. */
export function findings({ task, answer }) {
  const found = [];
  for (const target of task.targets) {
    if (target.one_of?.length) {
      const name = target.name.slice(0, -target.positive.length - 1);
      if (!found.some((each) => each.name === name)) found.push(choiceOf(task, answer, name));
    } else if (answer[target.name]) {
      const make = target.kind === "number" ? numberOf : questionOf;
      found.push(make(task, answer, target));
    }
  }
  return found;
}

function words(task, name, part, other) {
  return tOr(`target.${task.task}.${name}.${part}`, tOr(`target.${name}.${part}`, other));
}

function average(task, answer, name) {
  const model = task.models.find((each) => each.name === answer.model) ?? task.models[0];
  return model?.averages[name] ?? null;
}

function questionOf(task, answer, target) {
  const said = answer[target.name];
  const probability = said.probability?.positive ?? said.probability;
  const positive = target.positive;
  return {
    kind: "question",
    name: target.name,
    title: words(task, target.name, "title", positive),
    meaning: words(task, target.name, "meaning", t("meaning.question", { positive })),
    limits: words(task, target.name, "limits", ""),
    probability,
    threshold: said.threshold ?? null,
    above: Boolean(said.prediction),
    className: said.class ?? (said.prediction ? positive : target.negative),
    uncertain: said.uncertain ?? null,
    range: rangeOf(said),
    average: average(task, answer, target.name),
  };
}

/** Lowest and highest probability: an interval that is stated, else over frames or views. */
function rangeOf(said) {
  if (Array.isArray(said.interval))
    return { low: said.interval[0], high: said.interval[1], of: "interval" };
  const frames = said.probability_per_frame ?? [];
  if (frames.length > 1)
    return { low: Math.min(...frames), high: Math.max(...frames), of: "frames" };
  const views = Object.values(said.probability_per_view ?? {});
  if (views.length > 1) return { low: Math.min(...views), high: Math.max(...views), of: "views" };
  return null;
}

function numberOf(task, answer, target) {
  const said = answer[target.name];
  return {
    kind: "number",
    name: target.name,
    title: words(task, target.name, "title", target.name),
    meaning: words(task, target.name, "meaning", ""),
    limits: words(task, target.name, "limits", ""),
    value: said.value,
    low: said.low,
    high: said.high,
    sd: said.sd ?? null,
    unit: said.unit,
    level: task.interval,
    scale: scaleOf(said, target),
    cutoffs: target.cutoffs ?? [],
    average: average(task, answer, target.name),
  };
}

function scaleOf(said, target) {
  const [low, high] = [target.low ?? Math.min(0, said.low ?? said.value), target.high];
  if (high !== null && high <= 100) return [low, high];
  const most = 1.2 * Math.max(said.value, said.high ?? 0);
  const step = 10 ** Math.floor(Math.log10(Math.max(most, 1e-6)));
  return [low, Math.ceil(most / step) * step];
}

function choiceOf(task, answer, name) {
  const said = answer[name];
  const shares = task.targets
    .filter((target) => target.one_of?.length && target.name.startsWith(`${name}_`))
    .map((target) => ({ label: target.positive, share: answer[target.name].probability }));
  return {
    kind: "choice",
    name,
    title: words(task, name, "title", name),
    meaning: words(task, name, "meaning", ""),
    limits: words(task, name, "limits", ""),
    className: said.class,
    probability: said.probability,
    shares,
  };
}

/** "low", "medium" or "high", by the bands that the server states in percent. */
export function levelOf(probability, levels) {
  if (100 * probability < levels.medium_from) return "low";
  return 100 * probability < levels.high_from ? "medium" : "high";
}

// As elements

export function targetCards(run) {
  return el(
    "div.cards",
    {},
    findings(run).map((said) => card(said, run.levels)),
  );
}

export function card(said, levels) {
  const parts = { question: questionParts, number: numberParts, choice: choiceParts }[said.kind](
    said,
    levels,
  );
  return el(
    "section.card",
    {},
    el("h3", {}, said.title),
    parts,
    said.meaning && el("p", {}, said.meaning),
    said.limits && el("p.small.faint", {}, el("strong", {}, t("limits"), " "), said.limits),
    said.note && el("p.small.faint", {}, said.note),
  );
}

function questionParts(said, levels) {
  const level = levelOf(said.probability, levels);
  return [
    el(
      "p.headline",
      {},
      el("span.figure", {}, percent(said.probability, 1)),
      el(`span.level.${level}`, {}, t(`level.${level}`)),
    ),
    said.threshold !== null &&
      el(
        "p.verdict-line",
        {},
        t(said.above ? "question.above" : "question.below", {
          threshold: percent(said.threshold, 1),
        }),
        " ",
        el("span", { lang: "en" }, said.className),
        ".",
      ),
    said.uncertain && el("p.uncertain", {}, t("question.uncertain")),
    bar(
      said.probability,
      [
        said.threshold !== null && ["threshold", said.threshold, percent(said.threshold, 0)],
        said.average !== null && [
          "average",
          said.average,
          percent(said.average, 0),
          said.averageName,
        ],
      ],
      said.range,
    ),
    said.range &&
      el(
        "p.small.faint",
        {},
        t(`range.${said.range.of}`, {
          low: percent(said.range.low, 0),
          high: percent(said.range.high, 0),
        }),
      ),
  ];
}

function numberParts(said) {
  const digits = said.unit === "" ? 2 : 0;
  const show = (value) => `${number(value, digits)}${said.unit ? ` ${said.unit}` : ""}`;
  const [low, high] = said.scale;
  const place = (value) => (value - low) / (high - low);
  const bounded = said.low !== null && said.high !== null;
  return [
    el(
      "p.headline",
      {},
      el("span.figure", {}, show(said.value)),
      bounded &&
        el(
          "span.interval",
          {},
          t("number.interval", {
            low: number(said.low, digits),
            high: show(said.high),
            level: percent(said.level ?? 0.9, 0),
          }),
        ),
      !bounded && el("span.interval", {}, t("number.unbounded")),
    ),
    said.sd !== null && el("p.small.faint", {}, t("number.sd", { sd: number(said.sd, 1) })),
    scaleBar(
      place(said.value),
      bounded ? [place(said.low), place(said.high)] : null,
      [
        ...said.cutoffs.map((cutoff) => ["cutoff", place(cutoff), number(cutoff)]),
        ...(said.average === null ? [] : [["average", place(said.average), show(said.average)]]),
      ],
      [number(low, digits), number(high, digits)],
    ),
  ];
}

function choiceParts(said) {
  return [
    el(
      "p.headline",
      {},
      el("span.figure", {}, said.className),
      el("span.interval", {}, percent(said.probability, 0)),
    ),
    el(
      "ul.shares",
      {},
      said.shares.map(({ label, share }) =>
        el(
          "li",
          {},
          el("span", {}, label),
          el("span.track", { "aria-hidden": true }, el("span.fill", { vars: { to: share } })),
          el("span", {}, percent(share, 0)),
        ),
      ),
    ),
  ];
}

/** A probability from 0 to 100 % with marks. The picture is for the eyes; the legend says it, too. */
function bar(probability, marks, range) {
  const shown = marks.filter(Boolean);
  const inside = [
    el("div.fill", { vars: { to: probability } }),
    range && el("div.band", { vars: { from: range.low, to: range.high } }),
  ];
  return chart(inside, shown, ["0 %", "100 %"]);
}

/** A number on its scale, with its interval and marks. */
function scaleBar(at, interval, marks, ends) {
  const inside = [
    interval &&
      el("div.band.solid", { vars: { from: clamped(interval[0]), to: clamped(interval[1]) } }),
    el("div.point", { vars: { at: clamped(at) } }),
  ];
  return chart(inside, marks, ends);
}

/** @param {[string, number, string, string?][]} marks kind, place, value in words, other name. */
function chart(inside, marks, ends) {
  const drawn = marks.map(([kind, at]) => el(`div.mark.${kind}`, { vars: { at: clamped(at) } }));
  const labels = ends.map((end) => el("span", {}, end));
  return el(
    "div.chart",
    {},
    el("div.track.tall", { "aria-hidden": true }, inside[0], drawn, inside.slice(1)),
    el("div.ends", { "aria-hidden": true }, labels),
    marks.length > 0 && legend(marks),
  );
}

function clamped(share) {
  return Math.min(1, Math.max(0, share));
}

function legend(marks) {
  const byKind = Map.groupBy(marks, ([kind]) => kind);
  const items = [...byKind].map(([kind, own]) => {
    const name = own[0][3] ?? t(`mark.${kind}`);
    const values = own.map(([, , value]) => value).join(", ");
    return el("li", {}, el(`span.key.${kind}`), `${name}: ${values}`);
  });
  return el("ul.legend", {}, items);
}
