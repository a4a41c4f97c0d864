// A result on paper: blocks of known height, one under the other, as one picture or as A4 pages.

import { findings, levelOf } from "./cards.js";
import { language, moment, number, percent, t, told, tOr } from "./i18n.js";

// A4 at 150 dots an inch.
const PAGE = { width: 1240, height: 1754, margin: 90 };
const INNER = PAGE.width - 2 * PAGE.margin;
const FONT = 'system-ui, "Noto Sans Thai", "Leelawadee UI", Thonburi, sans-serif';
const INK = {
  text: "#16202a",
  faint: "#52606d",
  line: "#c9d2da",
  fill: "#0b6b72",
  band: "#8fc6c9",
  warn: "#8a4b00",
  bad: "#9c1c1c",
};
const GAP = 20;
// So that a heat map finds room below a question on the first page.
const PICTURE_HEIGHT = 560;

/** The report as one canvas, as long as it has to be. */
export async function pictureOf(run) {
  const blocks = await blocksOf(run);
  const height = blocks.reduce((sum, block) => sum + block.height + GAP, 2 * PAGE.margin);
  const canvas = sheet(height);
  let y = PAGE.margin;
  for (const block of blocks) {
    block.draw(canvas.getContext("2d"), y);
    y += block.height + GAP;
  }
  return canvas;
}

/** The report as canvases of the proportions of A4. */
export async function pagesOf(run) {
  const pages = [];
  let [canvas, y] = [null, 0];
  for (const block of await blocksOf(run)) {
    if (!canvas || (y + block.height > PAGE.height - PAGE.margin && y > PAGE.margin)) {
      canvas = sheet(PAGE.height);
      pages.push(canvas);
      y = PAGE.margin;
    }
    block.draw(canvas.getContext("2d"), y);
    y += block.height + GAP;
  }
  pages.forEach((page, index) => numbered(page, index + 1, pages.length));
  return pages;
}

function sheet(height) {
  const canvas = document.createElement("canvas");
  Object.assign(canvas, { width: PAGE.width, height: Math.ceil(height) });
  const context = canvas.getContext("2d");
  context.fillStyle = "#ffffff";
  context.fillRect(0, 0, canvas.width, canvas.height);
  return canvas;
}

function numbered(canvas, page, count) {
  const context = canvas.getContext("2d");
  context.font = `20px ${FONT}`;
  context.fillStyle = INK.faint;
  context.textAlign = "right";
  context.fillText(`${page} / ${count}`, PAGE.width - PAGE.margin, PAGE.height - 50);
  context.textAlign = "left";
}

// Blocks

async function blocksOf(run) {
  const { task, answer } = run;
  const blocks = [
    text(`CardioRay – ${tOr(`task.${task.task}.title`, task.title)}`, { size: 40, weight: 700 }),
    text(`${t("notice.clinical")} ${t("notice.research")}`, {
      size: 24,
      weight: 700,
      ink: INK.warn,
    }),
    text(run.files.map(({ file }) => file.name).join(", "), { ink: INK.faint }),
    text(
      `${moment(run.started)} · ${t("report.model", { model: answer.model, bundle: answer.bundle })}`,
      { ink: INK.faint },
    ),
    line(),
  ];
  for (const said of findings(run)) blocks.push(...findingBlocks(said, run.levels));
  if (answer.warnings.length) {
    blocks.push(text(t("warnings.title"), { size: 26, weight: 700 }));
    blocks.push(...answer.warnings.map((sentence) => text(`• ${told(sentence).text}`, {})));
  }
  for (const overlay of (answer.overlays ?? []).filter(({ png }) => png)) {
    blocks.push(await image(overlay.png));
    blocks.push(
      text(tOr(`overlay.${overlay.method}.caption`, t("overlay.heat.caption")), {
        size: 20,
        ink: INK.faint,
      }),
    );
  }
  blocks.push(text(t("report.request", { id: answer.request_id }), { size: 18, ink: INK.faint }));
  return blocks;
}

