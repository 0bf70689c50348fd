// Functions without a page: marking of texts, reading of files, arithmetic of scores and timings.

const IDEOGRAPH = "[\\p{Script=Han}\\p{Script=Hiragana}\\p{Script=Katakana}]";
const WORD = new RegExp(`${IDEOGRAPH}+|(?:(?!${IDEOGRAPH})[\\p{L}\\p{N}])+`, "gu");
const IDEOGRAPHS = new RegExp(`^${IDEOGRAPH}`, "u");

/** What of a text the query has too: words, and pairs of ideographs. Returns [{text, isMarked}]. */
export function markedParts(query, text) {
  const terms = new Set(termsOf(query).map((one) => one.term));
  const isMarked = new Uint8Array(text.length);
  for (const { term, start, end } of termsOf(text)) {
    if (terms.has(term)) isMarked.fill(1, start, end);
  }
  const parts = [];
  for (let start = 0; start < text.length; ) {
    let end = start + 1;
    while (end < text.length && isMarked[end] === isMarked[start]) end += 1;
    parts.push({ text: text.slice(start, end), isMarked: isMarked[start] === 1 });
    start = end;
  }
  return parts;
}

function termsOf(text) {
  const terms = [];
  for (const { 0: word, index } of text.matchAll(WORD)) {
    if (!IDEOGRAPHS.test(word)) {
      terms.push({ term: word.toLowerCase(), start: index, end: index + word.length });
      continue;
    }
    const characters = [...word];
    const width = Math.min(2, characters.length);
    for (let at = 0, start = index; at + width <= characters.length; start += characters[at].length, at += 1) {
      const term = characters.slice(at, at + width).join("");
      terms.push({ term, start, end: start + term.length });
    }
  }
  return terms;
}

/** A text around one of its passages: [{text, isMarked}]. Places count code points, as those of Python do. */
export function passageParts(text, { start, end }) {
  const characters = [...text];
  const parts = [[0, start, false], [start, end, true], [end, characters.length, false]];
  return parts
    .map(([from, to, isMarked]) => ({ text: characters.slice(from, to).join(""), isMarked }))
    .filter((part) => part.text);
}

/** The beginning of a passage. */
export function excerpt(text, { start, end }, length = 60) {
  const characters = [...text].slice(start, end);
  return characters.slice(0, length).join("").trim() + (characters.length > length ? "…" : "");
}

// As in textmatch/score_fusion.py: a pair score of 0 or 1 is not endless evidence.
const MAX_PAIR_LOGIT = 8;

/** The parts of the logit of a score, and the score: [{part, value, weight, product}], as docs/matching.md has it. */
export function scoreParts(explanation, pairScore) {
  const { weights } = explanation;
  const named = [
    ["intercept", null, weights.intercept, weights.intercept],
    ["cosine", explanation.cosine, weights.cosine, explanation.cosine * weights.cosine],
    ["lexical", explanation.lexical, weights.lexical, explanation.lexical * weights.lexical],
    ["pairScore", pairScore, weights.pair, pairLogit(pairScore) * weights.pair],
  ];
  const parts = named
    .filter(([part, value]) => part === "intercept" || (value !== null && value !== undefined))
    .map(([part, value, weight, product]) => ({ part, value, weight, product }));
  const logit = parts.reduce((sum, { product }) => sum + product, 0);
  return { parts, score: 1 / (1 + Math.exp(-logit)) };
}

function pairLogit(score) {
  return Math.max(-MAX_PAIR_LOGIT, Math.min(MAX_PAIR_LOGIT, Math.log(score / (1 - score))));
}

