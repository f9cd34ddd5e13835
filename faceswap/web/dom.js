// Elements: made, found, shown, announced. Everything shown is set as text.

const SVG = "http://www.w3.org/2000/svg";

export const $ = (id) => document.getElementById(id);

/** Make an element; a function named `on…` listens, a boolean is an attribute that is there or not. */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** Make a picture out of the sprite of the page. */
export function icon(name) {
  const picture = document.createElementNS(SVG, "svg");
  picture.setAttribute("class", "icon");
  picture.setAttribute("viewBox", "0 0 24 24");
  picture.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `#i-${name}`);
  picture.append(use);
  return picture;
}

export function svgPath(attributes) {
  const path = document.createElementNS(SVG, "path");
  for (const [name, value] of Object.entries(attributes)) path.setAttribute(name, value);
  return path;
}

/** Make a button with a picture, and a label that is read and shown as a tip. */
export function iconButton(name, label, onclick, className = "icon-button") {
  return h("button", { type: "button", class: className, "aria-label": label, title: label, onclick }, icon(name));
}

export function show(element, visible) {
  element.toggleAttribute("hidden", !visible); // elements of SVG have no property `hidden`
}

/** Set a text only where it changed, so that screen readers do not read it twice. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export function showMessage(element, message) {
  setText(element, message || "");
  show(element, Boolean(message));
}

export function announce(text) {
  setText($("announcement"), text);
}

/** Bring a list up to date: elements are kept by their key, and the focus with them. */
export function renderList(container, items, keyOf, make, update = () => {}) {
  const known = new Map([...container.children].map((child) => [child.dataset.key, child]));
  const focused = document.activeElement;
  const wanted = items.map((item) => {
    const key = String(keyOf(item));
    const element = known.get(key) ?? make(item);
    element.dataset.key = key;
    update(element, item);
    return element;
  });
  const children = container.children;
  if (wanted.length === children.length && wanted.every((element, place) => children[place] === element)) return;
  container.replaceChildren(...wanted);
  if (focused !== document.activeElement && container.contains(focused)) focused.focus({ preventScroll: true });
}

/** Ask before something that cannot be undone; resolves to whether it is wanted. */
export function confirm(title, text, action) {
  const dialog = $("confirm");
  $("confirm-title").textContent = title;
  $("confirm-text").textContent = text;
  $("confirm-yes").textContent = action;
  return new Promise((resolve) => {
    dialog.returnValue = "";
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
    dialog.showModal();
  });
}

export function prepareConfirm() {
  const dialog = $("confirm");
  $("confirm-yes").addEventListener("click", () => dialog.close("yes"));
  $("confirm-no").addEventListener("click", () => dialog.close(""));
}
