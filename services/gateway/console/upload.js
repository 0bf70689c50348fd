// The view that uploads a file of documents in batches.

import { upload } from "./api.js";
import { $, make, number, onSubmit, t } from "./dom.js";
import { jsonArrayLines, readerOf } from "./text.js";

const BATCH_LINES = 500;
const BATCH_CHARACTERS = 4_000_000;
const MAX_SHOWN_ERRORS = 100;

let running = null; // the AbortController of an upload

/** Listen to the form and the button of the view. */
export function startUploads() {
  onSubmit($("upload-form"), startUpload);
  $("stop").addEventListener("click", () => running?.abort());
}

async function sendFile(file) {
  const counts = { ACCEPTED: 0, UNCHANGED: 0, REJECTED: 0, FAILED: 0 };
  const collection = $("collection").value;
  let sent = 0;
  const send = async (lines) => {
    const results = await upload(collection, lines, running.signal);
    for (const result of results) {
      counts[result.outcome] += 1;
      if (result.error) showUploadError(sent + result.line, result);
    }
    sent += lines.length;
    showCounts(counts);
  };
  $("upload-errors").replaceChildren();
  showCounts(counts);
  const progress = $("upload-progress");
  progress.value = 0;
  for await (const { lines, share } of batchesOf(file)) {
    if (lines.length) await send(lines);
    progress.value = share;
  }
}

/** The lines of a file in batches, with the share of the file that was read. */
async function* batchesOf(file) {
  if (/\.json$/i.test(file.name)) {
    const lines = jsonArrayLines(await file.text());
    if (lines !== null) {
      for (let at = 0; at < lines.length; at += BATCH_LINES) {
        yield { lines: lines.slice(at, at + BATCH_LINES), share: Math.min(1, (at + BATCH_LINES) / lines.length) };
      }
      return;
    }
  }
  const reader = readerOf(file.name);
  const decoder = new TextDecoder("utf-8", { fatal: true });
  let read = 0, waiting = [], size = 0;
  const pieces = file.stream().getReader();
  for (;;) {
    const { done, value } = await pieces.read();
    const lines = done ? [...reader.push(decoder.decode()), ...reader.end()] : reader.push(decoder.decode(value, { stream: true }));
    const before = read;
    read += value?.length ?? 0;
    for (const [at, line] of lines.entries()) {
      waiting.push(line);
      size += line.length;
      if (waiting.length === BATCH_LINES || size > BATCH_CHARACTERS) {
        // A piece may have many batches.
        yield { lines: waiting, share: (before + ((at + 1) / lines.length) * (read - before)) / file.size };
        [waiting, size] = [[], 0];
      }
    }
    if (done) {
      yield { lines: waiting, share: 1 };
      return;
    }
  }
}

function showCounts(counts) {
  $("upload-result").textContent = t("uploaded", { accepted: number(counts.ACCEPTED), unchanged: number(counts.UNCHANGED),
    rejected: number(counts.REJECTED), failed: number(counts.FAILED) });
}

function showUploadError(line, result) {
  const list = $("upload-errors");
  if (list.children.length >= MAX_SHOWN_ERRORS) return;
  const place = [t("line", { line }), result.id].filter(Boolean).join(", ");
  list.append(make("li", {}, `${place}: ${result.error.detail}`));
}

async function startUpload(form) {
  running = new AbortController();
  const show = (isRunning) => {
    $("stop").hidden = !isRunning;
    form.querySelector("button").disabled = isRunning;
  };
  $("upload-progress").hidden = false;
  show(true);
  try {
    await sendFile(form.elements.file.files[0]);
    $("upload-result").append(` ${t("done")}`);
  } catch (error) {
    if (error.name !== "AbortError") throw error;
    $("upload-result").append(` ${t("stopped")}`);
  } finally {
    show(false);
  }
}