function findingBlocks(said, levels) {
  const blocks = [
    text(said.title, { size: 30, weight: 700 }),
    text(headline(said, levels), { size: 28 }),
  ];
  if (said.kind === "question") {
    const marks = [];
    if (said.threshold !== null)
      marks.push([said.threshold, t("mark.threshold"), percent(said.threshold), INK.bad]);
    if (said.average !== null)
      marks.push([said.average, t("mark.average"), percent(said.average), INK.warn]);
    blocks.push(bar([0, said.probability], marks, ["0 %", "100 %"]));
    if (said.uncertain) blocks.push(text(t("question.uncertain"), { ink: INK.warn }));
  } else if (said.kind === "number") {
    const [low, high] = said.scale;
    const place = (value) => Math.min(1, Math.max(0, (value - low) / (high - low)));
    const band =
      said.low === null || said.high === null ? null : [place(said.low), place(said.high)];
    const marks = said.cutoffs.map((cutoff) => [
      place(cutoff),
      t("mark.cutoff"),
      number(cutoff),
      INK.faint,
    ]);
    if (said.average !== null)
      marks.push([place(said.average), t("mark.average"), number(said.average), INK.warn]);
    blocks.push(bar(band ?? [0, 0], marks, [number(low), number(high)], place(said.value)));
  }
  if (said.meaning) blocks.push(text(said.meaning, {}));
  if (said.limits) blocks.push(text(`${t("limits")} ${said.limits}`, { size: 20, ink: INK.faint }));
  return blocks;
}

function headline(said, levels) {
  if (said.kind === "choice") return `${said.className} (${percent(said.probability)})`;
  if (said.kind === "question") {
    const level = t(`level.${levelOf(said.probability, levels)}`);
    const side =
      said.threshold === null
        ? ""
        : ` ${t(said.above ? "question.above" : "question.below", { threshold: percent(said.threshold, 1) })} ${said.className}.`;
    return `${percent(said.probability, 1)} – ${level}.${side}`;
  }
  const digits = said.unit === "" ? 2 : 0;
  const value = `${number(said.value, digits)} ${said.unit}`.trim();
  if (said.low === null || said.high === null) return `${value}, ${t("number.unbounded")}`;
  const interval = t("number.interval", {
    low: number(said.low, digits),
    high: `${number(said.high, digits)} ${said.unit}`.trim(),
    level: percent(said.level ?? 0.9),
  });
  return `${value} ${interval}`;
}

function text(content, { size = 22, weight = 400, ink = INK.text }) {
  const font = `${weight} ${size}px ${FONT}`;
  const lines = wrapped(content, font);
  const step = Math.round(size * 1.4);
  return {
    height: lines.length * step,
    draw(context, y) {
      context.font = font;
      context.fillStyle = ink;
      context.textBaseline = "top";
      lines.forEach((own, index) => context.fillText(own, PAGE.margin, y + index * step));
    },
  };
}

const ruler = document.createElement("canvas").getContext("2d");

/** Lines of a text; words end where the language ends them, in Thai without a space. */
function wrapped(content, font) {
  ruler.font = font;
  const words = [...new Intl.Segmenter(language(), { granularity: "word" }).segment(content)].map(
    ({ segment }) => segment,
  );
  const lines = [""];
  for (const word of words) {
    const longer = lines.at(-1) + word;
    if (ruler.measureText(longer).width <= INNER || !lines.at(-1)) lines[lines.length - 1] = longer;
    else lines.push(word.trimStart());
  }
  return lines;
}

function line() {
  return {
    height: 2,
    draw(context, y) {
      context.fillStyle = INK.line;
      context.fillRect(PAGE.margin, y, INNER, 2);
    },
  };
}

function bar([from, to], marks, ends, point = null) {
  return {
    height: 96 + 30 * marks.length,
    draw(context, y) {
      const x = (share) => PAGE.margin + INNER * share;
      context.fillStyle = INK.line;
      context.fillRect(PAGE.margin, y + 10, INNER, 26);
      context.fillStyle = point === null ? INK.fill : INK.band;
      context.fillRect(x(from), y + 10, INNER * (to - from), 26);
      context.fillStyle = INK.text;
      if (point !== null) context.fillRect(x(point) - 4, y + 2, 8, 42);
      context.font = `20px ${FONT}`;
      context.textBaseline = "top";
      marks.forEach(([share, name, label, ink], index) => {
        context.fillStyle = ink;
        context.fillRect(x(share) - 1.5, y + 2, 3, 42);
        context.fillRect(PAGE.margin, y + 82 + 30 * index, 3, 20);
        context.fillStyle = INK.faint;
        context.fillText(`${name}: ${label}`, PAGE.margin + 14, y + 82 + 30 * index);
      });
      context.fillStyle = INK.faint;
      context.fillText(ends[0], PAGE.margin, y + 50);
      context.textAlign = "right";
      context.fillText(ends[1], PAGE.margin + INNER, y + 50);
      context.textAlign = "left";
    },
  };
}

async function image(source) {
  const picture = new Image();
  picture.src = source;
  await picture.decode();
  const scale = Math.min(INNER / picture.naturalWidth, PICTURE_HEIGHT / picture.naturalHeight);
  const [width, height] = [picture.naturalWidth * scale, picture.naturalHeight * scale];
  return {
    height,
    draw: (context, y) => context.drawImage(picture, PAGE.margin, y, width, height),
  };
}
