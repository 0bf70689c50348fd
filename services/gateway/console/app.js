// The page: reads the form, calls the gateway, shows the answer. Texts are only ever set as text, never as HTML.

import { call, lines, ofCollection, useKey } from "./api.js";
import { $, attempt, make, number, onSubmit, problemText, scoreBar, setLanguage, showTexts, switchLanguage, t, table, time } from "./dom.js";
import { clearDuplicates, startDuplicates } from "./duplicates.js";
import { excerpt, markedParts, passageParts, rate, scoreParts, timingParts } from "./text.js";
import { startUploads } from "./upload.js";

const MAX_SHOWN_LETTERS = 100;
const POLL_MS = 2_000;
const CHART_SECONDS = 120;
const VIEWS = ["search", "pair", "duplicates", "collections", "queue", "upload"];
const SVG = "http://www.w3.org/2000/svg";

let samples = [];

// Search.

function addColumn() {
  const column = $("query-form").content.cloneNode(true).firstElementChild;
  showTexts(column);
  const form = column.querySelector("form");
  onSubmit(form, () => search(form, column.querySelector(".result")));
  form.elements.query.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    form.requestSubmit();
  });
  $("columns").append(column);
}

async function search(form, place) {
  const fields = form.elements;
  const body = {
    query: fields.query.value,
    top_k: Number(fields.top_k.value),
    min_score: Number(fields.min_score.value),
    rerank: fields.rerank.value,
    explain: true,
  };
  if (fields.recall.value) body.recall = fields.recall.value;
  if (fields.where.value.trim()) body.where = fields.where.value;
  place.replaceChildren();
  place.append(...resultOf(await call(ofCollection($("collection").value, ":match"), body)));
}

function resultOf(result) {
  const counts = { matches: result.matches.length, candidates: result.candidate_count ?? 0,
    scored: result.scored_count ?? 0, recall: result.recall ?? "–" };
  const models = [result.models.bi_encoder, result.models.cross_encoder].filter(Boolean).join(" · ");
  return [
    make("p", { className: "quiet" }, counts.matches ? t("counts", counts) : t("nothing")),
    result.query_passage_count > 1
      ? make("p", { className: "quiet" }, t("queryPassages", { count: number(result.query_passage_count) })) : "",
    ...(result.filter_warnings ?? []).map((warning) => make("p", { className: "warning" }, warning)),
    result.degraded ? make("p", { className: "warning" }, t("degraded", { reason: result.degraded })) : "",
    timingBar(result.timings_ms),
    make("p", { className: "quiet" }, models),
    make("ol", { className: "matches" }, ...result.matches.map((match) => matchItem(result.query, match))),
  ];
}

function timingBar(timings) {
  const names = { encode: t("encode"), recall: t("stage_recall"), rerank: t("stage_rerank"), other: t("other") };
  const parts = timingParts(timings);
  const words = parts.map(({ stage, ms }) => `${names[stage]} ${ms.toFixed(1)} ms`);
  const svg = document.createElementNS(SVG, "svg");
  const set = (element, values) => Object.entries(values).forEach(([name, value]) => element.setAttribute(name, value));
  set(svg, { class: "timings", viewBox: "0 0 100 4", preserveAspectRatio: "none", role: "img",
    "aria-label": `${t("timings")}: ${words.join(", ")}` });
  for (const { stage, start, share } of parts) {
    const rect = document.createElementNS(SVG, "rect");
    set(rect, { class: stage, x: 100 * start, y: 0, width: 100 * share, height: 4 });
    svg.append(rect);
  }
  const keys = parts.map(({ stage }, at) => make("span", { className: `key ${stage}` }, words[at]));
  return make("div", { className: "quiet" }, svg, ...keys);
}

function markedText(parts) {
  return parts.map(({ text, isMarked }) => (isMarked ? make("mark", {}, text) : text));
}

