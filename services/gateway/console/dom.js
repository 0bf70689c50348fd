// What all views use: elements, texts in the chosen language, numbers, problems.

import { CallFailed } from "./api.js";
import { translate } from "./strings.js";

let language = navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en";

/** The text of a key in the chosen language. */
export const t = (key, values) => translate(language, key, values);
/** The element with this id. */
export const $ = (id) => document.getElementById(id);

/** An element with properties and children; strings become text. */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  Object.assign(element, properties);
  element.append(...children.filter((child) => child !== null));
  return element;
}

/** Fill in the texts and labels of a part of the page. */
export function showTexts(root = document) {
  for (const element of root.querySelectorAll("[data-text]")) element.textContent = t(element.dataset.text);
  for (const element of root.querySelectorAll("[data-label]")) {
    element.setAttribute("aria-label", t(element.dataset.label));
  }
}

/** Show all texts in this language, or in the one chosen so far. */
export function setLanguage(chosen = language) {
  language = chosen;
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  $("language").textContent = t("other_language");
  $("language").lang = language === "zh" ? "en" : "zh-CN";
  showTexts();
}

/** Run an action; what goes wrong is shown above the view. */
export async function attempt(action) {
  $("problem").textContent = "";
  try {
    return await action();
  } catch (error) {
    $("problem").textContent = problemText(error);
    if (error instanceof CallFailed && error.status === 401) $("key").focus();
    return undefined;
  }
}

/** What is said of an error. */
export function problemText(error) {
  if (!(error instanceof CallFailed)) return error.message;
  if (error.status === 0) return t("unreachable");
  const start = error.status === 401 ? `${t("needsKey")} ` : "";
  return `${start}${error.message} (${error.status}, ${error.requestId})`;
}

/** A number as people of the language write it. */
export function number(value, digits = 3) {
  return value === null || value === undefined ? "–" : Number(value).toLocaleString(language, { maximumFractionDigits: digits });
}

/** A table; cells that are numbers are aligned as such. */
export function table(names, rows) {
  const isNumber = (cell) => typeof cell === "number";
  const cellOf = (cell) => make("td", { className: isNumber(cell) ? "number" : "" },
    isNumber(cell) ? number(cell) : cell ?? "");
  return make("table", {},
    make("thead", {}, make("tr", {}, ...names.map((name) => make("th", { scope: "col" }, name)))),
    make("tbody", {}, ...rows.map((row) => make("tr", {}, ...row.map(cellOf)))));
}

/** A score of 0..1 as a bar and a number. */
export function scoreBar(label, score) {
  const meter = make("meter", { min: 0, max: 1, value: score }, number(score));
  meter.setAttribute("aria-label", label);
  return make("span", {}, meter, ` ${Number(score).toFixed(3)}`);
}

/** A time as people of the language write it. */
export function time(value) {
  return new Date(value).toLocaleString(language);
}

/** Switch between the languages. */
export function switchLanguage() {
  setLanguage(language === "zh" ? "en" : "zh");
}

/** Call an action with a form when it is sent. */
export function onSubmit(form, action) {
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    attempt(() => action(form));
  });
}
