// A PDF whose pages are pictures (PDF 1.7, ISO 32000-1): one JPEG fills each A4 page.

const A4 = [595.28, 841.89]; // points

/**
 * @param {{jpeg: Uint8Array, width: number, height: number}[]} pages with the sides of A4.
 * @param {{title: string, lang: string, created: Date}} facts.
 * @returns {Uint8Array}
 */
export function pdfOf(pages, { title, lang, created }) {
  const parts = [];
  const offsets = [];
  let length = 0;
  const put = (piece) => {
    const bytes = typeof piece === "string" ? latin(piece) : piece;
    parts.push(bytes);
    length += bytes.length;
  };
  const object = (number, ...pieces) => {
    offsets[number] = length;
    put(`${number} 0 obj\n`);
    pieces.forEach(put);
    put("\nendobj\n");
  };
  // A line of bytes above 127 says that the file is not text.
  put("%PDF-1.7\n%\xe2\xe3\xcf\xd3\n");
  // 1 catalogue, 2 pages, 3 information; then page, drawing and picture of each.
  const first = (index) => 4 + 3 * index;
  const kids = pages.map((page, index) => `${first(index)} 0 R`).join(" ");
  object(
    1,
    `<< /Type /Catalog /Pages 2 0 R /Lang (${lang}) /ViewerPreferences << /DisplayDocTitle true >> >>`,
  );
  object(2, `<< /Type /Pages /Kids [${kids}] /Count ${pages.length} >>`);
  object(3, `<< /Title ${utf16(title)} /Producer (CardioRay) /CreationDate (${stamp(created)}) >>`);
  pages.forEach(({ jpeg, width, height }, index) => {
    const [page, drawing, picture] = [0, 1, 2].map((more) => first(index) + more);
    const [w, h] = A4;
    const draw = `q ${w} 0 0 ${h} 0 0 cm /P Do Q`;
    object(
      page,
      `<< /Type /Page /Parent 2 0 R /MediaBox [0 0 ${w} ${h}] /Contents ${drawing} 0 R ` +
        `/Resources << /XObject << /P ${picture} 0 R >> >> >>`,
    );
    object(drawing, `<< /Length ${draw.length} >>\nstream\n${draw}\nendstream`);
    object(
      picture,
      `<< /Type /XObject /Subtype /Image /Width ${width} /Height ${height} /ColorSpace /DeviceRGB ` +
        `/BitsPerComponent 8 /Filter /DCTDecode /Length ${jpeg.length} >>\nstream\n`,
      jpeg,
      "\nendstream",
    );
  });
  const table = length;
  const entries = offsets
    .slice(1)
    .map((offset) => `${String(offset).padStart(10, "0")} 00000 n \n`);
  put(`xref\n0 ${offsets.length}\n0000000000 65535 f \n${entries.join("")}`);
  put(
    `trailer\n<< /Size ${offsets.length} /Root 1 0 R /Info 3 0 R >>\nstartxref\n${table}\n%%EOF\n`,
  );
  return joined(parts, length);
}

function latin(text) {
  return Uint8Array.from(text, (sign) => sign.charCodeAt(0));
}

function utf16(text) {
  const digits = [...text]
    .flatMap((sign) => sign.split(""))
    .map((unit) => unit.charCodeAt(0).toString(16).padStart(4, "0"));
  return `<feff${digits.join("")}>`;
}

function stamp(date) {
  return `D:${date.toISOString().slice(0, 19).replace(/[-:T]/g, "")}Z`;
}

function joined(parts, length) {
  const whole = new Uint8Array(length);
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}
