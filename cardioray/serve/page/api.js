// Questions to the server. The key, where one is needed, is kept in this module's memory alone.

import { t } from "./i18n.js";

let key = "";
const BUSY_TRIES = 4;

export function useKey(text) {
  key = text.trim();
}

/** What went wrong, in the form of problem details (RFC 9457). */
export class Problem extends Error {
  constructor(body) {
    super(body.detail);
    this.kind = String(body.type).split(":").pop();
    this.title = body.title;
    this.status = body.status;
    this.detail = body.detail;
    this.accepted = body.accepted;
    this.fields = body.fields ?? [];
    this.requestId = body.request_id ?? "";
  }
}

function headers() {
  return key ? { Authorization: `Bearer ${key}` } : {};
}

function lost() {
  return new Problem({
    type: "network",
    title: t("error.network"),
    status: 0,
    detail: t("error.network.detail"),
  });
}

function parsed(status, text) {
  try {
    return JSON.parse(text);
  } catch {
    return {
      type: "refused",
      title: t("error.odd", { status }),
      status,
      detail: t("error.odd.detail"),
    };
  }
}

/** GET or POST of JSON. */
export async function fetchJson(path, body) {
  const post = { method: "POST", body: JSON.stringify(body) };
  const kind = { "Content-Type": "application/json" };
  let response;
  try {
    response = await fetch(path, {
      cache: "no-store",
      ...(body === undefined
        ? { headers: headers() }
        : { ...post, headers: { ...headers(), ...kind } }),
    });
  } catch {
    throw lost();
  }
  const answer = parsed(response.status, await response.text());
  if (!response.ok) throw new Problem(answer);
  return answer;
}

/** POST of a form that is answered with a picture or a video. */
export async function fetchBlob(path, form) {
  let response;
  try {
    response = await fetch(path, {
      method: "POST",
      body: form,
      cache: "no-store",
      headers: headers(),
    });
  } catch {
    throw lost();
  }
  if (!response.ok) throw new Problem(parsed(response.status, await response.text()));
  return response.blob();
}

/**
 * Send files.
 * @param {string} path where to.
 * @param {FormData} form the files in their fields.
 * @param {{signal: AbortSignal, onUpload: (share: number) => void, onBusy: (s: number) => void}} watch
 *   `onUpload` hears the share of the bytes that are sent, `onBusy` in how many seconds a server
 *   that is full is asked again.
 */
export async function send(path, form, watch) {
  for (let tries = 1; ; tries += 1) {
    const answer = await sendOnce(path, form, watch);
    if (answer.status !== 503 || tries === BUSY_TRIES) {
      if (answer.status >= 400) throw new Problem(answer.body);
      return answer.body;
    }
    watch.onBusy(answer.retryAfter);
    await pause(1000 * answer.retryAfter, watch.signal);
  }
}

function sendOnce(path, form, { signal, onUpload }) {
  return new Promise((resolve, reject) => {
    if (signal.aborted) {
      reject(signal.reason);
      return;
    }
    const request = new XMLHttpRequest();
    const abort = () => request.abort();
    const settle = (act) => () => {
      signal.removeEventListener("abort", abort);
      act();
    };
    request.open("POST", path);
    for (const [name, value] of Object.entries(headers())) request.setRequestHeader(name, value);
    request.upload.addEventListener("progress", (event) => {
      if (event.lengthComputable) onUpload(event.loaded / event.total);
    });
    request.upload.addEventListener("load", () => onUpload(1));
    request.addEventListener(
      "error",
      settle(() => reject(lost())),
    );
    request.addEventListener(
      "abort",
      settle(() => reject(signal.reason)),
    );
    request.addEventListener(
      "load",
      settle(() =>
        resolve({
          status: request.status,
          body: parsed(request.status, request.responseText),
          retryAfter: Math.max(1, Number(request.getResponseHeader("Retry-After")) || 1),
        }),
      ),
    );
    signal.addEventListener("abort", abort);
    request.send(form);
  });
}

function pause(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, milliseconds);
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason);
    });
  });
}
