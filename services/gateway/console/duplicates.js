// The view of pairs of documents that mean the same. It reads the stream until a page is full, and goes on when asked.

import { ofCollection, stream } from "./api.js";
import { $, attempt, make, number, onSubmit, scoreBar, t } from "./dom.js";

const PAIRS_OF_PAGE = 50;
const MAX_SHOWN_CHARACTERS = 500;

let search = null; // { path, body, pairs, compared }, of what is shown
let running = null; // the AbortController of the stream

/** Listen to the form and the buttons of the view. */
export function startDuplicates() {
  onSubmit($("duplicates-form"), (form) => {
    clearDuplicates();
    search = { path: ofCollection($("collection").value, ":findDuplicates"), body: optionsOf(form), pairs: 0, compared: 0 };
    return showPage();
  });
  $("more-duplicates").addEventListener("click", () => attempt(showPage));
  $("stop-duplicates").addEventListener("click", () => running?.abort());
}

/** Forget what is shown: it is of another collection or other options. */
export function clearDuplicates() {
  running?.abort();
  search = null;
  $("duplicate-pairs").replaceChildren();
  $("duplicates-result").textContent = "";
  for (const button of ["stop-duplicates", "more-duplicates"]) $(button).hidden = true;
}

function optionsOf(form) {
  const { against, where, min_score, rerank } = form.elements;
  const body = { min_score: Number(min_score.value), rerank: rerank.checked };
  if (against.value.trim()) body.against = against.value.trim();
  if (where.value.trim()) body.where = where.value;
  return body;
}

/** Add a page of pairs to those that are shown. */
async function showPage() {
  const shown = search;
  const controller = new AbortController();
  running = controller;
  const full = shown.pairs + PAIRS_OF_PAGE;
  let isLast = false;
  show(true);
  try {
    for await (const line of stream(shown.path, shown.body, controller.signal)) {
      // Another search has begun.
      if (search !== shown) return;
      shown.body.resume_token = line.resume_token;
      if (line.error) throw new Error(line.error.detail);
      shown.pairs += line.pairs.length;
      shown.compared += line.compared_count;
      $("duplicate-pairs").append(...line.pairs.map(pairItem));
      $("duplicates-result").textContent = t("pairsFound", { pairs: number(shown.pairs), documents: number(shown.compared) });
      isLast = line.is_last;
      if (isLast || shown.pairs >= full) break;
    }
  } catch (error) {
    if (error.name !== "AbortError") throw error;
  } finally {
    if (search === shown) show(false);
  }
  if (search === shown && isLast) {
    $("more-duplicates").hidden = true;
    $("duplicates-result").append(` ${t("done")}`);
  }
}

function show(isRunning) {
  $("stop-duplicates").hidden = !isRunning;
  $("more-duplicates").hidden = isRunning;
}

function pairItem({ first, second, score, recall_score: recall, rerank_score: rerank }) {
  const parts = [`${t("recallScore")} ${number(recall)}`, rerank === null ? "" : `${t("pairScore")} ${number(rerank)}`];
  return make("li", {},
    make("div", { className: "head" }, make("h2", {}, `${first.id} · ${second.id}`), scoreBar(t("score"), score)),
    make("p", {}, shortened(first.text)),
    make("p", {}, shortened(second.text)),
    make("p", { className: "quiet" }, parts.filter(Boolean).join(" · ")));
}

function shortened(text) {
  return text.length > MAX_SHOWN_CHARACTERS ? `${text.slice(0, MAX_SHOWN_CHARACTERS)}…` : text;
}
