// A clip with controls below it, where they hide nothing of what it shows.

import { el } from "./dom.js";
import { number, t } from "./i18n.js";

const STEPS = 1000;

/**
 * @param {string} source address of the video.
 * @param {string} label what it is, for whoever hears the page.
 */
export function player(source, label) {
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  const video = el("video.look", {
    src: source,
    muted: true,
    loop: true,
    playsinline: true,
    autoplay: !still,
    "aria-label": label,
  });
  const toggle = el("button.quiet", { type: "button" });
  const position = el("input", {
    type: "range",
    min: 0,
    max: STEPS,
    step: 1,
    value: 0,
    "aria-label": t("player.position"),
  });
  const time = el("span.small.faint");
  const tell = () => {
    toggle.textContent = t(video.paused ? "player.play" : "player.pause");
    if (!video.duration) return;
    position.value = Math.round((STEPS * video.currentTime) / video.duration);
    position.setAttribute(
      "aria-valuetext",
      t("player.seconds", { seconds: number(video.currentTime, 1) }),
    );
    time.textContent = `${number(video.currentTime, 1)} / ${number(video.duration, 1)} s`;
  };
  toggle.addEventListener("click", () => (video.paused ? video.play() : video.pause()));
  position.addEventListener("input", () => {
    video.pause();
    video.currentTime = (video.duration * Number(position.value)) / STEPS;
  });
  for (const event of ["play", "pause", "timeupdate", "seeked", "loadedmetadata"])
    video.addEventListener(event, tell);
  tell();
  return el("div.player", {}, video, el("div.player-bar", {}, toggle, position, time));
}