function matchItem(query, match) {
  const attributes = Object.entries(match.attributes ?? {}).map(([name, value]) => `${name}: ${JSON.stringify(value)}`);
  return make("li", {},
    make("div", { className: "head" }, make("h2", {}, match.id), scoreBar(t("score"), match.score)),
    make("p", {}, ...markedText(markedParts(query, match.text))),
    match.passage ? make("p", { className: "quiet" }, placeOf("passage", match.passage)) : null,
    match.query_passage ? make("p", { className: "quiet" }, placeOf("queryPassage", match.query_passage),
      ` “${excerpt(query, match.query_passage)}”`) : null,
    attributes.length ? make("p", { className: "quiet" }, attributes.join(" · ")) : null,
    match.explanation ? make("details", {}, make("summary", {}, t("why")), why(match)) : null,
    match.passage ? wholeDocument(match) : null);
}

function placeOf(key, { start, end }) {
  return t(key, { start: number(start), end: number(end) });
}

/** A document that has several passages. It is read when it is opened; the passage that matched is marked. */
function wholeDocument(match) {
  const text = make("p", { className: "whole", tabIndex: 0 });
  text.setAttribute("role", "region");
  text.setAttribute("aria-label", t("whole"));
  const details = make("details", {}, make("summary", {}, t("whole")), text);
  const path = ofCollection($("collection").value, `/documents/${encodeURIComponent(match.id)}`);
  details.addEventListener("toggle", () => {
    if (!details.open || text.textContent) return;
    attempt(async () => {
      const stored = await call(path);
      // Of another version, the place says nothing.
      const isSame = stored.version === match.version;
      text.replaceChildren(...(isSame ? markedText(passageParts(stored.text, match.passage)) : [stored.text]));
      text.querySelector("mark")?.scrollIntoView({ block: "nearest" });
    });
  });
  return details;
}

function why(match) {
  const { explanation } = match;
  const { parts } = scoreParts(explanation, match.rerank_score);
  const rows = parts.map(({ part, value, weight, product }) => [t(part), value ?? "", weight, product]);
  rows.push([t("calibrated"), match.score, "", ""], [t("recallScore"), match.recall_score, "", ""]);
  if (explanation.pair_classifier_score != null) rows.push([t("pairClassifier"), explanation.pair_classifier_score, "", ""]);
  return make("div", { className: "wide" }, table([t("part"), t("value"), t("weight"), t("product")], rows));
}

// Other views.

async function scorePair(form) {
  const { first, second } = form.elements;
  const answer = await call("/v1/score", { text_1: first.value, text_2: second.value });
  $("pair-result").replaceChildren(make("p", {}, scoreBar(t("score"), answer.data[0].score)),
    make("p", { className: "quiet" }, answer.model));
}

async function showCollections() {
  const [{ collections }, models] = await Promise.all([loadCollections(), call("/v1/models")]);
  const indexes = (one) => one.payload_indexes.map(({ field, kind }) => `${field} (${kind})`).join(", ");
  $("collection-table").replaceChildren(table(
    ["name", "documents", "biEncoder", "crossEncoder", "lexical", "indexes", "created"].map((key) => t(key)),
    collections.map((one) => [one.name, one.document_count, one.model_id || one.bi_encoder, one.cross_encoder,
      one.lexical ? t("yes") : "", indexes(one), one.created_at ? time(one.created_at) : ""])));
  $("model-table").replaceChildren(table(
    ["name", "kind", "dimension", "maxTokens", "isDefault"].map((key) => t(key)),
    models.data.map((one) => [one.id, one.kind, one.dimension, one.max_tokens, one.is_default ? t("yes") : ""])));
}

async function loadCollections() {
  const answer = await call("/v1/collections");
  const chosen = $("collection").value;
  const names = answer.collections.map(({ name }) => name);
  if (!names.includes("default")) names.unshift("default");
  $("collection").replaceChildren(...names.map((name) => make("option", { value: name }, name)));
  if (names.includes(chosen)) $("collection").value = chosen;
  return answer;
}