/** The stages of a match as shares of its total: [{stage, ms, start, share}]. */
export function timingParts(timings) {
  const known = ["encode", "recall", "rerank"].map((stage) => ({ stage, ms: timings[stage] ?? 0 }));
  const sum = known.reduce((total, { ms }) => total + ms, 0);
  const total = Math.max(timings.total ?? 0, sum);
  known.push({ stage: "other", ms: total - sum });
  let start = 0;
  return known.map(({ stage, ms }) => {
    const share = total > 0 ? ms / total : 0;
    const part = { stage, ms, start, share };
    start += share;
    return part;
  });
}

/** Items a second between the first and the last of [{seconds, count}]; 0 if there are too few. */
export function rate(samples) {
  if (samples.length < 2) return 0;
  const first = samples[0], last = samples[samples.length - 1];
  return last.seconds > first.seconds ? (last.count - first.count) / (last.seconds - first.seconds) : 0;
}

/** Reads CSV (RFC 4180) in pieces: push() and end() return the complete rows, as lists of cells. */
export class CsvReader {
  #row = [];
  #cell = "";
  #isQuoted = false;
  #afterQuote = false;

  push(piece) {
    const rows = [];
    for (const character of piece) {
      if (this.#afterQuote) {
        this.#afterQuote = false;
        if (character === '"') {
          this.#cell += '"';
          continue;
        }
        this.#isQuoted = false;
      }
      if (this.#isQuoted) {
        if (character === '"') this.#afterQuote = true;
        else this.#cell += character;
      } else if (character === '"' && this.#cell === "") {
        this.#isQuoted = true;
      } else if (character === ",") {
        this.#endCell();
      } else if (character === "\n") {
        this.#endRow(rows);
      } else {
        this.#cell += character;
      }
    }
    return rows;
  }

  end() {
    const rows = [];
    if (this.#isQuoted && !this.#afterQuote) throw new Error("a quote is not closed");
    if (this.#cell !== "" || this.#row.length > 0) this.#endRow(rows);
    return rows;
  }

  #endCell() {
    this.#row.push(this.#cell);
    this.#cell = "";
    this.#isQuoted = false;
  }

  #endRow(rows) {
    this.#cell = this.#cell.replace(/\r$/, "");
    this.#endCell();
    if (this.#row.length > 1 || this.#row[0] !== "") rows.push(this.#row);
    this.#row = [];
  }
}

/** Reads lines in pieces, without blank ones. */
export class LineReader {
  #rest = "";

  push(piece) {
    const lines = (this.#rest + piece).split("\n");
    this.#rest = lines.pop();
    return lines.filter((line) => line.trim() !== "");
  }

  end() {
    const rest = this.#rest;
    this.#rest = "";
    return rest.trim() === "" ? [] : [rest];
  }
}

/** Turns rows of CSV into documents as JSON lines. The first row has the names of the columns. */
export class CsvDocuments {
  #reader = new CsvReader();
  #names = null;

  push(piece) {
    return this.#lines(this.#reader.push(piece));
  }

  end() {
    return this.#lines(this.#reader.end());
  }

  #lines(rows) {
    if (this.#names === null && rows.length > 0) {
      this.#names = rows.shift().map((name) => name.replace(/^\ufeff/, "").trim());
      for (const needed of ["id", "text"]) {
        if (!this.#names.includes(needed)) throw new Error(`the file has no column "${needed}"`);
      }
    }
    return rows.map((row) => {
      const document = { id: "", text: "", attributes: {} };
      this.#names.forEach((name, at) => {
        const cell = row[at] ?? "";
        if (name === "id" || name === "text") document[name] = cell;
        else if (cell !== "") document.attributes[name] = cell;
      });
      return JSON.stringify(document);
    });
  }
}

/** The reader of a file by its name. A JSON array is read whole, by jsonArrayLines(). */
export function readerOf(name) {
  return /\.csv$/i.test(name) ? new CsvDocuments() : new LineReader();
}

/** The documents of a JSON array as lines; null if the content is none. */
export function jsonArrayLines(content) {
  if (!/^\s*\[/.test(content)) return null;
  return JSON.parse(content).map((document) => JSON.stringify(document));
}
