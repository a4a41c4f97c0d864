// What is sent of a study: to the gates of all tasks, and to one task for an answer.

import { Problem, send } from "./api.js";
import { isClip } from "./files.js";
import { size, t } from "./i18n.js";
import { chosenOverlay, optionParameters } from "./options.js";

/** What the gate of every task says of one file. */
export function verdictsOf({ file }, watcher) {
  const data = new FormData();
  data.append("files", file);
  return send("api/gates", data, watcher);
}

/**
 * The answer of a task about some files as one study; without a heat map where the model has none.
 * @param {{task: Object, files: Object[], options: Object, note: string}} run `note` is filled with
 *   what went otherwise than it was asked for.
 * @param {Object} watcher as of `send`.
 */
export async function answerOf(run, watcher) {
  const { task, files, options } = run;
  refuseTooMuch(task, files);
  const overlay = chosenOverlay(task, options, files.some(isCine));
  try {
    return await post(run, overlay, watcher);
  } catch (problem) {
    if (problem.kind !== "no-heat-map") throw problem;
    run.note = problem.detail;
    return post(run, "", watcher);
  }
}

/** What the server would refuse is not uploaded. */
function refuseTooMuch(task, files) {
  const bytes = files.reduce((sum, { file }) => sum + file.size, 0);
  const most = task.limits.max_bytes;
  if (bytes <= most) return;
  const detail = t("error.large", { size: size(bytes), most: size(most) });
  throw new Problem({ type: "too-large", status: 0, title: "", detail });
}

function isCine({ kind, shows }) {
  return /^a[24]c$/.test(shows) || (!shows && isClip(kind));
}

function post({ task, files, options }, overlay, watcher) {
  const data = new FormData();
  const fields = new Set(task.fields.map((field) => field.name));
  for (const { file, shows } of files) data.append(fields.has(shows) ? shows : "files", file);
  const query = optionParameters(options, overlay).toString();
  return send(`${task.path}${query ? `?${query}` : ""}`, data, watcher);
}