async function showQueue() {
  const status = await call(ofCollection($("collection").value, "/status"));
  const seconds = performance.now() / 1000;
  samples = samples.filter((one) => one.seconds > seconds - CHART_SECONDS);
  samples.push({ seconds, count: status.document_count, queued: status.queued_count });
  const numbers = [["queued", status.queued_count], ["oldest", status.oldest_queued_seconds],
    ["rate", Math.max(0, rate(samples.slice(-6)))], ["documents", status.document_count],
    ["deadLetters", status.dead_letter_count]];
  $("queue-numbers").replaceChildren(...numbers.map(([key, value]) =>
    make("div", {}, make("dt", {}, t(key)), make("dd", {}, number(value, 1)))));
  const most = Math.max(1, ...samples.map(({ queued }) => queued));
  const points = samples.map((one) =>
    `${600 - (600 * (seconds - one.seconds)) / CHART_SECONDS},${118 - (114 * one.queued) / most}`);
  $("queue-chart").firstElementChild.setAttribute("points", points.join(" "));
  const problems = status.problems.map(({ message }) => make("span", { className: "warning" }, `${message} `));
  $("queue-problems").replaceChildren(...problems);
  $("dead-letters").hidden = !status.dead_letter_count;
}

/** The oldest dead letters, each with a button that sends it again. */
async function showLetters() {
  const collection = $("collection").value;
  const letters = await lines(ofCollection(collection, `/deadLetters?limit=${MAX_SHOWN_LETTERS}`));
  const replay = (ids) => attempt(async () => {
    const answer = await call(ofCollection(collection, "/deadLetters:replay"), { ids });
    await showLetters();
    $("letter-result").textContent = t("replayed", { count: number(answer.replayed_count, 1) });
  });
  const button = (ids, label) => {
    const made = make("button", { type: "button" }, label);
    made.addEventListener("click", () => replay(ids));
    return made;
  };
  $("letter-result").textContent = "";
  if (!letters.length) return $("letter-table").replaceChildren();
  return $("letter-table").replaceChildren(
    button(letters.map(({ id }) => id), t("replayShown", { count: number(letters.length, 1) })),
    table(["documentId", "reason", "error", "text", ""].map((key) => (key ? t(key) : "")), letters.map((one) =>
      [one.id, one.reason, one.error, one.text ?? one.raw, button([one.id], t("replay"))])));
}

async function showState(form) {
  const name = $("collection").value, id = form.elements.id.value;
  const status = await call(ofCollection(name, `/status?document_id=${encodeURIComponent(id)}`));
  const stored = await call(ofCollection(name, `/documents/${encodeURIComponent(id)}`)).catch(() => null);
  $("state-result").replaceChildren(
    make("p", {}, `${t("state")}: ${status.document_state ?? "–"}`),
    status.document_error ? make("p", { className: "warning" }, status.document_error) : "",
    stored ? make("p", {}, stored.text) : "");
}

// Views.

function openView(name) {
  for (const view of VIEWS) {
    const tab = $(`tab-${view}`);
    tab.setAttribute("aria-selected", String(view === name));
    tab.tabIndex = view === name ? 0 : -1;
    $(view).hidden = view !== name;
  }
  samples = [];
  if (name === "collections") attempt(showCollections);
  if (name === "queue") attempt(showQueue);
}

function onTabKey(event) {
  const at = VIEWS.indexOf(event.target.id.replace("tab-", ""));
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (at < 0 || !step) return;
  const next = VIEWS[(at + step + VIEWS.length) % VIEWS.length];
  $(`tab-${next}`).focus();
  openView(next);
}

function start() {
  addColumn();
  setLanguage();
  for (const view of VIEWS) $(`tab-${view}`).addEventListener("click", () => openView(view));
  document.querySelector("[role=tablist]").addEventListener("keydown", onTabKey);
  onSubmit($("pair-form"), scorePair);
  onSubmit($("state-form"), showState);
  startDuplicates();
  startUploads();
  $("show-letters").addEventListener("click", () => attempt(showLetters));
  $("language").addEventListener("click", switchLanguage);
  $("compare").addEventListener("change", ({ target }) => (target.checked ? addColumn() : $("columns").lastElementChild.remove()));
  $("key").addEventListener("input", ({ target }) => useKey(target.value));
  $("key").addEventListener("change", () => attempt(loadCollections));
  $("collection").addEventListener("change", () => {
    samples = [];
    clearDuplicates();
    $("letter-table").replaceChildren();
    $("letter-result").textContent = "";
    if (!$("queue").hidden) attempt(showQueue);
  });
  setInterval(() => {
    // An earlier problem stays readable.
    if (!$("queue").hidden && !document.hidden) showQueue().catch((error) => ($("problem").textContent = problemText(error)));
  }, POLL_MS);
  openView("search");
  attempt(loadCollections);
}

start();
