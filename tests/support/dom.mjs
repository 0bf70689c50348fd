// A document object model that is just large enough for the console's scripts, where there is no browser.

import { readFileSync } from "node:fs";

const VOID = new Set(["meta", "link", "input"]);
let document;

class Text {
  constructor(text) {
    this.textContent = text;
  }
}

class Element {
  constructor(tag) {
    Object.assign(this, { tag, nodes: [], parent: null, attributes: {}, listeners: {}, className: "", dataset: {} });
    this.ownValue = undefined;
    if (tag === "template") this.content = new Element("fragment");
  }

  get children() { return this.nodes.filter((node) => node instanceof Element); }
  get firstElementChild() { return this.children[0]; }
  get lastElementChild() { return this.children.at(-1); }
  get textContent() { return this.nodes.map((node) => node.textContent).join(""); }
  set textContent(text) { this.replaceChildren(String(text)); }
  get value() {
    if (this.tag === "option") return this.ownValue ?? this.textContent;
    if (this.tag === "select") return this.ownValue ?? this.querySelector("option")?.value ?? "";
    return this.ownValue ?? "";
  }
  set value(value) { this.ownValue = this.tag === "meter" || this.tag === "progress" ? value : String(value); }
  get elements() {
    const named = this.querySelectorAll("*").filter((one) => one.attributes.name);
    return Object.fromEntries(named.map((one) => [one.attributes.name, one]));
  }

  setAttribute(name, value) {
    this.attributes[name] = String(value);
    if (name === "class") this.className = value;
    if (name === "id") this.id = value;
    if (name === "hidden") this.hidden = true;
    if (name === "value") this.ownValue = value;
    if (name.startsWith("data-")) this.dataset[name.slice(5)] = value;
  }

  append(...nodes) {
    for (const node of nodes) {
      if (node === null || node === undefined) throw new TypeError("null would be shown as text");
      const added = node instanceof Element ? node : new Text(String(node));
      added.parent = this;
      this.nodes.push(added);
    }
  }

  replaceChildren(...nodes) {
    this.nodes = [];
    if (this.tag === "select") this.ownValue = undefined;
    this.append(...nodes);
  }

  remove() { this.parent.nodes.splice(this.parent.nodes.indexOf(this), 1); }
  focus() { document.focused = this; }

  cloneNode() {
    const copy = new Element(this.tag);
    Object.entries(this.attributes).forEach(([name, value]) => copy.setAttribute(name, value));
    copy.append(...this.nodes.map((node) => (node instanceof Element ? node.cloneNode() : node.textContent)));
    return copy;
  }

  querySelector(selector) { return this.querySelectorAll(selector)[0] ?? null; }

  querySelectorAll(selector) {
    const found = [];
    for (const child of this.children) {
      if (child.matches(selector)) found.push(child);
      found.push(...child.querySelectorAll(selector));
    }
    return found;
  }

  matches(selector) {
    if (selector === "*") return true;
    if (selector.startsWith(".")) return this.className.split(" ").includes(selector.slice(1));
    if (!selector.startsWith("[")) return this.tag === selector;
    const [name, value] = selector.slice(1, -1).split("=");
    return name in this.attributes && (value === undefined || this.attributes[name] === value);
  }

  addEventListener(kind, listener) { (this.listeners[kind] ??= []).push(listener); }

  dispatch(kind, values = {}) {
    const event = { target: this, preventDefault() {}, ...values };
    for (let at = this; at; at = at.parent) at.listeners[kind]?.forEach((listener) => listener(event));
  }

  requestSubmit() { this.dispatch("submit"); }
}

function parse(html) {
  const root = new Element("document");
  let at = root;
  for (const [, closed, opened, attributes, text] of html.matchAll(/<\/([\w-]+)>|<([\w-]+)([^>]*)>|([^<]+)/g)) {
    if (closed) {
      at = at.parent;
    } else if (opened) {
      const element = new Element(opened);
      for (const [, name, quoted, quoted2] of attributes.matchAll(/([\w-]+)(?:=(?:"([^"]*)"|'([^']*)'))?/g)) {
        element.setAttribute(name, quoted ?? quoted2 ?? "");
      }
      at.append(element);
      if (VOID.has(opened)) continue;
      if (opened === "template") element.content.parent = at;
      at = element.content ?? element;
    } else if (text.trim()) {
      at.append(text);
    }
  }
  return root;
}

/** Make the globals of a page at `url`; returns its document. */
export async function open(url, language) {
  const root = parse(readFileSync(new URL("./index.html", import.meta.url), "utf-8").replace("<!doctype html>", ""));
  document = {
    root, hidden: false, documentElement: root.firstElementChild,
    createElement: (tag) => new Element(tag),
    createElementNS: (namespace, tag) => new Element(tag),
    getElementById: (id) => root.querySelectorAll("*").find((one) => one.id === id) ?? null,
    querySelector: (selector) => root.querySelector(selector),
    querySelectorAll: (selector) => root.querySelectorAll(selector),
  };
  const realFetch = globalThis.fetch;
  let running = 0;
  document.isBusy = () => running > 0;
  globalThis.document = document;
  globalThis.fetch = async (path, options) => {
    running += 1;
    try {
      return await realFetch(url + path, options);
    } finally {
      running -= 1;
    }
  };
  Object.defineProperty(globalThis, "navigator", { value: { language }, configurable: true });
  return document;
}

/** Wait until nothing was asked for a moment. */
export async function settled() {
  for (let quiet = 0; quiet < 15; quiet = document.isBusy() ? 0 : quiet + 1) {
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}
